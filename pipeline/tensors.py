"""Named tensors: their fingerprint, and the safetensors files that hold them. No PyTorch here, so that commands answer at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import files, paths

Tensors = Mapping[str, np.ndarray]


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

    Metadata is one entry, for safetensors writes several in an order that changes from call to call. Raises UserError.
    """
    import safetensors.numpy

    contiguous = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    files.write_bytes(path, safetensors.numpy.save(contiguous, dict([metadata]) if metadata else None))


def read(path: Path) -> Content:
    """Read a safetensors file. Nothing in it is executed, and nothing is mapped into memory, which some file systems refuse.

    Raises:
        FileNotFoundError: it is not there.
        Damaged: it cannot be read, or is not a whole safetensors file.
    """
    import safetensors
    import safetensors.numpy

    try:
        content = paths.plain(path).read_bytes()
        tensors = dict(safetensors.numpy.load(content))
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return Content(tensors, dict(header.get("__metadata__") or {}))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from None
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise Damaged(str(error)) from None
