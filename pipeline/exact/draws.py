"""Integers drawn on the CPU, the same for every device, library and release: SHAKE-256 (FIPS 202) of a label.

PyTorch and NumPy reserve the right to change what a seed gives (PyTorch did for `randint`); a standard does not. The
draws for a label need no state, so a resumed training has the order of any epoch at once.
"""

from __future__ import annotations

import hashlib

import numpy as np


def random_integers(label: str, below: int, count: int) -> np.ndarray:
    """`count` integers from 0 to `below` - 1, a power of two up to 2^63, as int64 [count]."""
    assert below in (2**bits for bits in range(64))
    words = np.frombuffer(hashlib.shake_256(label.encode()).digest(8 * count), "<u8")
    return (words & np.uint64(below - 1)).astype(np.int64)


def permutation(label: str, count: int) -> np.ndarray:
    """The numbers 0 to `count` - 1 in a drawn order, as int64 [count]: a stable sort of drawn 63-bit keys."""
    return np.argsort(random_integers(label, 2**63, count), kind="stable")
