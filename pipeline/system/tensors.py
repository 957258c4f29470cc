"""Safetensors files of named tensors. No PyTorch here, so that commands answer at once."""

from __future__ import annotations

import json
import math
import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from pipeline.exact import arrays
from pipeline.exact.arrays import parts
from pipeline.system import files, paths, schema
from pipeline.system.errors import UserError, printable, shown

Tensors = Mapping[str, np.ndarray]
METADATA = "__metadata__"
DTYPES = {
    "BOOL": np.dtype(bool), "U8": np.dtype("u1"), "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"), "U16": np.dtype("<u2"), "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"), "U32": np.dtype("<u4"), "F32": np.dtype("<f4"),
    "C64": np.dtype("<c8"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8"), "U64": np.dtype("<u8"),
}  # fmt: skip
"""Types of safetensors -> NumPy's, all that NumPy has; in the library's order, which is that of the tensors in a file, the last first."""


class Damaged(Exception):
    """Why a file is not a whole safetensors file."""


class Unreadable(Damaged):
    """Why the system does not give a file's bytes."""


_PRIVATE = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""How a file is mapped: writable, as PyTorch wants it, but never written, so that no memory is set aside for copies of its pages, which
Linux does not have for a file larger than memory. Python has a name for the flag from 3.13 on; that of x86-64 and ARM64 is 0x4000."""


class Content(NamedTuple):
    """What a safetensors file holds."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def fingerprint(tensors: Tensors) -> str:
    """The fingerprint of named tensors, as `exact.arrays.fingerprint` gives it.

    Raises:
        UserError: a name could be taken for more than itself.
    """
    try:
        return arrays.fingerprint(tensors)
    except ValueError as reason:
        raise UserError(str(reason)) from None


def write(path: Path, tensors: Tensors, metadata: tuple[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all, with the bytes that the library writes, but without a copy of the tensors.

    Raises UserError as `files.replacing` does.
    """
    header, arrays = _laid_out(tensors, metadata)
    with files.replacing(path) as file:
        file.write(header)
        for array in arrays:
            for part in parts(array):
                file.write(part)


def dump(tensors: Tensors, metadata: tuple[str, str] | None = None) -> bytes:
    """The bytes of such a file."""
    header, arrays = _laid_out(tensors, metadata)
    return b"".join((header, *(part for array in arrays for part in parts(array))))


def _laid_out(tensors: Tensors, metadata: tuple[str, str] | None) -> tuple[bytes, list[np.ndarray]]:
    """The header of a safetensors file, and the tensors in the order of their bytes; metadata is one entry."""
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    kinds = list(DTYPES.values())
    names = sorted(arrays, key=lambda name: (-kinds.index(arrays[name].dtype.newbyteorder("<")), name))
    header: dict[str, Any] = {METADATA: dict([metadata])} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + arrays[name].nbytes
        kind = list(DTYPES)[kinds.index(arrays[name].dtype.newbyteorder("<"))]
        header[name] = {"dtype": kind, "shape": list(arrays[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [arrays[name] for name in names]


LARGEST_HEADER = 2**22
"""Bytes: what 20,000 tensors take."""


class Entry(msgspec.Struct, frozen=True):
    """What the header of a safetensors file says of a tensor."""

    dtype: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=16)]
    data_offsets: tuple[int, int]
    """From the end of the header, in bytes."""


def read(path: Path, *, mapped: bool = False) -> Content:
    """Read a safetensors file. Nothing in it is executed.

    With `mapped` a file of more than `paths.LARGEST_BYTES` is mapped into memory, where else it is refused. No other is, for some file
    systems cannot.

    Raises:
        FileNotFoundError: it is not there.
        Unreadable: the system does not let it be read, or mapped.
        Damaged: it is not a whole safetensors file.
    """
    try:
        with paths.plain(path, None if mapped else paths.LARGEST_BYTES) as (file, size):
            if size > paths.LARGEST_BYTES:
                return parse(np.frombuffer(mmap.mmap(file.fileno(), size, _PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE), np.uint8))
        return parse(paths.read(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None


def parse(content: bytearray | np.ndarray) -> Content:
    """The tensors and the metadata in the bytes of a safetensors file. Raises Damaged where they are not a whole one.

    The arrays are views of `content`. The library's own reader copies each tensor out of it, and with a data set of full size those
    two copies are more memory than the training that follows takes. The rules are the library's, with bounds.
    """
    data = content if isinstance(content, np.ndarray) else np.frombuffer(content, np.uint8)
    length = int.from_bytes(bytes(content[:8]), "little")
    if len(data) < 8 or length > len(data) - 8:
        raise Damaged(f"a header of {length} bytes in a file of {len(data)}")
    if length > LARGEST_HEADER:
        raise Damaged(f"a header of {length} bytes; at most {LARGEST_HEADER} are read")
    try:
        text = bytes(content[8 : 8 + length])
        header = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        schema.refuse_doubled(text)
        metadata = msgspec.json.decode(header.pop(METADATA, b"{}"), type=dict[str, str])
        entries = {name: msgspec.json.decode(entry, type=Entry) for name, entry in header.items()}
        return Content(_views(data[8 + length :], entries), metadata)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise Damaged(printable(str(error))[:300]) from None


def _views(content: np.ndarray, entries: dict[str, Entry]) -> dict[str, np.ndarray]:
    """The tensors in `content`, uint8 [bytes], which they must fill without a gap. Raises Damaged."""
    tensors, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        dtype, (start, stop) = DTYPES.get(entry.dtype), entry.data_offsets
        if dtype is None:
            raise Damaged(f"tensor {shown(name)} is of type {shown(entry.dtype)}")
        if start != end or stop - start != math.prod(entry.shape) * dtype.itemsize or stop > len(content):
            form = f"{entry.dtype} {shown(entry.shape)}"
            raise Damaged(f"tensor {shown(name)} of {form} is said to be at bytes {start} to {stop} of {len(content)}")
        tensors[name] = np.require(content[start:stop].view(dtype).reshape(entry.shape), requirements="A")
        end = stop
    if end != len(content):
        raise Damaged(f"{len(content) - end} bytes after the last tensor")
    return tensors
