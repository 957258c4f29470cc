"""Folders of pictures, as a user has them."""

from __future__ import annotations

from pathlib import Path

from pipeline.data import pictures
from pipeline.data.dataset import Dataset
from tests.settings import set_params


def write(folder: Path, dataset: Dataset) -> Path:
    """The set as PNGs in train/CLASS/ and test/CLASS/, numbered in its order."""
    for split in ("train", "test"):
        for index, (image, label) in enumerate(zip(getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels"), strict=True)):
            path = folder / split / dataset.classes[label] / f"{index:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pictures.png(image))
    return folder


def use(folder: Path, name: str, dataset: Dataset) -> None:
    """Have the params.yaml in `folder` name a folder with the pictures of this set, which is put there."""
    write(folder / name, dataset)
    set_params(folder, data={"source": "folder", "folder": name, "size": dataset.shape[1], "channels": dataset.shape[0]})
