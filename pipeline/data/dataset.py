"""A data set as the stages hand it on: four tensors and two names in one device-neutral file."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from pipeline import schema, tensors
from pipeline.errors import UserError

DATASET = Path("data") / "dataset.safetensors"


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A data set without its images."""

    name: schema.Name
    digest: schema.Digest
    """The fingerprint of the images and labels."""
    classes: Annotated[tuple[schema.Phrase, ...], msgspec.Meta(min_length=1, max_length=256, description="a list of 1 to 256 names")]
    """In the order of the labels."""


@dataclass(frozen=True)
class Dataset:
    """Images and labels. Raises UserError when made from what is not such a set."""

    name: str
    classes: tuple[str, ...]
    train_images: np.ndarray  # uint8 [N, 3, 32, 32]
    train_labels: np.ndarray  # uint8 [N]
    test_images: np.ndarray  # uint8 [M, 3, 32, 32]
    test_labels: np.ndarray  # uint8 [M]

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, 32, 32):
                raise UserError(f"data set '{self.name}': {split} images are {images.dtype} {list(images.shape)}, not uint8 [N, 3, 32, 32]")
            if labels.dtype != np.uint8 or labels.shape != images.shape[:1] or not len(labels):
                raise UserError(
                    f"data set '{self.name}': {split} labels are {labels.dtype} {list(labels.shape)} "
                    f"for {len(images)} images; there must be one uint8 each, and at least one"
                )
            if labels.max() >= len(self.classes):
                raise UserError(f"data set '{self.name}': {split} label {labels.max()}, but there are {len(self.classes)} classes")

    @functools.cached_property
    def digest(self) -> str:
        """The fingerprint of images and labels: what a run's identity records, wherever they came from."""
        return tensors.fingerprint(self.tensors())

    @property
    def description(self) -> Description:
        """What a model that was trained on this set says of it."""
        return Description(name=self.name, digest=self.digest, classes=self.classes)

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


def load(path: Path = DATASET) -> Dataset:
    """Read a set that `Dataset.save` wrote. Raises UserError when it is missing or damaged."""
    try:
        content, metadata = tensors.read(path)
        described = json.loads(metadata["dataset"])
        return Dataset(
            described["name"],
            tuple(described["classes"]),
            *(content[name] for name in ("train_images", "train_labels", "test_images", "test_labels")),
        )
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `python -m pipeline download`, or `dvc repro`, first") from None
    except (tensors.Damaged, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); run `python -m pipeline download` again") from None
