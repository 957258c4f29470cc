"""How tensors lie in memory. Between layers the batch is innermost, and every form keeps the order that it is given."""

from __future__ import annotations

from collections.abc import Sequence

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
