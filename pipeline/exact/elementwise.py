"""Exact forms of ReLU, addition and changes of shape: comparisons, one rounding, and none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import index
from typing import SupportsIndex

import torch
from torch import Tensor

from pipeline.exact.errors import refusal
from pipeline.exact.later import Later
from pipeline.exact.tape import Tape


def relu(tape: Tape, x: Tensor, inplace: bool = False) -> Tensor:
    """The exact form of torch.relu. Raises Unsupported for bytes."""
    source = tape.input(x, "relu")
    if source.dtype != torch.float32:
        raise refusal(f"relu of {source.dtype}", "float32")
    later = Rectified(source)
    y = tape.record(later.placeholder(), (source,), later.backward)
    return tape.change(x, y) if inplace else y


def relu_(tape: Tape, x: Tensor) -> Tensor:
    """The exact form of torch.relu_."""
    return relu(tape, x, inplace=True)


class Rectified(Later):
    """The output of a ReLU, computed when it is first used. Max-pooling takes its input: maxima and ReLU may change places."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.rectified_gradient: Tensor | None = None
        """That which max-pooling gives, 0 already where the output is."""

    def compute(self) -> Tensor:
        """The output."""
        return torch.relu(self.source)

    def backward(self, g: Tensor) -> tuple[Tensor]:
        """The gradient where the output is positive, else 0."""
        return (g if g is self.rectified_gradient else rectified(g, self.source),)


def rectified(g: Tensor, x: Tensor) -> Tensor:
    """The gradient `g` where ReLU's input or output `x` is positive, else 0."""
    result: Tensor = torch.ops.aten.threshold_backward.default(g, x, 0)
    return result


def add(tape: Tape, x: Tensor, other: Tensor, *, alpha: float = 1) -> Tensor:
    """The exact form of x + other: one float32 rounding. Raises Unsupported for unlike shapes, other types and a factor."""
    if not isinstance(other, Tensor) or not isinstance(x, Tensor) or x.shape != other.shape or alpha != 1:
        raise refusal("addition of unlike shapes, of numbers or with a factor", "that of two tensors of one shape")
    x, other = tape.input(x, "addition"), tape.input(other, "addition")
    for each in (x, other):
        if each.dtype != torch.float32:
            raise refusal(f"addition of {each.dtype}", "float32")
    return tape.record(x + other, (x, other), lambda g: (g, g))


def add_(tape: Tape, x: Tensor, other: Tensor, *, alpha: float = 1) -> Tensor:
    """The exact form of x += other."""
    return tape.change(x, add(tape, x, other, alpha=alpha))


def reshape(tape: Tape, x: Tensor, *shape: int | Iterable[int] | torch.dtype) -> Tensor:
    """The exact form of Tensor.reshape and Tensor.view. Raises Unsupported for a view as another type."""
    x = tape.input(x, "a change of shape")
    sizes: list[int] = []
    for part in shape:
        if isinstance(part, torch.dtype):
            raise refusal("a view as another type", "changes of shape")
        sizes += [index(part)] if isinstance(part, SupportsIndex) else map(index, part)
    if -1 in sizes:
        at, of_image = sizes.index(-1), x.shape[1:].numel()
        # of no images, an axis other than the first has the size that it has of one
        sizes[at] = x.numel() // -math.prod(sizes) if x.numel() else of_image // max(1, -math.prod(sizes[1:])) if at else 0
    return _reshaped(tape, x, sizes)


def flatten(tape: Tape, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The exact form of torch.flatten."""
    x = tape.input(x, "flatten")
    first, last = (dim + x.dim() if dim < 0 else dim for dim in (start_dim, end_dim))
    if not 0 <= first <= last < x.dim():
        raise refusal(f"flatten from dimension {start_dim} to {end_dim} of {x.dim()}")
    return _reshaped(tape, x, [*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]])


def contiguous(tape: Tape, x: Tensor) -> Tensor:
    """The exact form of Tensor.contiguous: x itself, since exact forms lay tensors out in memory as they like."""
    return x


def _reshaped(tape: Tape, x: Tensor, sizes: list[int]) -> Tensor:
    if sizes == list(x.shape):
        return x
    of_image, of_row = tape.rows(x) * x.shape[1:].numel(), math.prod(sizes[1:])
    if not sizes or not of_row or of_image % of_row:
        raise refusal(
            f"a change of shape from {list(x.shape)} to {sizes}, which mixes images", "one that keeps each image's values together"
        )
    return tape.view(_in_shape(x, sizes), x, of_image // of_row, lambda g: (_in_shape(g, list(x.shape)),))


def _in_shape(x: Tensor, sizes: list[int]) -> Tensor:
    if x.stride(0) == 1 and sizes[:1] == [x.shape[0]]:  # the batch is innermost in memory, and stays there
        return x.movedim(0, -1).reshape(*sizes[1:], x.shape[0]).movedim(-1, 0)
    return x.reshape(sizes)
