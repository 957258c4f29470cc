"""The embedded data set: ten patterns, drawn with integers only, so its bytes are the same everywhere.

How hard it is: a pattern's contrast is drawn from nothing upwards, so with the noise about one image in ten cannot be
told. SimpleCNN at lr 0.01 and batch 64 reaches about 90 % of the test images after 3 epochs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.exact.draws import permutation, random_integers

PATTERNS: dict[str, Callable[..., np.ndarray]] = {
    "disc": lambda dx, dy, r, w: dx * dx + dy * dy <= r * r,
    "ring": lambda dx, dy, r, w: (dx * dx + dy * dy <= r * r) & (dx * dx + dy * dy > (r - 3) * (r - 3)),
    "square": lambda dx, dy, r, w: _far(dx, dy) < r,
    "frame": lambda dx, dy, r, w: (_far(dx, dy) < r) & (_far(dx, dy) >= r - 3),
    "triangle": lambda dx, dy, r, w: (2 * abs(dx) <= dy + r) & (dy < r),
    "plus": lambda dx, dy, r, w: (np.minimum(abs(dx), abs(dy)) < 2) & (_far(dx, dy) < r),
    "cross": lambda dx, dy, r, w: (abs(abs(dx) - abs(dy)) < 2) & (_far(dx, dy) < r),
    "rows": lambda dx, dy, r, w: ((dy + r) // w % 2 == 0) & (_far(dx, dy) < r),
    "columns": lambda dx, dy, r, w: ((dx + r) // w % 2 == 0) & (_far(dx, dy) < r),
    "checks": lambda dx, dy, r, w: (((dx + r) // w + (dy + r) // w) % 2 == 0) & (_far(dx, dy) < r),
}
"""Class -> which pixels belong to it, given their distances from its middle, its radius and its stripes' width."""


def _far(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    far: np.ndarray = np.maximum(abs(dx), abs(dy))
    return far


CLASSES = tuple(PATTERNS)
TRAIN, TEST = 10_000, 2_000
SIDE = 32
NOISE_POOL = 2**20
"""Noise is cut from so many drawn numbers: drawing each pixel's own would take most of a second of hashing."""
NOISE = 96
"""A pixel's noise is drawn evenly from -NOISE to NOISE."""
BLOCK = 500
"""Images drawn at once: what they need fits in the processor's cache."""


def make(train: int = TRAIN, test: int = TEST) -> Dataset:
    """The set: `train` and `test` images of 32 x 32 pixels, as many of each class; every call with the same numbers gives the same."""
    return Dataset("synthetic", CLASSES, *_split("train", train), *_split("test", test))


def _split(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [count, 3, 32, 32] and labels [count]."""
    labels = (permutation(f"synthetic/{split}/labels", count) % len(CLASSES)).astype(np.uint8)

    def drawn(what: str, low: int, high: int, per_image: int = 1) -> np.ndarray:
        """int16 [count, per_image], from `low` to `high`."""
        numbers = random_integers(f"synthetic/{split}/{what}", 2**20, count * per_image) * (high - low + 1) >> 20
        return (numbers + low).astype(np.int16).reshape(count, per_image)

    x, y, radius = drawn("x", 14, 17), drawn("y", 14, 17), drawn("radius", 8, 11)
    width, ground, contrast = drawn("width", 3, 4), drawn("ground", 0, 64, 3), drawn("contrast", 0, 240)
    start = random_integers(f"synthetic/{split}/noise", NOISE_POOL // 2, count)
    pool = (random_integers("synthetic/noise", 2**16, NOISE_POOL) * (2 * NOISE + 1) >> 16).astype(np.int16) - np.int16(NOISE)

    images = np.empty((count, 3, SIDE, SIDE), np.uint8)
    for first in range(0, count, BLOCK):
        part = slice(first, first + BLOCK)
        inside = _inside(labels[part], x[part], y[part], radius[part], width[part])  # bool [B, 32, 32]
        noise = np.stack([pool[s : s + 3 * SIDE * SIDE] for s in start[part]]).reshape(-1, 3, SIDE, SIDE)
        pixels = ground[part, :, None, None] + inside[:, None] * contrast[part, :, None, None] + noise  # int16 [B, 3, 32, 32]
        images[part] = pixels.clip(0, 255)
    return images, labels


def _inside(labels: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Which pixels belong to the pattern, as bool [B, 32, 32], for labels [B] and, each [B, 1], its place, size and stripes' width."""
    inside = np.zeros((len(labels), SIDE, SIDE), bool)
    axis = np.arange(SIDE, dtype=np.int16)
    for label, pattern in enumerate(PATTERNS.values()):
        of = np.flatnonzero(labels == label)
        dx, dy = (axis - x[of])[:, None, :], (axis - y[of])[:, :, None]  # [n, 1, 32] and [n, 32, 1]
        inside[of] = pattern(dx, dy, radius[of, :, None], width[of, :, None])
    return inside
