"""The embedded data set: patterns drawn with integers only, so its bytes are the same everywhere. docs/data.md defines it.

How hard it is: a pattern's contrast is drawn from nothing upwards, so with the noise about one image in ten cannot be
told. SimpleCNN at lr 0.01 and batch 64 reaches about 90 % of the test images after 3 epochs, of 32 x 32 pixels and ten classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.data.dataset import Dataset, label_dtype, room
from pipeline.exact.arrays import forget
from pipeline.exact.draws import permutation, random_integers

PATTERNS: dict[str, Callable[..., np.ndarray]] = {
    "disc": lambda dx, dy, r, w, _: dx * dx + dy * dy <= r * r,
    "ring": lambda dx, dy, r, w, u: (dx * dx + dy * dy <= r * r) & (dx * dx + dy * dy > (r - 3 * u) * (r - 3 * u)),
    "square": lambda dx, dy, r, w, _: _far(dx, dy) < r,
    "frame": lambda dx, dy, r, w, u: (_far(dx, dy) < r) & (_far(dx, dy) >= r - 3 * u),
    "triangle": lambda dx, dy, r, w, _: (2 * abs(dx) <= dy + r) & (dy < r),
    "plus": lambda dx, dy, r, w, u: (np.minimum(abs(dx), abs(dy)) < 2 * u) & (_far(dx, dy) < r),
    "cross": lambda dx, dy, r, w, u: (abs(abs(dx) - abs(dy)) < 2 * u) & (_far(dx, dy) < r),
    "rows": lambda dx, dy, r, w, _: ((dy + r) // w % 2 == 0) & (_far(dx, dy) < r),
    "columns": lambda dx, dy, r, w, _: ((dx + r) // w % 2 == 0) & (_far(dx, dy) < r),
    "checks": lambda dx, dy, r, w, _: (((dx + r) // w + (dy + r) // w) % 2 == 0) & (_far(dx, dy) < r),
}
"""Class -> which pixels belong to it, given their distances from its middle, its radius, its stripes' width and the unit of lines."""


def _far(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    far: np.ndarray = np.maximum(abs(dx), abs(dy))
    return far


CLASSES = tuple(PATTERNS)
TRAIN, TEST = 10_000, 2_000
SIDE = 32
"""Of the images for which positions and sizes are given; those of others are in proportion, rounded down."""
NOISE_POOL = 2**20
"""Noise is cut from so many drawn numbers: drawing each pixel's own would take most of a second of hashing."""
NOISE = 96
"""A pixel's noise is drawn evenly from -NOISE to NOISE."""
BLOCK_PIXELS = 500 * SIDE * SIDE
"""Of the images drawn at once: what they need fits in the processor's cache."""
BARS = 10
"""Bits of a class's series, so many as 8192 classes need."""


def make(train: int = TRAIN, test: int = TEST, size: int = SIDE, channels: int = 3, classes: int = len(CLASSES)) -> Dataset:
    """The set: `train` and `test` images of `size` x `size` pixels, as many of each class; equal calls give equal sets.

    Class k has pattern k % 10; the bits of k // 10 are bars along the upper edge.
    """
    names = tuple(CLASSES[k % 10] + (f" {k // 10}" if k >= 10 else "") for k in range(classes))
    usual = (size, channels, classes) == (SIDE, 3, len(CLASSES))
    name = "synthetic" if usual else f"synthetic-{channels}x{size}x{size}-{classes}"
    return Dataset(name, names, *(one for split, count in (("train", train), ("test", test)) for one in _split(
        split, count, size, channels, classes)))  # fmt: skip


def _split(split: str, count: int, size: int, channels: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [count, channels, size, size] and labels [count]."""
    labels = (permutation(f"synthetic/{split}/labels", count) % classes).astype(label_dtype(classes))

    def drawn(what: str, low: int, high: int, per_image: int = 1) -> Any:
        """int16 [count, per_image], from `low` to `high`."""
        numbers = random_integers(f"synthetic/{split}/{what}", 2**20, count * per_image) * (high - low + 1) >> 20
        return (numbers + low).astype(np.int16).reshape(count, per_image)

    def length(what: str, low: int, high: int) -> Any:
        """int32 [count, 1], from `low` to `high` of SIDE, in proportion, at least 1."""
        return np.maximum(1, drawn(what, low, high).astype(np.int32) * size // SIDE)

    x, y, radius = length("x", 14, 17), length("y", 14, 17), length("radius", 8, 11)
    width, ground, contrast = length("width", 3, 4), drawn("ground", 0, 64, channels), drawn("contrast", 0, 240)
    start = random_integers(f"synthetic/{split}/noise", NOISE_POOL // 2, count)
    pool = (random_integers("synthetic/noise", 2**16, NOISE_POOL) * (2 * NOISE + 1) >> 16).astype(np.int16) - np.int16(NOISE)
    every = np.arange(channels * size * size)

    images = room(count, (channels, size, size))
    block = max(1, BLOCK_PIXELS // (size * size))
    for first in range(0, count, block):
        part = slice(first, first + block)
        inside = _inside(labels[part], size, x[part], y[part], radius[part], width[part])  # bool [B, size, size]
        noise = np.stack([_cut(pool, s, every) for s in start[part]]).reshape(-1, channels, size, size)
        pixels = ground[part, :, None, None] + inside[:, None] * contrast[part, :, None, None] + noise  # int16 [B, channels, size, size]
        images[part] = pixels.clip(0, 255)
        forget(images)
    return images, labels


def _cut(pool: np.ndarray, start: int, every: np.ndarray) -> np.ndarray:
    """As many numbers of the pool from `start` on as `every` counts; after its end from its beginning."""
    return pool[start : start + len(every)] if start + len(every) <= len(pool) else pool.take(every + start, mode="wrap")


def _inside(labels: np.ndarray, size: int, x: np.ndarray, y: np.ndarray, radius: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Which pixels belong to the pattern, as bool [B, size, size], for labels [B] and, each [B, 1], its place, size and stripes' width."""
    inside = np.zeros((len(labels), size, size), bool)
    axis: Any = np.arange(size, dtype=np.int16 if size <= 128 else np.int32)  # squares of distances fit
    x, y, radius, width = (lengths.astype(axis.dtype) for lengths in (x, y, radius, width))
    unit = np.full((), max(1, size // SIDE), axis.dtype)
    for label, pattern in enumerate(PATTERNS.values()):
        of = np.flatnonzero(labels % len(PATTERNS) == label)
        dx, dy = (axis - x[of])[:, None, :], (axis - y[of])[:, :, None]  # [n, 1, size] and [n, size, 1]
        inside[of] = pattern(dx, dy, radius[of, :, None], width[of, :, None], unit)
    series = labels.astype(np.int64) // len(PATTERNS)
    for bar in range(BARS):
        inside[series >> bar & 1 == 1, : max(1, size // 8), bar * size // BARS : (bar + 1) * size // BARS] = True
    return inside
