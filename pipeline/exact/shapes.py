"""Exact forms of what only moves values: nothing rounds, and the gradient goes where the values came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.exact import arithmetic, layout
from pipeline.exact.arguments import check_from, sizes
from pipeline.exact.arithmetic import SpreadWeight
from pipeline.exact.constants import images_axis
from pipeline.exact.copies import clone
from pipeline.exact.errors import refusal
from pipeline.exact.tape import Gradient, Tape
from pipeline.exact.trees import tree
from pipeline.exact.values import Images


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
    asked = [*wanted]
    if -1 in wanted:
        known = -math.prod(wanted)
        if x.numel() and (known < 1 or x.numel() % known):
            raise RuntimeError(f"shape {wanted} is invalid for input of size {list(x.shape)}")
        wanted[wanted.index(-1)] = x.numel() // known if x.numel() else _rows_of_none(tape, x, wanted)
    return _reshaped(tape, x, wanted, asked)


def _rows_of_none(tape: Tape, x: Tensor, wanted: Sequence[int]) -> int:
    """What -1 stands for in a reshape of no images: what it would be of one; 0 for the images' own axis."""
    return 0 if wanted.index(-1) == (tape.axis(x) or 0) else tape.elements(x) // max(1, -math.prod(size for size in wanted if size))


def _reshaped(tape: Tape, x: Tensor, wanted: list[int], asked: Sequence[int] = ()) -> Tensor:
    """`x` in the shape `wanted`, for which a network has `asked`, if it did."""
    if math.prod(wanted) != x.numel():
        raise RuntimeError(f"shape {wanted} is invalid for input of size {list(x.shape)}")
    axis = tape.axis(x)
    if axis == 0 and tape.elements(x) % max(1, math.prod(wanted[1:])):
        raise refusal(
            f"a change of shape from {list(x.shape)} to {wanted}, which mixes images", "one that keeps an image's values together"
        )
    if axis:  # what is before it stays, and it is still the rows of each image in turn
        of_image = tape.elements(x) // max(1, math.prod(x.shape[:axis]))
        if wanted[:axis] != list(x.shape[:axis]) or len(wanted) <= axis or of_image % max(1, math.prod(wanted[axis + 1 :])):
            axis = None
    counts = [place for place, size in enumerate(asked) if isinstance(size, Images)]
    if counts and (axis not in (None, *counts) or len(counts) > 1 or not tape.of_images(x)):
        raise refusal("a change of shape with the number of images along another axis than theirs", "sizes that do not depend on the batch")
    size = asked[axis] if asked and axis is not None and tape.images else -1
    if size not in (-1, tape.images, x.shape[axis or 0]) and not isinstance(size, Images):  # only some numbers of images would fit
        raise refusal(f"a change of shape from {list(x.shape)} to {wanted} with {size} for the images' axis", "-1, or x.shape[0]")
    if wanted == list(x.shape):
        return x
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
    if not -x.dim() <= dim < x.dim():
        raise IndexError(f"unflatten of dimension {dim} of {x.dim()}")
    dim %= x.dim()
    wanted = list(sizes)
    if -1 in wanted:
        wanted[wanted.index(-1)] = x.shape[dim] // -math.prod(wanted)
    before, after = x.shape[:dim], x.shape[dim + 1 :]
    return _reshaped(tape, x, [*before, *wanted, *after], [*before, *sizes, *after])


def _inverse(order: Sequence[int], dims: int) -> list[int]:
    back = [0] * dims
    for place, dim in enumerate(order):
        back[dim % dims] = place
    return back


def t(tape: Tape, x: Tensor) -> Tensor:
    """The exact form of torch.t, for up to two dimensions."""
    if x.dim() > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {x.dim()}D")
    return reverse(tape, x)  # type: ignore[no-any-return]


def permute(tape: Tape, x: Tensor, *order: Any, dims: Any = None) -> Tensor:
    """The exact form of permute."""
    x = tape.input(x, "permute")
    order = sizes(order if dims is None else (dims,))  # type: ignore[assignment]
    axis = None if (before := tape.axis(x)) is None else _inverse(order, x.dim())[before]
    return tape.record(x.permute(order), (x,), lambda g: (g.permute(_inverse(order, x.dim())),), shares=x, axis=axis)


transpose = _moved("transpose", lambda x, dim0, dim1: x.transpose(dim0, dim1), lambda g, x, dim0, dim1: g.transpose(dim0, dim1))
reverse = _moved("T", lambda x: x.permute(*reversed(range(x.dim()))), lambda g, x: g.permute(*reversed(range(x.dim()))))
turned = _moved("mT", lambda x: x.transpose(-2, -1), lambda g, x: g.transpose(-2, -1))
movedim = _moved("movedim", lambda x, source, destination: x.movedim(source, destination),
                 lambda g, x, source, destination: g.movedim(destination, source))  # fmt: skip
unsqueeze = _moved("unsqueeze", lambda x, dim: x.unsqueeze(dim), lambda g, x, dim: g.reshape(x.shape))
_squeezed = _moved("squeeze", lambda x, dims: x.squeeze(dims), lambda g, x, dims: g.reshape(x.shape))


def squeeze(tape: Tape, x: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """The exact form of squeeze; the images' axis stays, also where there is one image."""
    asked = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    if wrong := [d for d in asked if not -x.dim() <= d < max(1, x.dim())]:
        raise IndexError(f"squeeze of dimension {wrong[0]} of {x.dim()}")
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
    if None in dims or not dims:
        raise refusal("roll without dims, and so over the images", "the axes of an image")
    tape.check_within_images(x, dims, "roll")
    return tape.record(x.roll(shifts, dims), (x,), lambda g: (g.roll([-s for s in shifts], dims),))


def pad(tape: Tape, x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """The exact form of torch.nn.functional.pad by a number."""
    if mode != "constant" or min(pad, default=0) < 0:
        raise refusal(f"pad with mode={mode!r}, pad={tuple(pad)}", "mode='constant', none below 0")
    x = arithmetic.floats(tape, x, "pad", whole=True)
    if not any(pad):
        return clone(tape, x)
    tape.check_within_images(x, [-1 - place // 2 for place, size in enumerate(pad) if size], "pad")
    return tape.record(layout.pad(x, pad, value or 0.0), (x,), lambda g: (g[layout.inside(x, pad)],))


def expand(tape: Tape, x: Tensor, *given: Any, size: Any = None) -> Tensor:
    """The exact form of Tensor.expand. A weight that is spread over the images is from then on of the images."""
    x = tape.input(x, "expand")
    asked = [part for each in (given if size is None else (size,)) for part in (each if isinstance(each, tuple | list) else (each,))]
    y = x.expand([int(part) for part in asked])
    axis = images_axis((asked,))
    over_images = axis is not None and not tape.of_images(x) and (axis < y.dim() - x.dim() or x.shape[axis - y.dim()] == 1)

    def backward(g: Tensor) -> tuple[Gradient]:
        if over_images:
            return (SpreadWeight(tape, x, y, g),)
        dims = [
            *range(g.dim() - x.dim()),
            *(i + g.dim() - x.dim() for i in range(x.dim()) if x.shape[i] == 1 != g.shape[i + g.dim() - x.dim()]),
        ]
        return (tree(g, *dims).float().view(x.shape) if dims else g,)

    before, after = tape.axis(x), None
    if tape.of_images(x):
        if before is not None:
            after = before + y.dim() - x.dim()
        if axis not in (None, after) or (after is not None and y.shape[after] != x.shape[before or 0]):
            raise refusal("expand of what is made from the images to another number of them", "the sizes of an image")
    tape.lay(tape.record(y, (x,), backward, shares=x), after)
    if over_images and axis is not None:
        if tape.value(x) is None:
            tape.alike(y, axis)
        else:
            tape.spread(y, axis)
    if (value := tape.value(y)) is not None and y is not x:
        value.spread = over_images or value.spread or any(n > 1 and not stride for n, stride in zip(y.shape, y.stride(), strict=True))
    return y


def expand_as(tape: Tape, x: Tensor, other: Tensor) -> Tensor:
    """The exact form of Tensor.expand_as."""
    other = tape.input(other, "expand_as")
    shape = list(other.shape)
    if tape.of_images(other):
        if (axis := tape.axis(other)) is None or shape[axis] != tape.images:
            raise refusal("expand_as of what has several rows for each image", "one row an image")
        shape[axis] = Images(shape[axis])
    return expand(tape, x, shape)


def repeat(tape: Tape, x: Tensor, *given: Any) -> Tensor:
    """The exact form of Tensor.repeat where it only spreads axes of size 1."""
    x = tape.input(x, "repeat")
    times = [part for each in given for part in (each if isinstance(each, tuple | list) else (each,))]
    shape = [1] * (len(times) - x.dim()) + list(x.shape)
    if any(size != 1 and count != 1 for size, count in zip(shape, times, strict=True)):
        raise refusal("repeat of an axis that is not of size 1", "repeat of axes of size 1")
    spread = expand(
        tape, x, [size if count == 1 and not isinstance(count, Images) else count for size, count in zip(shape, times, strict=True)]
    )
    return clone(tape, spread)


def pixel_shuffle(tape: Tape, x: Tensor, upscale_factor: int) -> Tensor:
    """The exact form of torch.nn.functional.pixel_shuffle."""
    x = arithmetic.floats(tape, x, "pixel_shuffle")
    if not len(x):  # of no images PyTorch gives what it is given
        shape = F.pixel_shuffle(x.new_empty(1, *x.shape[1:]), upscale_factor).shape
        return tape.record(x.new_empty(0, *shape[1:]), (x,), lambda g: (torch.zeros_like(x),))
    return tape.record(F.pixel_shuffle(x, upscale_factor), (x,), lambda g: (F.pixel_unshuffle(g, upscale_factor),))


def channel_shuffle(tape: Tape, x: Tensor, groups: int) -> Tensor:
    """The exact form of torch.nn.functional.channel_shuffle."""
    n, channels, *places = x.shape
    check_from(1, "channel_shuffle in groups", groups)
    parted = reshape(tape, x, [n, groups, channels // groups, *places])
    return reshape(tape, transpose(tape, parted, 1, 2), [n, channels, *places])
