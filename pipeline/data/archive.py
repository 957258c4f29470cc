"""Reading an archive in CIFAR-10's layout without trusting it.

Members are read by an allow-list, in memory and one after the other: nothing is written to disk, so there is no half-written
folder to clear away after a crash, and no name, link or device in the archive to follow. The batches are pickles, read by
`pipeline.data.pickles`, which executes nothing.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from pipeline.data import pickles
from pipeline.data.dataset import Dataset
from pipeline.data.pickles import Recorded, Refused
from pipeline.errors import UserError, shown

FOLDER = "cifar-10-batches-py"
TRAINING = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = "test_batch"
META = "batches.meta"
MEMBERS = (*TRAINING, TEST, META)
CLASSES = 10
PIXELS = 3 * 32 * 32

MEMBER_BYTES = 64 * 2**20
"""The largest member that is read: about 21,000 images."""
OTHER_BYTES = 2**20
"""How much may stand between the members: headers, padding, extended attributes."""


def read(path: Path, name: str) -> Dataset:
    """The data set called `name` in the tar archive (gzipped or plain) at `path`.

    Raises:
        UserError: the archive is damaged, unsafe or not in the layout; names the file and the reason.
    """
    contents: dict[str, Any] = {}
    with _opened(path) as file:
        for member, content in _members(file):
            if member in contents:
                raise UserError(f"{path}: {FOLDER}/{member} is there twice")
            try:
                contents[member] = _classes(content) if member == META else _batch(content)
            except Refused as reason:
                raise UserError(f"{path}: {FOLDER}/{member}: {reason}") from None
    if missing := [member for member in MEMBERS if member not in contents]:
        raise UserError(f"{path}: {FOLDER}/{missing[0]} is missing; there must be {', '.join(MEMBERS)}")
    images, labels = zip(*(contents[member] for member in TRAINING), strict=True)
    return Dataset(name, contents[META], np.concatenate(images), np.concatenate(labels), *contents[TEST])


def check_kind(path: Path) -> None:
    """Raise UserError when the file at `path` does not begin as a tar archive (gzipped or plain) does; names what it is."""
    with _opened(path):
        pass


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The tar archive in a file, once it is known to begin like one; what is wrong with it is told with its name."""
    try:
        with contextlib.ExitStack() as stack:
            file: BinaryIO = stack.enter_context(open(path, "rb"))
            if gzipped := file.read(2) == b"\x1f\x8b":
                file = cast(BinaryIO, stack.enter_context(gzip.open(path)))
            file.seek(0)
            header = file.read(tarfile.BLOCKSIZE)
            try:
                tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                if header.strip(b"\0") or not header:
                    raise Refused(
                        f"it is {'gzip of ' if gzipped else ''}{_kind(header)}; make one: tar czf images.tar.gz {FOLDER}"
                    ) from None
            file.seek(0)
            yield file
    except (Refused, tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}: not a whole archive in CIFAR-10's layout: {error}") from None


def _kind(start: bytes) -> str:
    """What a file that is no tar archive is, by its first bytes."""
    if not start:
        return "an empty file"
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return "a page (HTML or XML)"
    named = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    return named or f"no tar archive (it begins with {shown(start[:16])})"


_MAGIC = {
    b"PK": "a ZIP archive",
    b"\xfd7zXZ\0": "an xz file",
    b"BZh": "a bzip2 file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\x04\x22\x4d\x18": "an LZ4 file",
    b"\x1f\x9d": "a compress file (.Z)",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x80\x02": "a pickle, one batch without its archive",
    b"\x80\x03": "a pickle, one batch without its archive",
    b"\x80\x04": "a pickle, one batch without its archive",
    b"\x80\x05": "a pickle, one batch without its archive",
    b"\xef\xbb\xbf": "a text file",
}


def _members(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Names (without the folder) and contents of the batches in a tar archive.

    Block by block, so that no header makes us hold more than we chose to: the tarfile module reads an extended header of
    any size into memory.
    """
    batches = {f"{FOLDER}/{member}": member for member in MEMBERS}
    spare = OTHER_BYTES
    while True:
        header = _exactly(file, tarfile.BLOCKSIZE)
        if not header.strip(b"\0"):
            return
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        padding = -member.size % tarfile.BLOCKSIZE
        is_file = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
        name = member.name.removeprefix("./")  # as in tar czf x.tgz ./cifar-10-batches-py
        if is_file and name in batches:
            if not 0 <= member.size <= MEMBER_BYTES:
                raise Refused(f"{member.name} claims {member.size} bytes; at most {MEMBER_BYTES} are read")
            yield batches[name], _exactly(file, member.size)
            _exactly(file, padding)
            continue
        ignored = (
            (is_file and name == f"{FOLDER}/readme.html")  # the official archive holds it
            or (is_file and re.fullmatch(rf"(?:{FOLDER}/)?(?:\._[^/]*|\.DS_Store)", name))  # macOS puts them there
            or (member.isdir() and name in (FOLDER, "."))
            or member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE)  # times and owners
        )
        if not ignored:
            kind = _KINDS.get(member.type, "of another kind")
            raise Refused(f"member {shown(member.name)} ({kind}) does not belong there; pack the folder {FOLDER} with the batches alone")
        spare -= tarfile.BLOCKSIZE + member.size + padding
        if member.size < 0 or spare < 0:
            raise Refused(f"more than {OTHER_BYTES} bytes beside the batches")
        _exactly(file, member.size + padding)


_KINDS = {
    tarfile.REGTYPE: "a file",
    tarfile.AREGTYPE: "a file",
    tarfile.DIRTYPE: "a folder",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


def _exactly(file: BinaryIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise Refused("it is truncated")
    return content


def _batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [n, 3, 32, 32] and labels [n] of a pickled batch."""
    batch = pickles.read(content)
    for key in ("data", "labels"):
        if key not in batch:
            raise Refused(f"key '{key}' is missing")
    images, labels = _pixels(batch["data"]), batch["labels"]
    if type(labels) is not list or not all(type(label) is int for label in labels):
        raise Refused("'labels' is not a list of whole numbers")
    if wrong := [label for label in labels if not 0 <= label < CLASSES]:
        raise Refused(f"label {shown(wrong[0])}; allowed: 0 to {CLASSES - 1}")
    if len(labels) != len(images):
        raise Refused(f"{len(labels)} labels for {len(images)} images")
    return images.reshape(-1, 3, 32, 32), np.array(labels, np.uint8)


def _pixels(recorded: Any) -> np.ndarray:
    """uint8 [n, 3072] from what a pickle says of an array."""
    match recorded:
        case Recorded(state=(_, tuple() as shape, Recorded(args=(dtype, *_)), in_columns, bytes() as content)):
            pass
        case _:
            raise Refused("'data' is not an array of uint8")
    if dtype not in ("u1", b"u1", "|u1", b"|u1"):
        raise Refused(f"'data' has the dtype {shown(dtype)}, not uint8")
    if len(shape) != 2 or not all(type(n) is int for n in shape) or shape[0] < 1 or shape[1] != PIXELS:
        raise Refused(f"'data' has the shape {shown(shape)}, not (n, {PIXELS})")
    if len(content) != shape[0] * PIXELS:
        raise Refused(f"'data' has {len(content)} bytes for {shown(shape[0])} images of {PIXELS}")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if in_columns else "C")


def _classes(content: bytes) -> tuple[str, ...]:
    """The names of the classes in the pickled description."""
    names = pickles.read(content).get("label_names")
    if type(names) is not list or not all(isinstance(name, str | bytes) for name in names):
        raise Refused("'label_names' is not a list of names")
    texts = [name if isinstance(name, str) else name.decode("utf-8", "replace") for name in names]
    if len(texts) != CLASSES or len(set(texts)) != CLASSES or not all(text.isprintable() and 0 < len(text) <= 100 for text in texts):
        raise Refused(f"'label_names' are not {CLASSES} different printable names")
    return tuple(texts)
