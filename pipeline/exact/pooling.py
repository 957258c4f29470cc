"""Exact forms of pooling and nearest interpolation: comparisons, means by tree, and stated rules for where gradients go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from pipeline.exact import arithmetic, layout, normalisation, tiles
from pipeline.exact.activations import Rectified, rectified
from pipeline.exact.arguments import check_from, pair
from pipeline.exact.errors import refusal
from pipeline.exact.later import Later
from pipeline.exact.tape import Tape
from pipeline.exact.trees import tree

Pair = tuple[int, int]


def max_pool2d(tape: Tape, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Tensor:  # fmt: skip
    """The exact form of torch.nn.functional.max_pool2d. Raises Unsupported for indices."""
    if return_indices or x.dim() != 4:
        raise refusal(f"max_pool2d of {x.dim()} dimensions, or with indices", "4, without")
    k = tiles.square(kernel_size, stride, padding, dilation, ceil_mode)
    later = Later.of(x)
    if k is not None and isinstance(later, Rectified) and later.value is None and min(x.shape[2:]) >= k:
        return _of_rectified(tape, x, later, k)
    x = arithmetic.floats(tape, x, "max_pool2d")
    if k is not None and min(x.shape[2:]) >= k:
        y, places = tiles.maxima(x, k)
        return tape.record(y, (x,), lambda g: (tiles.spread(g, x, places, y),))
    windows = _Windows(x, kernel_size, stride, padding, dilation, ceil_mode)
    padded = windows.padded(x, -torch.inf)
    y = reduce(torch.maximum, windows.places(padded))

    def backward(g: Tensor) -> tuple[Tensor]:
        d_x, left = torch.zeros_like(padded), g
        places = list(zip(windows.places(padded), windows.places(d_x), strict=True))
        for number, (of_x, of_d_x) in enumerate(places, 1):
            taken = left if number == len(places) else (of_x == y) * left
            of_d_x += taken
            left = left - taken
        return (windows.cut(d_x),)

    return tape.record(y, (x,), backward)


def _of_rectified(tape: Tape, x: Tensor, relu: Rectified, k: int) -> Tensor:
    """The same after a ReLU that was not computed yet: the maxima are rectified, a fraction of the elements.

    The bits are equal: where a tile's maximum is positive, its places are the same before and after ReLU; elsewhere the gradient is 0.
    """
    maxima, places = tiles.maxima(relu.source, k)
    y = torch.relu(maxima)

    def backward(g: Tensor) -> tuple[Tensor]:
        relu.rectified_gradient = tiles.spread(rectified(g, y), relu.source, places, maxima)
        return (relu.rectified_gradient,)

    return tape.record(y, (x,), backward)


class _Windows:
    """The windows of a pooling over x [N, C, H, W]: where they stand, as views of a padded copy."""

    def __init__(self, x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> None:
        self.kernel, self.padding, self.dilation = pair(kernel_size), pair(padding), pair(dilation)
        self.stride = self.kernel if stride is None or stride == [] else pair(stride)
        check_from(1, "pooling with a kernel, stride or dilation", self.kernel, self.stride, self.dilation)
        check_from(0, "pooling with a padding", self.padding)
        self.size = x.shape[2:]
        self.counts = [self._count(i, ceil_mode) for i in (0, 1)]
        if min(self.counts) < 1 or any(2 * self.padding[i] > self.kernel[i] for i in (0, 1)):
            raise RuntimeError(f"pooling with windows of {self.kernel} and padding {self.padding} does not fit {tuple(x.shape)}")
        self.beyond = [
            max(0, (self.counts[i] - 1) * self.stride[i] + self.dilation[i] * (self.kernel[i] - 1) + 1 - self.size[i] - self.padding[i])
            for i in (0, 1)
        ]

    def _count(self, i: int, ceil_mode: bool) -> int:
        """Windows along an axis; with `ceil_mode` the last may reach beyond the padding, but starts within it, as PyTorch has it."""
        left = self.size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1
        count = (left + (self.stride[i] - 1 if ceil_mode else 0)) // self.stride[i] + 1
        if ceil_mode and (count - 1) * self.stride[i] >= self.size[i] + self.padding[i]:
            count -= 1
        return int(count)

    def padded(self, x: Tensor, value: float) -> Tensor:
        """X with what the windows reach beyond it."""
        around = (self.padding[1], self.beyond[1], self.padding[0], self.beyond[0])
        return layout.pad(x, around, value) if any(around) else x

    def cut(self, x: Tensor) -> Tensor:
        """What `padded` added, taken off."""
        return x[:, :, self.padding[0] : self.padding[0] + self.size[0], self.padding[1] : self.padding[1] + self.size[1]]

    def along(self, x: Tensor, i: int) -> list[Tensor]:
        """The places of the windows along one axis, views of x."""
        reach = (self.counts[i] - 1) * self.stride[i] + 1
        starts = [self.dilation[i] * k for k in range(self.kernel[i])]
        return [x.narrow(2 + i, start, reach)[(slice(None),) * (2 + i) + (slice(None, None, self.stride[i]),)] for start in starts]

    def places(self, x: Tensor) -> Iterator[Tensor]:
        """The places of the windows in row-major order, views of x: [N, C, H', W'] each."""
        for rows in self.along(x, 0):
            yield from self.along(rows, 1)

    def divisors(self, x: Tensor, count_include_pad: bool) -> Tensor:
        """How many places each window counts: float64 [H', W']."""
        along = []
        for i in (0, 1):
            starts = [k * self.stride[i] - self.padding[i] for k in range(self.counts[i])]
            ends = [min(start + self.kernel[i], self.size[i] + self.padding[i]) for start in starts]
            within = [(end - start) if count_include_pad else min(end, self.size[i]) - max(start, 0)
                      for start, end in zip(starts, ends, strict=True)]  # fmt: skip
            along.append(torch.tensor(within, dtype=torch.float64, device=x.device))
        return along[0].unsqueeze(1) * along[1]


def avg_pool2d(tape: Tape, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None) -> Tensor:  # fmt: skip
    """The exact form of torch.nn.functional.avg_pool2d: trees over a window's rows, then its columns, and one division."""
    x = arithmetic.floats(tape, x, "avg_pool2d")
    if x.dim() != 4:
        raise refusal(f"avg_pool2d of {x.dim()} dimensions", "4")
    windows = _Windows(x, kernel_size, stride, padding, 1, ceil_mode)
    sums = windows.padded(x, 0.0)
    for i in (0, 1):
        sums = tree(torch.stack([place.double() for place in windows.along(sums, i)]), 0)
    divisors = windows.divisors(x, count_include_pad)
    if divisor_override == 0:
        raise RuntimeError("avg_pool2d: divisor must be not zero")
    if divisor_override is not None:
        divisors.fill_(divisor_override)
    of_places = divisors.float()

    def backward(g: Tensor) -> tuple[Tensor]:
        d_x = windows.padded(torch.zeros_like(x), 0.0)
        g = g / of_places
        for place in windows.places(d_x):
            place += g
        return (windows.cut(d_x),)

    return tape.record((sums / divisors).float(), (x,), backward)


def adaptive_avg_pool2d(tape: Tape, x: Tensor, output_size: Any) -> Tensor:
    """The exact form of torch.nn.functional.adaptive_avg_pool2d: each mean by tree over rows, then columns."""
    x = arithmetic.floats(tape, x, "adaptive_avg_pool2d")
    if x.dim() != 4:
        raise refusal(f"adaptive_avg_pool2d of {x.dim()} dimensions", "4")
    given = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    if len(given) != 2:
        raise RuntimeError(f"adaptive_avg_pool2d: output_size must be 2, and is {len(given)}")
    check_from(0, "adaptive_avg_pool2d to sizes", *(size for size in given if size is not None))
    if 0 in given:
        raise refusal("adaptive_avg_pool2d to nothing", "sizes from 1")
    sizes = [x.shape[2 + i] if given[i] is None else int(given[i]) for i in (0, 1)]
    if sizes == [1, 1]:
        return normalisation.mean(tape, x, (2, 3), keepdim=True)
    if all(x.shape[2 + i] % sizes[i] == 0 for i in (0, 1)):
        return avg_pool2d(tape, x, (x.shape[2] // sizes[0], x.shape[3] // sizes[1]))
    rows, columns = ([(j * n // out, -(-(j + 1) * n // out)) for j in range(out)] for n, out in zip(x.shape[2:], sizes, strict=True))
    of_rows = [tree(x[:, :, a:b], 2) for a, b in rows]  # [N, C, W] each
    sums = torch.stack([torch.stack([tree(row[:, :, a:b], 2) for a, b in columns], 2) for row in of_rows], 2)
    counts = torch.tensor([[float((b - a) * (d - c)) for c, d in columns] for a, b in rows], dtype=torch.float64, device=x.device)

    def backward(g: Tensor) -> tuple[Tensor]:
        d_x, g = torch.zeros_like(x), g / counts.float()
        for i, (a, b) in enumerate(rows):
            for j, (c, d) in enumerate(columns):
                d_x[:, :, a:b, c:d] += g[:, :, i : i + 1, j : j + 1]
        return (d_x,)

    return tape.record((sums / counts).float(), (x,), backward)


def adaptive_max_pool2d(tape: Tape, x: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    """The exact form of torch.nn.functional.adaptive_max_pool2d where its windows are alike."""
    sizes = pair(output_size)
    check_from(0, "adaptive_max_pool2d to sizes", sizes)
    if x.dim() != 4 or 0 in sizes or any(x.shape[2 + i] % sizes[i] for i in (0, 1)):
        raise refusal(f"adaptive_max_pool2d from {tuple(x.shape[2:])} to {sizes}", "sizes that divide the image's")
    return max_pool2d(tape, x, (x.shape[2] // sizes[0], x.shape[3] // sizes[1]), return_indices=return_indices)


def _extreme(name: str, extreme: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def form(tape: Tape, x: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:
        x = arithmetic.floats(tape, x, name)
        dims = normalisation.axes(x, dim, name)
        tape.check_within_images(x, dims, name)
        y = extreme(x, dims, keepdim=True)
        of_images = tape.axis(x)
        axis = of_images if of_images is None or keepdim else of_images - sum(d < of_images for d in dims)

        def backward(g: Tensor) -> tuple[Tensor]:
            among = x == y
            each = g.view(y.shape) / among.sum(dims, keepdim=True).float()
            return (torch.where(among, each, torch.zeros_like(each)),)

        return tape.lay(tape.record(y if keepdim else y.squeeze(dims), (x,), backward), axis)

    form.__doc__ = f"The exact form of {name}: those that are as large share the gradient."
    return form


amax, amin = _extreme("amax", torch.amax), _extreme("amin", torch.amin)


def interpolate(tape: Tape, x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None,
                recompute_scale_factor: Any = None, antialias: bool = False) -> Tensor:  # fmt: skip
    """The exact form of torch.nn.functional.interpolate by nearest, to whole multiples of the image's size."""
    x = arithmetic.floats(tape, x, "interpolate")
    wanted: tuple[float, ...] = (0, 0)
    if x.dim() == 4:
        by = scale_factor if isinstance(scale_factor, tuple | list) else (scale_factor, scale_factor)
        wanted = pair(size) if size is not None else tuple(x.shape[2 + i] * by[i] for i in (0, 1))
    given = (align_corners, recompute_scale_factor) != (None, None) or antialias or mode != "nearest"
    if x.dim() != 4 or given or any(wanted[i] % x.shape[2 + i] for i in (0, 1)) or 0 in wanted:
        raise refusal(f"interpolate of {tuple(x.shape)} with mode={mode!r} to {size or scale_factor}", "nearest, whole multiples")
    times = [int(wanted[i]) // x.shape[2 + i] for i in (0, 1)]
    y = x.repeat_interleave(times[0], 2).repeat_interleave(times[1], 3)

    def backward(g: Tensor) -> tuple[Tensor]:
        return (tree(g.unflatten(3, (-1, times[1])).unflatten(2, (-1, times[0])), 3, 5).float(),)

    return tape.record(y, (x,), backward)
