"""Exact numerics: the same bits on every device, from PyTorch's stock kernels.

A package of its own: it imports PyTorch, NumPy and the standard library, and nothing else of the pipeline. Nothing is loaded before it
is asked for. In a script of your own (docs/library.md):

    from pipeline import exact
    optimizer = exact.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = exact.cross_entropy(model, images, labels)
    loss.backward(); optimizer.step(); optimizer.zero_grad()
"""

from importlib import import_module
from typing import Any

VERSION = "exact-3"
"""Changes whenever the bits change; docs/exact-numerics.md defines it."""

_HOMES = {
    "SGD": "optimizers", "Adam": "optimizers", "AdamW": "optimizers", "cross_entropy": "library", "logits": "library", "share": "library",
    "supported": "library", "fingerprint": "library", "initialise": "initialisation", "initial_values": "initialisation",
    "Unsupported": "errors", "Imprecise": "errors",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
