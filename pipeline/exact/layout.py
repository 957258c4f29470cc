"""How tensors lie in memory. Between layers the batch is innermost, and every form keeps the order that it is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def order(x: Tensor) -> list[int]:
    """The axes of `x` as they lie in memory, the outermost first."""
    return sorted(range(x.dim()), key=x.stride, reverse=True)


def batch_innermost(x: Tensor) -> list[int]:
    """The same with the batch, axis 0, innermost: among axes of one stride, which those of one number may have, too."""
    return [*(axis for axis in order(x) if axis), 0]


def empty(sizes: Sequence[int], axes: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of these sizes whose axes lie in memory in this order, of the type and on the device of `like`, without values."""
    return like.new_empty([sizes[axis] for axis in axes]).permute([axes.index(axis) for axis in range(len(axes))])


def pad(x: Tensor, around: Sequence[int], value: float = 0.0) -> Tensor:
    """torch.nn.functional.pad by a constant, which would put the axes in their usual order."""
    if len(around) % 2 or len(around) > 2 * x.dim():
        return F.pad(x, list(around), value=value)  # which says what is wrong
    within = inside(x, around)
    after = [0] * (x.dim() - len(around) // 2) + [*around[1::2]][::-1]
    y = empty([part.stop + more for part, more in zip(within, after, strict=True)], order(x), x).fill_(value)
    y[within] = x
    return y


def inside(x: Tensor, around: Sequence[int]) -> tuple[slice, ...]:
    """Where `x` is in what `pad` makes of it."""
    before = [0] * (x.dim() - len(around) // 2) + [*around[::2]][::-1]
    return tuple(slice(first, first + size) for first, size in zip(before, x.shape, strict=True))


def cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """torch.cat, which would put the axes in their usual order."""
    first = tensors[0] if tensors else None
    if first is None or not -first.dim() <= dim < first.dim() or any(order(x) != order(first) for x in tensors):
        return torch.cat(list(tensors), dim)
    sizes = list(first.shape)
    sizes[dim] = sum(x.shape[dim] for x in tensors)
    return torch.cat(list(tensors), dim, out=empty(sizes, order(first), first))
