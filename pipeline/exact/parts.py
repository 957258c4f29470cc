"""Exact forms of joins, of parts by number, slice or index, and of assignments to a part: nothing rounds but repeated reads of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.exact import arithmetic, grid, hardware, layout
from pipeline.exact.arguments import leaves
from pipeline.exact.errors import refusal
from pipeline.exact.sums import Sums
from pipeline.exact.tape import Gradient, Tape


def joined(tape: Tape, tensors: Sequence[Tensor], dim: int = 0, axis: int | None = None) -> Tensor:
    """The exact form of torch.cat."""
    dim = dim if axis is None else axis
    tensors = [arithmetic.floats(tape, x, "cat", whole=True) for x in tensors]
    y = layout.cat(tensors, dim)
    for x in tensors:
        tape.check_within_images(x, (dim,), "cat")
    _check_of_images(tape, tensors, "cat")
    return tape.record(y, tensors, lambda g: list(g.split([x.shape[dim] for x in tensors], dim)))


def stack(tape: Tape, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The exact form of torch.stack."""
    tensors = [arithmetic.floats(tape, x, "stack", whole=True) for x in tensors]
    y = torch.stack(list(tensors), dim)
    _check_of_images(tape, tensors, "stack")
    axis = next((axis for x in tensors if (axis := tape.axis(x)) is not None), None)
    if axis is not None and axis >= dim % y.dim():
        axis += 1
    return tape.lay(tape.record(y, tensors, lambda g: list(g.unbind(dim))), axis)


def _check_of_images(tape: Tape, tensors: Sequence[Tensor], what: str) -> None:
    """Raise Unsupported where some of the tensors are made from the images, and others are not: those have no part for each image."""
    tape.check_alike(what, *tensors)
    if tape.of_images(*tensors) and not all(map(tape.of_images, tensors)):
        raise refusal(f"{what} of what is made from the images and what is not", "what is spread over them, as by expand(x.shape[0], ...)")


def _slices(tape: Tape, x: Tensor, dim: int, parts: Sequence[int], what: str) -> tuple[Tensor, ...]:
    x = tape.input(x, what)
    dim %= x.dim()
    if sum(parts) != x.shape[dim]:
        raise RuntimeError(f"{what}: {list(parts)} do not add up to {x.shape[dim]}")
    starts = [sum(parts[:i]) for i in range(len(parts))]
    return tuple(get(tape, x, (slice(None),) * dim + (slice(start, start + size),)) for start, size in zip(starts, parts, strict=True))


def chunk(tape: Tape, x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """The exact form of torch.chunk."""
    if chunks < 1:
        raise RuntimeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    return split(tape, x, -(-x.shape[dim] // chunks) or [0] * chunks, dim)


def split(tape: Tape, x: Tensor, split_size: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """The exact form of torch.split."""
    n = x.shape[dim]
    parts = [min(split_size, n - start) for start in range(0, n, split_size)] if isinstance(split_size, int) else list(split_size)
    return _slices(tape, x, dim, parts, "split")


def unbind(tape: Tape, x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The exact form of torch.unbind."""
    dim %= x.dim()
    return tuple(get(tape, x, (slice(None),) * dim + (i,)) for i in range(x.shape[dim]))


def select(tape: Tape, x: Tensor, dim: int, index: int) -> Tensor:
    """The exact form of Tensor.select."""
    return get(tape, x, (slice(None),) * (dim % x.dim()) + (index,))


def narrow(tape: Tape, x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """The exact form of Tensor.narrow."""
    size = x.shape[dim]
    start += size if start < 0 else 0
    if length < 0 or not 0 <= start <= size - length:
        raise RuntimeError(f"narrow: start ({start}) + length ({length}) exceeds dimension size ({size})")
    return get(tape, x, (slice(None),) * (dim % x.dim()) + (slice(start, start + length),))


def get(tape: Tape, x: Tensor, index: Any) -> Tensor:
    """The exact form of x[index]: by numbers and slices, or of a weight or constant by a constant tensor of integers."""
    x = tape.input(x, "indexing")
    index = _newest(tape, index)
    parts = _parts(index, "indexing")
    if tape.value(x) is None:
        if tape.of_images(*(part for part in parts if isinstance(part, Tensor))):
            raise refusal("indexing of a constant by what was made from the images", "numbers, slices, and constants")
        return x[index]
    if any(isinstance(part, Tensor | list) for part in parts):
        if tape.of_images(x) or len(parts) != 1 or not isinstance(index, Tensor) or index.dtype != torch.int64:
            raise refusal("indexing of an activation by a tensor", "numbers and slices")
        return tape.record(x[index], (x,), lambda g: (Gathered(x, index, g),))
    y = x[index]

    def backward(g: Tensor) -> tuple[Tensor]:
        d_x = torch.zeros_like(x)
        d_x[index] = g
        return (d_x,)

    tape.lay(tape.record(y, (x,), backward, shares=x), _axis_of_part(tape, x, parts))
    tape.show(y, x, index)
    return y


def _newest(tape: Tape, index: Any) -> Any:
    """An index with what operations in place have made of its tensors."""
    if isinstance(index, tuple):
        return tuple(_newest(tape, part) for part in index)
    return tape.input(index, "an index") if isinstance(index, Tensor) else index


def _parts(index: Any, what: str) -> tuple[Any, ...]:
    """An index as its parts. Raises Unsupported for what PyTorch takes for a tensor: true and false, which add an axis, and sequences."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, bool) for part in parts):
        raise refusal(f"{what} by True or False", "numbers and slices")
    for part in parts:
        if not (part is None or part is Ellipsis or isinstance(part, int | slice | Tensor | list)):
            raise refusal(f"{what} by {type(part).__name__}", "numbers and slices")
        within = () if isinstance(part, Tensor) else leaves(part)
        if any(isinstance(each, Tensor) for each in within):  # which no check of a part would see
            raise refusal(f"{what} by a list or slice of tensors", "numbers, slices, and tensors")
    return parts


def _axis_of_part(tape: Tape, x: Tensor, parts: tuple[Any, ...]) -> int | None:
    """The images' axis of x[parts]. Raises Unsupported where that takes some of the images only."""
    if not tape.of_images(x):
        return None
    if (axis := tape.axis(x)) is None:
        raise refusal("indexing where the images are spread", "the axes of an image")
    used = x.dim() - sum(part is not None and part is not Ellipsis for part in parts)
    whole = [each for part in parts for each in ([slice(None)] * used if part is Ellipsis else [part])]
    after = place = 0
    for part in whole:
        if part is not None and place == axis:
            if part != slice(None):
                raise refusal("indexing over the images", "the axes of an image")
            return after
        place += part is not None
        after += not isinstance(part, int)
    return after + axis - place


class Gathered(Sums):
    """The gradient of a weight that was read by index, some entries several times: exact sums on one grid."""

    def __init__(self, weight: Tensor, index: Tensor, g: Tensor) -> None:
        self.shape, self.index, self.g, self.fit_float64 = weight.shape, index.flatten(), g, True
        self.magnitudes = grid.magnitude(g).view(1)

    def integers(self, scales: Tensor) -> Tensor:
        """The sums, of the weight's shape."""
        sums = self.g.new_zeros(self.shape, dtype=torch.float64)
        return sums.index_add_(0, self.index, grid.place(self.g, scales).double().reshape(-1, *self.shape[1:]))

    def round(self, sums: Tensor, units: Tensor) -> list[Tensor]:
        """The gradient."""
        return [sums.float().mul_(units)]


def put(tape: Tape, x: Tensor, index: Any, value: Any) -> Tensor:
    """X with `value` at `index`: what x[index] = value makes of it."""
    x = arithmetic.of_any_type(tape, x, "assignment to a part")
    given = arithmetic.of_any_type(tape, value, "assignment to a part") if isinstance(value, Tensor) else None
    index = _newest(tape, index)
    if given is not None and given.dtype.is_floating_point > x.dtype.is_floating_point:
        raise refusal(f"assignment of {given.dtype} to a part of {x.dtype}", "one type for both")
    _check_part(tape, x, index, value if given is None else given)
    check_once(x, index, value)
    y = x.clone()
    y[index] = value if given is None else given

    def backward(g: Tensor) -> list[Gradient]:
        rest = g.clone()
        rest[index] = 0
        return [rest] if given is None else [rest, arithmetic.spread(tape, y, given, g[index])]

    return tape.record(y, (x,) if given is None else (x, given), backward)


def check_once(x: Tensor, index: Any, value: Any) -> None:
    """Raise Unsupported if x[index] = value puts several numbers to one place: which of them is last depends on threads."""
    parts = index if isinstance(index, tuple) else (index,)
    plain = all(each is None or each is Ellipsis or isinstance(each, slice) or type(each) is int for each in parts)
    if not plain and isinstance(value, Tensor) and value.numel() > 1 and hardware.can_look_at(x):
        marks = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
        marks[index] = 1
        if int(marks.count_nonzero()) != marks[index].numel():
            raise refusal("assignment of several numbers to one place", "each place once")


def _check_part(tape: Tape, x: Tensor, index: Any, value: Any) -> None:
    """Raise Unsupported if what is put to a part of `x`, which is made from the images, differs from one place in the batch to another."""
    parts = _parts(index, "assignment")
    if not tape.of_images(x):
        if tape.of_images(*(part for part in (*parts, value) if isinstance(part, Tensor))):
            raise refusal(
                "assignment of what is made from the images to what is not", "what is spread over them, as by zeros(x.shape[0], ...)"
            )
        return
    if any(isinstance(part, Tensor | list) for part in parts):  # a mask
        if len(parts) > 1 or not isinstance(index, Tensor) or not tape.of_images(index) or index.dtype != torch.bool:
            raise refusal("assignment by a tensor that is not made from the images", "numbers and slices")
        if tape.axis(index) is None or tape.axis(index) != tape.axis(x):
            raise refusal("assignment by a mask whose images are along another axis", "one axis for both")
        if isinstance(value, Tensor) and (value.numel() > 1 or tape.of_images(value)):
            raise refusal("assignment of several numbers by a tensor", "one number, or torch.where")
        return
    part = x[index]
    tape.alike(part, _axis_of_part(tape, x, parts), x)
    tape.check_alike("assignment to a part", part, value)
