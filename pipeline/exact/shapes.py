"""Exact forms of what only moves values: nothing rounds, and the gradient goes where the values came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.exact import arithmetic, grid
from pipeline.exact.arguments import sizes
from pipeline.exact.arithmetic import SpreadWeight
from pipeline.exact.errors import refusal
from pipeline.exact.tape import Gradient, Sums, Tape
from pipeline.exact.trees import tree


def _moved(name: str, move: Callable[..., Tensor], back: Callable[..., Tensor]) -> Any:
    """A form of one tensor that only moves values: `move(x, ...)`, and `back(g, x, ...)` from the gradient to x's shape."""

    def form(tape: Tape, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        x = tape.input(x, name)
        y = move(x, *arguments, **named)
        if y is x:
            return x
        axis = None if (before := tape.axis(x)) is None else _followed(before, x, lambda x: move(x, *arguments, **named))
        return tape.record(y, (x,), lambda g: (back(g, x, *arguments, **named),), shares=x, axis=axis)

    form.__doc__ = f"The exact form of {name}."
    return form


def _followed(axis: int, x: Tensor, move: Callable[[Tensor], Tensor]) -> int:
    """Where `move`, which only changes the order of axes, takes an axis of x: tried on a tensor whose sizes tell."""
    sizes = [1] * x.dim()
    sizes[axis] = 2
    moved = list(move(torch.empty(sizes, device="meta")).shape)
    return moved.index(2)


def _in_shape(x: Tensor, shape: list[int]) -> Tensor:
    if x.dim() and x.stride(0) == 1 and x.shape[0] > 1 and shape[:1] == [x.shape[0]]:  # the batch is innermost in memory, and stays there
        return x.movedim(0, -1).reshape(*shape[1:], x.shape[0]).movedim(-1, 0)
    return x.reshape(shape)


def reshape(tape: Tape, x: Tensor, *given: Any, shape: Any = None) -> Tensor:
    """The exact form of Tensor.reshape and Tensor.view. Raises Unsupported for a view as another type."""
    x = tape.input(x, "a change of shape")
    if any(isinstance(part, torch.dtype) for part in given):
        raise refusal("a view as another type", "changes of shape")
    wanted = sizes(given if shape is None else (shape,))
    if -1 in wanted:
        known = -math.prod(wanted)
        if x.numel() and (known < 1 or x.numel() % known):
            raise RuntimeError(f"shape {wanted} is invalid for input of size {list(x.shape)}")
        wanted[wanted.index(-1)] = x.numel() // known if x.numel() else _rows_of_none(tape, x, wanted)
    return _reshaped(tape, x, wanted)


def _rows_of_none(tape: Tape, x: Tensor, wanted: Sequence[int]) -> int:
    """What -1 stands for in a reshape of no images: what it would be of one; 0 for the images' own axis."""
    return 0 if wanted[0] == -1 else tape.elements(x) // max(1, -math.prod(size for size in wanted if size))


def _reshaped(tape: Tape, x: Tensor, wanted: list[int]) -> Tensor:
    if math.prod(wanted) != x.numel():
        raise RuntimeError(f"shape {wanted} is invalid for input of size {list(x.shape)}")
    if wanted == list(x.shape):
        return x
    axis = tape.axis(x)
    if axis == 0 and tape.elements(x) % max(1, math.prod(wanted[1:])):
        raise refusal(
            f"a change of shape from {list(x.shape)} to {wanted}, which mixes images", "one that keeps an image's values together"
        )
    if axis and (len(wanted) <= axis or wanted[:axis] != list(x.shape[:axis])):
        axis = None
    return tape.record(_in_shape(x, wanted), (x,), lambda g: (_in_shape(g, list(x.shape)),), shares=x, axis=axis)


def flatten(tape: Tape, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The exact form of torch.flatten."""
    x = tape.input(x, "flatten")
    first, last = (dim + x.dim() if dim < 0 else dim for dim in (start_dim, end_dim))
    if not 0 <= first <= last < x.dim():
        raise refusal(f"flatten from dimension {start_dim} to {end_dim} of {x.dim()}")
    return _reshaped(tape, x, [*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]])


def unflatten(tape: Tape, x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """The exact form of Tensor.unflatten."""
    x = tape.input(x, "unflatten")
    dim %= x.dim()
    wanted = list(sizes)
    if -1 in wanted:
        wanted[wanted.index(-1)] = x.shape[dim] // -math.prod(wanted)
    return _reshaped(tape, x, [*x.shape[:dim], *wanted, *x.shape[dim + 1 :]])


def contiguous(tape: Tape, x: Tensor, memory_format: Any = None) -> Tensor:
    """The exact form of Tensor.contiguous: x itself, since exact forms lay tensors out in memory as they like."""
    return tape.input(x, "contiguous")


def to(tape: Tape, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """The exact form of Tensor.to, .float and .type for what stays where and as it is. Raises Unsupported for another type or device."""
    x = tape.input(x, "to")
    for given in (*arguments, *named.values()):
        if isinstance(given, torch.dtype) and given != torch.float32 and tape.value(x) is not None:
            raise refusal(f"a conversion to {given}", "float32")
    if tape.value(x) is None:
        return x.to(*arguments, **named)
    return arithmetic.floats(tape, x, "a conversion")


def float32(tape: Tape, x: Tensor) -> Tensor:
    """The exact form of Tensor.float."""
    return to(tape, x, torch.float32)


def clone(tape: Tape, x: Tensor, memory_format: Any = None) -> Tensor:
    """The exact form of Tensor.clone."""
    x = tape.input(x, "clone")
    return tape.record(x.clone(), (x,), lambda g: (g,))


def detach(tape: Tape, x: Tensor) -> Tensor:
    """The exact form of Tensor.detach: no gradient goes back."""
    x = tape.input(x, "detach")
    return tape.record(x.detach().clone(), (x,), lambda g: (None,))


def _inverse(order: Sequence[int], dims: int) -> list[int]:
    back = [0] * dims
    for place, dim in enumerate(order):
        back[dim % dims] = place
    return back


def permute(tape: Tape, x: Tensor, *order: Any, dims: Any = None) -> Tensor:
    """The exact form of permute."""
    x = tape.input(x, "permute")
    order = sizes(order if dims is None else (dims,))  # type: ignore[assignment]
    axis = None if (before := tape.axis(x)) is None else _inverse(order, x.dim())[before]
    return tape.record(x.permute(order), (x,), lambda g: (g.permute(_inverse(order, x.dim())),), shares=x, axis=axis)


transpose = _moved("transpose", lambda x, dim0, dim1: x.transpose(dim0, dim1), lambda g, x, dim0, dim1: g.transpose(dim0, dim1))
turned = _moved("transpose", lambda x: x.transpose(-2, -1) if x.dim() > 1 else x, lambda g, x: g.transpose(-2, -1))
movedim = _moved("movedim", lambda x, source, destination: x.movedim(source, destination),
                 lambda g, x, source, destination: g.movedim(destination, source))  # fmt: skip
unsqueeze = _moved("unsqueeze", lambda x, dim: x.unsqueeze(dim), lambda g, x, dim: g.reshape(x.shape))
_squeezed = _moved("squeeze", lambda x, dims: x.squeeze(dims), lambda g, x, dims: g.reshape(x.shape))


def squeeze(tape: Tape, x: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """The exact form of squeeze; the images' axis stays, also where there is one image."""
    asked = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = [d % x.dim() for d in asked]
    return _squeezed(tape, x, tuple(d for d in dims if x.shape[d] == 1 and d != tape.axis(x)))  # type: ignore[no-any-return]


def flip(tape: Tape, x: Tensor, *given: Any, dims: Any = None) -> Tensor:
    """The exact form of flip."""
    x = tape.input(x, "flip")
    over = sizes(given if dims is None else (dims,))
    tape.check_within_images(x, over, "flip")
    return tape.record(x.flip(over), (x,), lambda g: (g.flip(over),))


def roll(tape: Tape, x: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """The exact form of torch.roll within an image."""
    x = tape.input(x, "roll")
    shifts, dims = (tuple(v) if isinstance(v, tuple | list) else (v,) for v in (shifts, dims))
    if None in dims:
        raise refusal("roll without dims, and so over the images", "the axes of an image")
    tape.check_within_images(x, dims, "roll")
    return tape.record(x.roll(shifts, dims), (x,), lambda g: (g.roll([-s for s in shifts], dims),))


def pad(tape: Tape, x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """The exact form of torch.nn.functional.pad by a number."""
    if mode != "constant" or min(pad, default=0) < 0:
        raise refusal(f"pad with mode={mode!r}, pad={tuple(pad)}", "mode='constant', none below 0")
    x = arithmetic.floats(tape, x, "pad")
    if not any(pad):
        return x
    inside = [slice(None)] * x.dim()
    for i in range(len(pad) // 2):
        dim = x.dim() - 1 - i
        inside[dim] = slice(pad[2 * i], pad[2 * i] + x.shape[dim])
    return tape.record(F.pad(x, list(pad), value=value or 0.0), (x,), lambda g: (g[tuple(inside)],))


def expand(tape: Tape, x: Tensor, *given: Any, size: Any = None) -> Tensor:
    """The exact form of Tensor.expand. A weight that is spread over the images is from then on of the images."""
    x = tape.input(x, "expand")
    asked = [part for each in (given if size is None else (size,)) for part in (each if isinstance(each, tuple | list) else (each,))]
    y = x.expand([int(part) for part in asked])
    over_images = tape.value(x) is not None and not tape.of_images(x) and any(isinstance(part, Images) for part in asked)

    def backward(g: Tensor) -> tuple[Gradient]:
        if over_images:
            return (SpreadWeight(tape, x, y, g),)
        dims = [
            *range(g.dim() - x.dim()),
            *(i + g.dim() - x.dim() for i in range(x.dim()) if x.shape[i] == 1 != g.shape[i + g.dim() - x.dim()]),
        ]
        return (tree(g, *dims).float().view(x.shape) if dims else g,)

    tape.record(y, (x,), backward, shares=x)
    if over_images:
        tape.spread(y)
    return y


def expand_as(tape: Tape, x: Tensor, other: Tensor) -> Tensor:
    """The exact form of Tensor.expand_as."""
    other = tape.input(other, "expand_as")
    shape = [Images(other.shape[0]) if tape.of_images(other) else other.shape[0], *other.shape[1:]]
    return expand(tape, x, shape)


def repeat(tape: Tape, x: Tensor, *given: Any) -> Tensor:
    """The exact form of Tensor.repeat where it only spreads axes of size 1."""
    x = tape.input(x, "repeat")
    times = [part for each in given for part in (each if isinstance(each, tuple | list) else (each,))]
    shape = [1] * (len(times) - x.dim()) + list(x.shape)
    if any(size != 1 and count != 1 for size, count in zip(shape, times, strict=True)):
        raise refusal("repeat of an axis that is not of size 1", "repeat of axes of size 1")
    return expand(
        tape, x, [size if count == 1 and not isinstance(count, Images) else count for size, count in zip(shape, times, strict=True)]
    )


class Images(int):
    """The number of images in this worker's share, as a network reads it from a shape: so that it is known again where it comes back."""


def joined(tape: Tape, tensors: Sequence[Tensor], dim: int = 0, axis: int | None = None) -> Tensor:
    """The exact form of torch.cat."""
    dim = dim if axis is None else axis
    tensors = [arithmetic.floats(tape, x, "cat") for x in tensors]
    y = torch.cat(tensors, dim)
    for x in tensors:
        tape.check_within_images(x, (dim,), "cat")
    return tape.record(y, tensors, lambda g: list(g.split([x.shape[dim] for x in tensors], dim)))


def stack(tape: Tape, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The exact form of torch.stack."""
    tensors = [arithmetic.floats(tape, x, "stack") for x in tensors]
    y = torch.stack(list(tensors), dim)
    axis = next((axis for x in tensors if (axis := tape.axis(x)) is not None), None)
    if axis is not None and axis >= dim % y.dim():
        axis += 1
    return tape.lay(tape.record(y, tensors, lambda g: list(g.unbind(dim))), axis)


def _slices(tape: Tape, x: Tensor, dim: int, parts: Sequence[int], what: str) -> tuple[Tensor, ...]:
    x = tape.input(x, what)
    dim %= x.dim()
    if sum(parts) != x.shape[dim]:
        raise RuntimeError(f"{what}: {list(parts)} do not add up to {x.shape[dim]}")
    starts = [sum(parts[:i]) for i in range(len(parts))]
    return tuple(get(tape, x, (slice(None),) * dim + (slice(start, start + size),)) for start, size in zip(starts, parts, strict=True))


def chunk(tape: Tape, x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """The exact form of torch.chunk."""
    return split(tape, x, -(-x.shape[dim] // chunks), dim)


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
    return get(tape, x, (slice(None),) * (dim % x.dim()) + (slice(start, start + length),))


def get(tape: Tape, x: Tensor, index: Any) -> Tensor:
    """The exact form of x[index]: by numbers and slices, or of a weight or constant by a constant tensor of integers."""
    x = tape.input(x, "indexing")
    if tape.value(x) is None:
        return x[index]
    parts = index if isinstance(index, tuple) else (index,)
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


def _axis_of_part(tape: Tape, x: Tensor, parts: tuple[Any, ...]) -> int | None:
    """The images' axis of x[parts]. Raises Unsupported where that takes some of the images only."""
    if (axis := tape.axis(x)) is None:
        return None
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
    x = tape.input(x, "assignment to a part")
    given = tape.input(value, "assignment to a part") if isinstance(value, Tensor) else None
    y = x.clone()
    y[index] = value if given is None else given

    def backward(g: Tensor) -> list[Gradient]:
        rest = g.clone()
        rest[index] = 0
        return [rest] if given is None else [rest, arithmetic.spread(tape, y, given, g[index])]

    return tape.record(y, (x,) if given is None else (x, given), backward)


def pixel_shuffle(tape: Tape, x: Tensor, upscale_factor: int) -> Tensor:
    """The exact form of torch.nn.functional.pixel_shuffle."""
    x = arithmetic.floats(tape, x, "pixel_shuffle")
    return tape.record(F.pixel_shuffle(x, upscale_factor), (x,), lambda g: (F.pixel_unshuffle(g, upscale_factor),))


def channel_shuffle(tape: Tape, x: Tensor, groups: int) -> Tensor:
    """The exact form of torch.nn.functional.channel_shuffle."""
    n, channels, *places = x.shape
    parted = reshape(tape, x, [n, groups, channels // groups, *places])
    return reshape(tape, transpose(tape, parted, 1, 2), [n, channels, *places])
