"""A reproducible PyTorch pipeline: the same weights, bit for bit, on every device."""

__version__ = "0.1.0"
