"""A folder of pictures, in the layout of torchvision's ImageFolder, as a data set.

`train/CLASS/*` and `test/CLASS/*` (or `val/CLASS/*`), or `CLASS/*` alone, which a digest of each file's content divides. Classes and
files come in the order of their names' code points, in Unicode's composed form, whatever order and form the file system has.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import params
from pipeline.data import pictures
from pipeline.data.dataset import Dataset, Shape, label_dtype, room
from pipeline.params import SOURCES
from pipeline.system import paths
from pipeline.system.errors import UserError, printable
from pipeline.system.progress import progress

TESTS = ("test", "val")
MOST_WAYS, DEEPEST = 100, 100
"""Ways to a folder, and folders within each other, below that of a class."""
_NAMED = 5
"""Files that a message names."""
_AT_ONCE = 256
"""Files that are handed to the threads at once."""


class File(NamedTuple):
    """A picture of the folder."""

    path: str
    label: str
    """The name of its class."""
    state: tuple[int, int, int]
    """What changes when the file is replaced or rewritten."""


@dataclass
class _Listing:
    """What is in the folder: the pictures, and what is left out, by reason."""

    files: list[File] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    ways: Counter[str] = field(default_factory=Counter)
    """A folder -> how often it was come to; links may lead to one on many ways, and on twice as many with each folder between."""

    def leave_out(self, reason: str, path: str) -> None:
        self.left_out.setdefault(reason, []).append(path)


def read(data: params.Data) -> Dataset:
    """The set in `data.folder`, its pictures by the rule of docs/data.md.

    Raises:
        UserError: the folder has another layout, a picture cannot be read, or a file changed meanwhile.
    """
    root = os.path.expanduser(data.folder)
    train, test, left_out = _splits(root, data.test_fraction)
    for reason, some in left_out.items():
        others = f" and {len(some) - _NAMED} more" if len(some) > _NAMED else ""
        print(printable(f"{data.folder}: left out, {reason}: {', '.join(some[:_NAMED])}{others}"), file=sys.stderr)
    classes = sorted({one.label for one in train})
    if strange := sorted({one.label for one in test} - set(classes)):
        raise UserError(f"{data.folder}: class '{strange[0]}' has test images but no training images; give it some, or take it out")
    shape: Shape = (data.channels, data.size, data.size)
    number = {name: index for index, name in enumerate(classes)}
    images, labels = [], []
    refused: list[str] = []
    with pictures.quietly(), progress(f"reading {data.folder}", len(train) + len(test), "pictures") as show:
        for split in (train, test):
            images.append(room(len(split), shape))
            labels.append(np.array([number[one.label] for one in split], label_dtype(len(classes))))
            done = len(train) if split is test else 0
            for index, image in enumerate(_pictures(split, shape)):
                if isinstance(image, UserError):
                    refused.append(str(image))
                else:
                    images[-1][index] = image
                show(done + index + 1, "")
    if refused:
        others = f" (and {len(refused) - 1} more: {'; '.join(refused[1:_NAMED])})" if len(refused) > 1 else ""
        raise UserError(f"{refused[0]}{others}; mend it, or take it out of the folder")
    if _splits(root, data.test_fraction)[:2] != (train, test):
        raise UserError(f"{data.folder}: files changed while they were read; run it again")
    return Dataset(name_of(data.folder), tuple(classes), images[0], labels[0], images[1], labels[1])


def name_of(folder: str) -> str:
    """What metrics and runs call a set: the folder's name, in letters that every path may have."""
    own = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(os.path.abspath(os.path.expanduser(folder))))
    name = own.lstrip("._-").rstrip(".-")[:57] or "pictures"
    return f"{name}-folder" if name.lower() in SOURCES.__args__ else name  # type: ignore[attr-defined]


def _splits(root: str, test_fraction: float) -> tuple[list[File], list[File], dict[str, list[str]]]:
    listing = _Listing()
    names = [name for name, _ in _entries(root, listing, "beside the folders of classes", folders=True)]
    tests = [name for name in TESTS if name in names]
    if "train" in names and tests:
        for name in names:
            if name not in ("train", tests[0]):
                listing.leave_out("beside train/ and test/", os.path.join(root, name))
        splits = [_of_split(os.path.join(root, name), listing) for name in ("train", tests[0])]
    else:
        if names and set(names) <= {"train", *TESTS}:
            raise UserError(f"{root}: has {names[0]}/ alone; there must be train/ and test/ (or val/), or a folder for each class")
        files = _of_split(root, listing, names)
        splits = [[], []]
        for one in files:
            splits[_is_test(one.path, test_fraction)].append(one)
    for name, split in zip(("training", "test"), splits, strict=True):
        if not split:
            raise UserError(
                f"{root}: no {name} images ({', '.join(pictures.SUFFIXES)}); there must be train/CLASS/ and test/CLASS/ with pictures, or "
                "CLASS/ alone with some for each"
            )
    return splits[0], splits[1], listing.left_out


def _of_split(folder: str, listing: _Listing, names: list[str] | None = None) -> list[File]:
    """The pictures in the folders of classes in `folder`, in order."""
    if names is None:
        names = [name for name, _ in _entries(folder, listing, "beside the folders of classes", folders=True)]
    files = []
    for name in names:
        label = unicodedata.normalize("NFC", name)
        found = [File(path, label, state) for path, state in _walk(os.path.join(folder, name), listing, frozenset())]
        if not found:
            listing.leave_out("folders without pictures", os.path.join(folder, name))
        files += found
    return files


def _walk(folder: str, listing: _Listing, above: frozenset[str]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    real = os.path.realpath(folder)
    if real in above:
        listing.leave_out("links to a folder that they are in", folder)
        return
    listing.ways[real] += 1
    if listing.ways[real] > MOST_WAYS or len(above) == DEEPEST:
        many = f"{DEEPEST} folders within each other" if len(above) == DEEPEST else f"{MOST_WAYS} ways, by links, to one folder"
        raise UserError(f"{folder}: more than {many}; take some out of the folder of pictures")
    for name, entry in _entries(folder, listing, ""):
        if entry.is_dir():
            yield from _walk(entry.path, listing, above | {real})
        elif not name.lower().endswith(pictures.SUFFIXES):
            listing.leave_out(f"names that do not end in {', '.join(pictures.SUFFIXES)}", entry.path)
        else:
            status = entry.stat()
            yield entry.path, (status.st_ino, status.st_size, status.st_mtime_ns)


def _entries(folder: str, listing: _Listing, reason: str, *, folders: bool = False) -> list[tuple[str, os.DirEntry[str]]]:
    """What is in a folder, but hidden files, in order of name; with `folders` those alone, the others being left out for `reason`."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: (unicodedata.normalize("NFC", entry.name), entry.name))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}; data.folder names the folder of pictures") from None
    kept = []
    for entry in entries:
        if entry.name.startswith("."):
            listing.leave_out("hidden", entry.path)
        elif folders and not entry.is_dir():
            listing.leave_out(reason, entry.path)
        else:
            kept.append((entry.name, entry))
    return kept


def _is_test(path: str, fraction: float) -> bool:
    """By the first 8 bytes of the SHA-256 of its content, so that a picture stays where it is whatever comes or goes beside it."""
    try:
        digest = hashlib.sha256(paths.read(Path(path))).digest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _pictures(files: list[File], shape: Shape) -> Iterator[np.ndarray | UserError]:
    """The pictures, in order, or why one cannot be read."""

    def one(file: File) -> np.ndarray | UserError:
        try:
            return pictures.read(io.BytesIO(paths.read(Path(file.path))), file.path, shape)
        except UserError as reason:
            return reason
        except OSError as error:
            return UserError(f"{file.path}: cannot be read: {error.strerror}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(files), _AT_ONCE):
            yield from pool.map(one, files[first : first + _AT_ONCE])
