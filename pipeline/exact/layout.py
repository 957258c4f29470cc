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
    axes = range(x.dim())
    before, after = ([around[2 * (x.dim() - 1 - i) + side] if 2 * (x.dim() - 1 - i) < len(around) else 0 for i in axes] for side in (0, 1))
    y = empty([before[i] + x.shape[i] + after[i] for i in axes], order(x), x).fill_(value)
    y[tuple(slice(before[i], before[i] + x.shape[i]) for i in axes)] = x
    return y


def cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """torch.cat, which would put the axes in their usual order."""
    first = tensors[0] if tensors else None
    if first is None or not -first.dim() <= dim < first.dim() or any(order(x) != order(first) for x in tensors):
        return torch.cat(list(tensors), dim)
    sizes = list(first.shape)
    sizes[dim] = sum(x.shape[dim] for x in tensors)
    return torch.cat(list(tensors), dim, out=empty(sizes, order(first), first))
