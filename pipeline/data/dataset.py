"""A data set as the stages hand it on: four tensors and two names in one device-neutral file."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from pipeline.system import paths, schema, tensors
from pipeline.system.errors import UserError, shown

DATASET = Path("data") / "dataset.safetensors"
FEWEST_CLASSES, MOST_CLASSES = 2, 8192
LONGEST_NAME = 100
"""Characters in the name of a class."""

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""
TUTORIAL: Shape = (3, 32, 32)
_Channels = Annotated[int, msgspec.Meta(ge=1, le=3, description="a whole number from 1 to 3")]
_Side = Annotated[int, msgspec.Meta(ge=1, le=4096, description="a whole number from 1 to 4096")]


Classes = Annotated[tuple[schema.Phrase, ...], msgspec.Meta(min_length=1, max_length=8192, description="a list of 1 to 8192 names")]


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A data set without its images."""

    name: schema.Name
    digest: schema.Digest
    """The fingerprint of the images and labels."""
    classes: Classes
    """In the order of the labels."""
    shape: tuple[_Channels, _Side, _Side] = TUTORIAL
    """Of each image; not written where it is the tutorial's, so that runs made before there were others keep their digests."""


class _Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in a data set's file beside the tensors; their bounds are a Description's."""

    name: schema.Name
    classes: Classes


@dataclass(frozen=True)
class Dataset:
    """Images and labels. Raises UserError when made from what is not such a set."""

    name: str
    classes: tuple[str, ...]
    train_images: np.ndarray  # uint8 [N, C, H, W], C being 1 or 3, H and W equal
    train_labels: np.ndarray  # uint8, or int16 for more than 256 classes, [N]
    test_images: np.ndarray  # uint8 [M, C, H, W]
    test_labels: np.ndarray  # as train_labels, [M]

    def __post_init__(self) -> None:
        _check_classes(self.name, self.classes)
        dtype = label_dtype(len(self.classes))
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
                raise UserError(
                    f"data set '{self.name}': {split} images are {images.dtype} {list(images.shape)}, "
                    "not uint8 [N, C, S, S] with 1 or 3 channels"
                )
            if images.shape[1:] != self.shape:
                raise UserError(f"data set '{self.name}': {split} images are {list(images.shape[1:])}, the others {list(self.shape)}")
            if labels.dtype != dtype or labels.shape != images.shape[:1] or not len(labels):
                raise UserError(
                    f"data set '{self.name}': {split} labels are {labels.dtype} {list(labels.shape)} "
                    f"for {len(images)} images; there must be one {dtype} each, and at least one"
                )
            if labels.min() < 0 or labels.max() >= len(self.classes):
                wrong = labels.min() if labels.min() < 0 else labels.max()
                raise UserError(f"data set '{self.name}': {split} label {wrong}, but there are {len(self.classes)} classes")

    @property
    def shape(self) -> Shape:
        """Channels, height and width of each image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @functools.cached_property
    def digest(self) -> str:
        """The fingerprint of images and labels: what a run's identity records, wherever they came from."""
        return tensors.fingerprint(self.tensors())

    @property
    def description(self) -> Description:
        """What a model that was trained on this set says of it."""
        return Description(name=self.name, digest=self.digest, classes=self.classes, shape=self.shape)

    def tensors(self) -> dict[str, np.ndarray]:
        """The four arrays by name."""
        return {
            "train_images": self.train_images,
            "train_labels": self.train_labels,
            "test_images": self.test_images,
            "test_labels": self.test_labels,
        }

    def save(self, path: Path = DATASET) -> None:
        """Write the set, durably."""
        tensors.write(path, self.tensors(), ("dataset", json.dumps({"name": self.name, "classes": self.classes})))


def check_described(data: Dataset, where: str, wanted: Description, run: Path) -> None:
    """Raise UserError where a run of these images and labels, which are in `where`, calls the classes otherwise, or says another shape."""
    if data.classes != wanted.classes:
        raise UserError(
            f"{run} calls the classes {', '.join(wanted.classes)!r:.200}, but {where}, with the same images and labels, "
            f"{', '.join(data.classes)!r:.200}; use the data set with the run's names, if the run was not changed by hand"
        )
    if data.shape != wanted.shape:
        raise UserError(f"{run}: images of {list(wanted.shape)}, but those with its digest are of {list(data.shape)}; changed by hand")


def label_dtype(classes: int) -> np.dtype:
    """The type of labels, which the digest of a data set depends on: the smallest that holds them."""
    return np.dtype(np.uint8 if classes <= 256 else np.int16)


def room(count: int, shape: Sequence[int]) -> np.ndarray:
    """uint8 [count, *shape] to be filled; what is larger than `paths.LARGEST_BYTES` stands in a file that has no name, not in memory."""
    whole = (count, *shape)
    if count * int(np.prod(shape)) <= paths.LARGEST_BYTES:
        return np.empty(whole, np.uint8)
    with tempfile.TemporaryFile(dir=".") as file:
        return np.memmap(file, np.uint8, "w+", shape=whole)


def _check_classes(name: str, classes: tuple[str, ...]) -> None:
    if not FEWEST_CLASSES <= len(classes) <= MOST_CLASSES:
        raise UserError(f"data set '{name}' has {len(classes)} classes; allowed: {FEWEST_CLASSES} to {MOST_CLASSES}")
    for index, one in enumerate(classes):
        if not isinstance(one, str) or not one.isprintable() or not 0 < len(one) <= LONGEST_NAME:
            raise UserError(f"data set '{name}': class {index} is called {shown(one)}; allowed: 1 to {LONGEST_NAME} printable characters")
    if len(set(classes)) != len(classes):
        twice = next(one for one in classes if classes.count(one) > 1)
        raise UserError(f"data set '{name}': two classes are called {shown(twice)}; each needs a name of its own")


def load(path: Path = DATASET) -> Dataset:
    """Read a set that `Dataset.save` wrote; images of more than `paths.LARGEST_BYTES` stay in the file, which is mapped.

    Raises:
        UserError: it is missing or damaged, or cannot be read.
    """
    try:
        content, metadata = tensors.read(path, mapped=True)
        described = schema.decode(_Named, metadata["dataset"].encode(), str(path))
        return Dataset(
            described.name,
            described.classes,
            *(content[name] for name in ("train_images", "train_labels", "test_images", "test_labels")),
        )
    except FileNotFoundError:
        raise UserError(f"{path}: not found; {_remedy(path)}") from None
    except tensors.Unreadable as error:
        raise UserError(f"{path}: {error}") from None
    except (tensors.Damaged, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); {_remedy(path)}") from None


def state(path: Path) -> tuple[int, ...] | None:
    """What no writer of a file can put back, where it is mapped (`load`), and shows what is written into it; None of any other."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns) if status.st_size > paths.LARGEST_BYTES else None
    return None


def _remedy(path: Path) -> str:
    if path == DATASET:
        return "run `python -m pipeline download`, or `dvc repro`, which makes it"
    return f"name a file that `python -m pipeline download` made, as {DATASET} is"
