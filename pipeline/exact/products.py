"""Exact forms of sums of products: linear, conv2d, and the product of two activations.

Rounding points, forward: each operand to its grid, the sum to float32, (for bytes: the division by 255,) the bias's addition.
Backward: the gradient to its grid, once for each of the three sums that it is in, then each sum to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.exact import arithmetic, grid, layout, pixels
from pipeline.exact.arguments import check_from, check_shape, pair
from pipeline.exact.convolutions import convolution
from pipeline.exact.errors import Unsupported, refusal
from pipeline.exact.reductions import BYTE_TERMS, TERMS, Convolution, Matmul, Operand
from pipeline.exact.tape import Gradient, Tape
from pipeline.exact.trees import tree

Operation = Matmul | Convolution
Part = slice | None
"""Some of a batch's images; None for all of them, which costs no call."""
Rounded = Callable[[Tensor, Part, Tensor], Tensor]
"""Puts what the sums of a part's images stand for into the last tensor, and returns that."""
INT64_FACTOR = 2 ** (grid.INT64_BITS - grid.FLOAT64_BITS)
"""How many times as many products int64 holds as float64, but for one."""


def linear(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The exact form of torch.nn.functional.linear, for x [..., I]: every leading index is a row with a grid of its own."""
    if x.dim() < 2 or weight.dim() != 2:
        raise refusal(f"linear on {x.dim()} dimensions with a weight of {weight.dim()}", "2 and more, with 2")
    if bias is not None and bias.shape != weight.shape[:1]:  # PyTorch spreads a single number
        raise refusal(f"linear with a bias of {list(bias.shape)}", f"one of {len(weight)} numbers")
    x = tape.input(x, "linear")
    tape.check_within_images(x, (-1,), "linear")
    if x.dim() > 2:
        if not x.shape[-1]:
            raise refusal(f"linear of {x.dim()} dimensions without features", "2, or at least one feature")
        axis = tape.axis(x)
        rows = tape.record(x.flatten(0, -2), (x,), lambda g: (g.reshape(x.shape),), shares=x, axis=None if axis else axis)
        y = _weighted_sum(tape, Matmul(_terms(x)), rows, weight, bias)
        return tape.record(y.reshape(*x.shape[:-1], len(weight)), (y,), lambda g: (g.flatten(0, -2),), shares=y, axis=axis)
    return _weighted_sum(tape, Matmul(_terms(x)), x, weight, bias)


def conv2d(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
           groups: int = 1) -> Tensor:  # fmt: skip
    """The exact form of torch.nn.functional.conv2d, for x [N, I, H, W]. Raises Unsupported for an uneven padding by name."""
    if x.dim() != 4 or weight.dim() != 4:
        raise refusal(f"conv2d on {x.dim()} dimensions with a weight of {weight.dim()}", "4, with 4")
    if not weight.numel():
        raise refusal(f"conv2d with a weight of {tuple(weight.shape)}", "at least one channel and one place")
    stride, dilation = pair(stride), pair(dilation)
    check_shape("conv2d", (len(weight),), bias)
    check_from(1, "conv2d with a stride, dilation or groups", stride, dilation, groups)
    if isinstance(padding, str):
        if padding not in ("same", "valid") or (padding == "same" and stride != (1, 1)):
            raise RuntimeError(f"conv2d with padding={padding!r} and stride={stride}, which PyTorch has not")
        reach = [dilation[i] * (weight.shape[2 + i] - 1) for i in (0, 1)]
        if padding == "same" and any(r % 2 for r in reach):
            raise refusal(f"conv2d with padding='same' and an even kernel, {tuple(weight.shape[2:])}", "a padding in pixels")
        padding = (reach[0] // 2, reach[1] // 2) if padding == "same" else 0
    if (places := weight.shape[2:].numel()) > TERMS:
        raise refusal(f"conv2d with a kernel of {places} places", f"at most {TERMS}")
    padding = pair(padding)
    check_from(0, "conv2d with a padding", padding)
    down, along = (min(stride[i], max(1, x.shape[2 + i] + 2 * padding[i])) for i in (0, 1))  # a longer step leads out of the image as well
    operation = convolution((down, along), padding, dilation, groups, x, weight.shape, _terms(x))
    if operation.image_terms(x.shape, weight.shape) < 1:
        raise refusal(f"conv2d with a kernel larger than its images, {tuple(weight.shape)} on {tuple(x.shape)}", "smaller ones")
    return _weighted_sum(tape, operation, tape.input(x, "conv2d"), weight, bias)


def _terms(x: Tensor) -> int:
    return BYTE_TERMS if x.dtype == torch.uint8 else TERMS


def _weighted_sum(tape: Tape, operation: Operation, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X float32, or bytes, which enter the sum and are divided by 255 after it; weight and bias float32 -> float32."""
    weight = tape.input(weight, operation.name)
    bias = None if bias is None else tape.input(bias, operation.name)
    if not (tape.is_bytes(x) or x.dtype == torch.float32) or weight.dtype != torch.float32:
        raise refusal(f"{operation.name} of {x.dtype} with a weight of {weight.dtype}", "bytes and float32, with float32")
    if tape.of_images(weight) or (bias is not None and tape.of_images(bias)):
        raise refusal(f"{operation.name} with a weight or bias that was made from the images")
    if operation.inputs(weight.shape) != x.shape[1]:  # PyTorch's own words, which the kernels would not find
        raise RuntimeError(f"{operation.name}: the weight {tuple(weight.shape)} does not fit an input of {x.shape[1]} features or channels")
    if max(operation.output_terms(weight.shape), operation.input_terms(weight.shape)) >= TERMS * INT64_FACTOR:
        raise refusal(f"{operation.name} with a weight of {tuple(weight.shape)}", f"sums of less than {TERMS * INT64_FACTOR} products")
    layer = WeightedSum(tape, operation, x, weight, bias)
    return tape.record(layer.forward(x), (x, weight) if bias is None else (x, weight, bias), layer.backward)


class WeightedSum:
    """A weighted sum in one pass: what it keeps from the forward direction, and its sums over the batch, which wait (a sums.Sums)."""

    def __init__(self, tape: Tape, operation: Operation, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.operation, self.bias, self.x_shape = operation, bias, x.shape
        self.needs_input, self.learns = tape.learns_from(x), tape.learns
        image_terms = operation.image_terms(x.shape, weight.shape)
        rows = tape.rows(x)
        if tape.learns:
            _check_batch(operation, image_terms, rows)
        self.fit_float64 = image_terms * rows <= operation.terms
        at_once = max(1, min(operation.images_at_once(x.shape, weight.shape), operation.terms // image_terms))
        self.parts: list[Part] = [slice(first, min(first + at_once, x.shape[0])) for first in range(0, x.shape[0], at_once)]
        if len(self.parts) < 2:
            self.parts = [None]
        self.w_grid = grid.of_tensor(weight)
        self.w = operation.weight(grid.place(weight, self.w_grid.scale))
        self.x_grid = None if x.dtype == torch.uint8 else grid.choose(_an_image(grid.image_magnitudes(x), x))  # bytes are integers already
        self.operands: list[Operand] = []

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        rounded = self._divided if self.x_grid is None else self._times(self.x_grid.unit)
        y = _in_parts(self.parts, lambda part: self._sums(_of(x, part), part), rounded)
        return y if self.bias is None else y.add_(self.bias.view(-1, *[1] * (y.dim() - 2)))

    def _sums(self, images: Tensor, part: Part) -> Tensor:
        """Of the images of a part, as integers."""
        placed = images if self.x_grid is None else grid.place(images, _of(self.x_grid.scale, part))
        operand = self.operation.operand(placed, self.w.shape)
        if self.learns:
            self.operands.append(operand)
        return (self.operation.forward_bytes if self.x_grid is None else self.operation.forward)(operand, self.w)

    def _divided(self, sums: Tensor, part: Part, out: Tensor) -> Tensor:
        """Those of bytes: the division by 255, then the product with the unit, a power of two, as one division."""
        return torch.div(sums, self.w_grid.scale * pixels.BYTE_MAXIMUM, out=out)

    def _times(self, units: Tensor) -> Rounded:
        """What gives a part's sums their units, that of the weight and each image's own."""
        return lambda sums, part, out: torch.mul(sums, _of(units, part) * self.w_grid.unit, out=out)

    def backward(self, g: Tensor) -> list[Gradient]:
        """The gradient of x from that of y; None of what needs none. Those of weight and bias wait."""
        self.g = g
        of_channels = grid.channel_magnitudes(g)  # [N, O]
        if self.x_grid is None:  # bytes: one unit for all images, and one grid for both sums
            self.magnitudes = grid.largest(of_channels)
        else:
            unit = self.x_grid.unit.view(-1, 1)
            both = [grid.largest(of_channels * unit)] + ([] if self.bias is None else [grid.largest(of_channels)])
            self.magnitudes = torch.cat(both)
        gradients: list[Gradient] = [None, self] if self.bias is None else [None, self, self]
        if self.needs_input:
            g_grid = grid.choose(_an_image(of_channels.amax(1) if g.shape[1] else grid.image_magnitudes(g), g))

            def sums(part: Part) -> Tensor:
                return self.operation.input_gradient(grid.place(_of(g, part), _of(g_grid.scale, part)), self.w, self.x_shape)

            gradients[0] = _in_parts(self.parts, sums, self._times(g_grid.unit))
        return gradients

    def integers(self, scales: Tensor) -> Tensor:
        """The sums for the weight, then those for the bias: flat."""
        channels = len(self.w)
        if self.x_grid is None:
            h = grid.place(self.g, _a_channel(scales, self.g))
            pairs = [self.operation.gradients(_of(h, part), x, self.w.shape) for part, x in zip(self.parts, self.operands, strict=True)]
            d_weight, d_bias = map(self._total, zip(*pairs, strict=True))
            return d_weight if self.bias is None else torch.cat((d_weight.flatten(), d_bias))
        h = grid.place(self.g, _outer(self.x_grid.unit, _a_channel(scales[:channels], self.g), self.g))
        d_weight = self._total(
            [self.operation.weight_gradient(_of(h, part), x, self.w.shape) for part, x in zip(self.parts, self.operands, strict=True)]
        )
        if self.bias is None:
            return d_weight
        b = grid.place(self.g, _a_channel(scales[channels:], self.g)).double()
        return torch.cat((d_weight.flatten(), self.operation.bias_gradient(b).to(d_weight.dtype)))

    def _total(self, of_parts: Sequence[Tensor]) -> Tensor:
        return sum(of_parts[1:], of_parts[0]) if self.fit_float64 else torch.stack([part.long() for part in of_parts]).sum(0)

    def round(self, sums: Tensor, units: Tensor) -> list[Tensor]:
        """The gradients of weight and bias."""
        channels = len(self.w)
        d_weight, d_bias = sums.flatten().float().tensor_split([self.w.numel()])  # without a bias, the second part is empty
        d_weight = d_weight.view(self.w.shape)
        if self.x_grid is None:
            d_weight.div_(d_weight.new_full((), pixels.BYTE_MAXIMUM))
            units = torch.cat((units, units))
        d_weight.mul_(units[:channels].view(-1, *[1] * (d_weight.dim() - 1)))
        return [d_weight] if self.bias is None else [d_weight, d_bias.mul_(units[channels:])]


def _check_batch(operation: Operation, image_terms: int, rows: int) -> None:
    """Raises Unsupported where int64 does not hold the sums over the batch; names the largest batch that it does."""
    most = operation.terms * INT64_FACTOR - 1
    if image_terms * rows > most:
        raise Unsupported(
            f"sums {image_terms * rows} products for {operation.name}'s gradient at batch_size {rows}, and {most} are the most",
            f"set batch_size to at most {most // image_terms}",
        )


def matmul(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """The exact form of torch.matmul: of activations a grid a matrix (the last two axes); with a weight [I, O] it is linear."""
    a, b = tape.input(a, "matmul"), tape.input(b, "matmul")
    if not all(x.dim() > 1 and (x.dtype == torch.float32 or tape.is_bytes(x)) for x in (a, b)):
        raise refusal(f"matmul of {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}", "float32, 2 dimensions and more")
    if b.dim() == 2 and tape.of_images(a) and not tape.of_images(b):
        turned = tape.record(b.t(), (b,), lambda g: (g.t(),), shares=b)
        return linear(tape, a, turned)
    a, b = arithmetic.floats(tape, a, "matmul"), arithmetic.floats(tape, b, "matmul")
    if tape.of_images(a) != tape.of_images(b):
        raise refusal("matmul of an activation with a weight of more than 2 dimensions, or on its left", "a weight [I, O] on its right")
    if max(a.shape[-1], a.shape[-2], b.shape[-1]) > TERMS:
        raise refusal(f"matmul of {list(a.shape)} and {list(b.shape)}", f"sizes of at most {TERMS}")
    tape.check_within_images(a, (-1,), "matmul")
    tape.check_within_images(b, (-2,), "matmul")
    tape.check_alike("matmul", a, b)
    (ia, ua), (ib, ub) = _matrices(a), _matrices(b)
    y = (ia @ ib).float().mul_(ua * ub)

    def backward(g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        ig, ug = _matrices(g)
        d_a = (ig @ ib.mT).float().mul_(ug * ub) if tape.learns_from(a) else None
        d_b = (ia.mT @ ig).float().mul_(ua * ug) if tape.learns_from(b) else None
        return None if d_a is None else _unspread(d_a, a), None if d_b is None else _unspread(d_b, b)

    return tape.lay(tape.record(y, (a, b), backward), arithmetic.axis_of_spread(tape, y, a, b))


def _matrices(x: Tensor) -> tuple[Tensor, Tensor]:
    """X float32 [..., I, J] on a grid a matrix: integers, float64, and their units [..., 1, 1]."""
    chosen = grid.choose(x.abs().amax((-2, -1), keepdim=True).clamp_min_(grid.FLOOR) if x.numel() else x.new_ones((*x.shape[:-2], 1, 1)))
    return grid.place(x, chosen.scale).double(), chosen.unit


def _unspread(g: Tensor, x: Tensor) -> Tensor:
    """The gradient of x [..., I, J] whose matrices were spread over leading axes: trees over these."""
    beyond = g.dim() - x.dim()
    dims = [*range(beyond), *(i + beyond for i in range(x.dim() - 2) if x.shape[i] == 1 != g.shape[i + beyond])]
    return tree(g, *dims).float().view(x.shape) if dims else g


def _a_channel(values: Tensor, y: Tensor) -> Tensor:
    """Values [O], one a channel, in the shape [1, O, 1, ...] of `y` [N, O, ...]."""
    return values.view(1, -1, *[1] * (y.dim() - 2))


def _outer(of_images: Tensor, of_channels: Tensor, y: Tensor) -> Tensor:
    """The products of values [N, 1, ...] and [1, O, ...], in memory as `y` [N, O, ...]: else a product with y takes thrice as long."""
    sizes = (*y.shape[:2], *[1] * (y.dim() - 2))
    return torch.mul(of_images, of_channels, out=layout.empty(sizes, layout.order(y), y))


def _an_image(values: Tensor, images: Tensor) -> Tensor:
    """Values [N], one an image, in the shape [N, 1, ...] of `images` [N, ...]."""
    return values.view(-1, *[1] * (images.dim() - 1))


def _of(x: Tensor, part: Part) -> Tensor:
    """The images of a part, of `x` [N, ...]."""
    return x if part is None else x[part]


def _in_parts(parts: list[Part], sums: Callable[[Part], Tensor], rounded: Rounded) -> Tensor:
    """What `rounded` makes of `sums`, float32, of so many images at a time as stay in the caches; the batch is innermost in memory."""
    of_part = sums(parts[0]).float()
    if parts[-1] is None:
        return rounded(of_part, None, of_part)
    whole = layout.empty((parts[-1].stop, *of_part.shape[1:]), layout.batch_innermost(of_part), of_part)
    rounded(of_part, parts[0], whole[parts[0]])
    for part in parts[1:]:
        rounded(sums(part).float(), part, whole[part])
    return whole
