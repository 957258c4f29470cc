"""What a tape knows of a tensor: what it was made from, where its images lie, and which memory it shows."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


class Images(int):
    """The number of images in this worker's share, or a multiple of it, as a network reads it from a shape: known where it comes back."""

    times = 1

    def __mul__(self, other: Any) -> Any:
        """A multiple of it, which is known too."""
        if type(other) is not int:
            return int(self) * other
        product = Images(int(self) * other)
        product.times = self.times * other
        return product

    __rmul__ = __mul__


class Shape(tuple):  # type: ignore[type-arg]
    """A shape, with the one method of torch.Size that networks call."""

    __slots__ = ()

    def numel(self) -> int:
        """The number of elements."""
        product = 1
        for size in self:
            product *= size
        return product


class Memory:
    """One piece of memory that several tensors may show, and how often it was changed in place."""

    __slots__ = ("of_weight", "version")

    def __init__(self, of_weight: bool = False) -> None:
        self.of_weight, self.version = of_weight, 0


class Value:
    """What the tape knows of a tensor."""

    __slots__ = (
        "axis", "bytes", "elements", "gradient", "learns", "memory", "name", "of", "of_images", "part_of", "replaced", "rows", "spread",
        "token", "version",
    )  # fmt: skip

    def __init__(self, token: object, of_images: bool, learns: bool, memory: Memory, name: str = "") -> None:
        self.token, self.of_images, self.learns, self.memory, self.name = token, of_images, learns, memory, name
        self.version = memory.version
        self.bytes = False
        """Whether it is uint8 that stands for byte / 255: the images' own pixels, which have only been moved."""
        self.axis: int | None = 0
        """Which axis is the images', or the rows' of each image in turn; None where they are spread."""
        self.elements = 1
        """Numbers of one image: also where this worker has none."""
        self.rows = 1
        """Rows of the images' axis for each image, where this worker has none."""
        self.spread = False
        """Whether several of its numbers are one in memory, as `expand` leaves them."""
        self.replaced: Tensor | None = None
        """What an operation in place has made of the tensor."""
        self.part_of: tuple[Tensor, Any] | None = None
        """The tensor that it is a part of, and its index there."""
        self.gradient: Tensor | None = None
        self.of: Value | None = None
        """Whose gradient it is, where the tensor is a second name of another."""

    def add(self, gradient: Tensor) -> None:
        """Add to its gradient."""
        self.gradient = gradient if self.gradient is None else self.gradient + gradient


def row(x: Tensor, axis: int | None) -> int:
    """Numbers of one row of the images' axis of `x`."""
    return math.prod(size for i, size in enumerate(x.shape) if i != (axis or 0))
