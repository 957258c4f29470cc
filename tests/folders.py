"""Folders of pictures, as a user has them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data import pictures
from pipeline.data.dataset import Dataset
from tests.settings import set_params

ENCODINGS = ("PNG", "JPEG", "JPEG progressive", "WEBP", "WEBP lossless", "GIF", "BMP")


def encoded(name: str) -> bytes:
    """A picture of 80 x 80 in one of ENCODINGS."""
    draw = np.random.default_rng(0)
    image = Image.fromarray(np.kron(draw.integers(0, 256, (20, 20, 3)), np.ones((4, 4, 1))).astype(np.uint8))
    file = io.BytesIO()
    image = image.convert("P") if name == "GIF" else image
    image.save(file, name.split()[0], **{word: True for word in name.split()[1:]})
    return file.getvalue()


def odd_photos(folder: Path) -> Path:
    """Three classes of pictures of 40 odd sizes, some turned, with palettes and with alpha, in train/ and test/, which has each kind."""
    draw = np.random.default_rng(0)
    for number in range(40):
        width, height = 7 + number, 60 - number
        image = Image.fromarray(draw.integers(0, 256, (height, width, 4), np.uint8))
        suffix = ("png", "jpg", "webp", "gif", "bmp", "JPEG", "PNG")[number % 7]
        if suffix in ("gif", "PNG"):
            image = image.quantize()  # its palette has alpha
        elif suffix not in ("png", "webp"):
            image = image.convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        path = folder / ("test" if number % 5 == 0 else "train") / "abc"[number % 3] / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **({"exif": exif} if suffix in ("jpg", "JPEG") else {}))
    return folder


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
