"""Named arrays: their fingerprint, which docs/exact-numerics.md defines, and their bytes. NumPy alone, so that commands answer at once."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping

import numpy as np

_AT_ONCE = 2**26
"""Bytes that are hashed or written at once."""


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256, in hex, over the arrays sorted by name: name, dtype, shape, little-endian bytes.

    Before each array's bytes stands the line `name dtype AxBxC`. Zeros count as +0.0, so the sign of a zero, which no
    result depends on, does not count.

    Raises:
        ValueError: a name could be taken for more than itself in that line.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        if not is_name(name):
            raise ValueError(f"a tensor is called {name!r:.80}; a fingerprint is of names that can be shown and hold no space")
        array = np.asarray(arrays[name])
        if array.dtype.kind == "f":
            array = array + array.dtype.type(0)
        digest.update(f"{name} {array.dtype.name} {'x'.join(map(str, array.shape))}\n".encode())
        for part in parts(array):
            digest.update(part)
    return digest.hexdigest()


def is_name(name: str) -> bool:
    """Whether an array may be called so: a space or the end of a line in it would end it in a fingerprint's line."""
    return name.isprintable() and " " not in name


def parts(array: np.ndarray) -> Iterator[memoryview]:
    """The little-endian bytes of an array, so many at a time that a mapped one of any size takes the same memory."""
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    for first in range(0, len(flat), _AT_ONCE):
        yield flat[first : first + _AT_ONCE].data
        forget(array)


def forget(array: np.ndarray) -> None:
    """Give back the memory of an array that is mapped from a file; what is read of it again comes from the file again."""
    base = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
