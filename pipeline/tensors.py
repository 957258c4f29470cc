"""Named tensors: their fingerprint, and the safetensors files that hold them. No PyTorch here, so that commands answer at once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from pipeline import files, paths, schema
from pipeline.errors import printable, shown

Tensors = Mapping[str, np.ndarray]
METADATA = "__metadata__"
DTYPES = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype("u1"), "U16": np.dtype("<u2"), "U32": np.dtype("<u4"), "U64": np.dtype("<u8"),
    "I8": np.dtype("i1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "C64": np.dtype("<c8"),
}  # fmt: skip
"""Types of safetensors -> NumPy's, all that NumPy has."""


class Damaged(Exception):
    """Why a file is not a whole safetensors file."""


class Content(NamedTuple):
    """What a safetensors file holds."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def fingerprint(tensors: Tensors) -> str:
    """SHA-256, in hex, over the tensors sorted by name: name, dtype, shape, little-endian bytes.

    Before each tensor's bytes stands the line `name dtype AxBxC`. Zeros count as +0.0, so the sign of a zero, which no
    result depends on, does not count.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        if array.dtype.kind == "f":
            array = array + array.dtype.type(0)
        digest.update(f"{name} {array.dtype.name} {'x'.join(map(str, array.shape))}\n".encode())
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def write(path: Path, tensors: Tensors, metadata: tuple[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all.

    Raises UserError as `files.write_bytes` does.
    """
    files.write_bytes(path, dump(tensors, metadata))


def dump(tensors: Tensors, metadata: tuple[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file. Metadata is one entry: safetensors writes several in an order that changes from call to call."""
    import safetensors.numpy

    contiguous = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    return safetensors.numpy.save(contiguous, dict([metadata]) if metadata else None)


LARGEST_HEADER = 2**22
"""Bytes: what 20,000 tensors take."""


class Entry(msgspec.Struct, frozen=True):
    """What the header of a safetensors file says of a tensor."""

    dtype: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=16)]
    data_offsets: tuple[int, int]
    """From the end of the header, in bytes."""


def read(path: Path) -> Content:
    """Read a safetensors file. Nothing in it is executed, and nothing is mapped into memory, which some file systems refuse.

    Raises:
        FileNotFoundError: it is not there.
        Damaged: it cannot be read, or is not a whole safetensors file.
    """
    try:
        return parse(paths.read(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from None


def parse(content: bytearray) -> Content:
    """The tensors and the metadata in the bytes of a safetensors file. Raises Damaged where they are not a whole one.

    The arrays are views of `content`. The library's own reader copies each tensor out of it, and with a data set of full size those
    two copies are more memory than the training that follows takes. The rules are the library's, with bounds.
    """
    data = np.frombuffer(content, np.uint8)
    length = int.from_bytes(content[:8], "little")
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
