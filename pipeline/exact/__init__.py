"""Exact numerics: the same bits on every device, from PyTorch's stock kernels.

A package of its own: it imports PyTorch, NumPy and the standard library, and nothing else of the pipeline. Nothing is loaded before it
is asked for.
"""

VERSION = "exact-3"
"""Changes whenever the bits change; docs/exact-numerics.md defines it."""
