"""Exact forms of weighted sums: linear and conv2d, forward and backward.

Rounding points, forward: each operand to its grid, the sum to float32, (for bytes: the division by 255,) the bias's addition.
Backward: the gradient to its grid, once for each of the three sums that it is in, then each sum to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.exact import grid
from pipeline.exact.convolutions import convolution
from pipeline.exact.errors import Unsupported, refusal
from pipeline.exact.reductions import BYTE_TERMS, TERMS, Convolution, Matmul
from pipeline.exact.tape import Tape
from pipeline.exact.tiles import pair

Operation = Matmul | Convolution
Part = slice | None
"""Some of a batch's images; None for all of them, which costs no call."""
BYTE_MAXIMUM = 255.0
"""A uint8 input stands for byte / 255, as torchvision's ToTensor has it; the byte enters the sum, the division follows it."""
INT64_FACTOR = 2 ** (grid.INT64_BITS - grid.FLOAT64_BITS)
"""How many times as many products int64 holds as float64, but for one."""


def linear(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The exact form of torch.nn.functional.linear, for x [N, I]. Raises Unsupported for other dimensions."""
    if x.dim() != 2:
        raise refusal(f"linear on {x.dim()} dimensions", "2")
    return _weighted_sum(tape, Matmul(_terms(x)), x, weight, bias)


def conv2d(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
           groups: int = 1) -> Tensor:  # fmt: skip
    """The exact form of torch.nn.functional.conv2d, for x [N, I, H, W]. Raises Unsupported for several groups and paddings by name."""
    if groups != 1 or isinstance(padding, str) or x.dim() != 4:
        raise refusal(f"conv2d with groups={groups}, padding={padding!r}, {x.dim()} dimensions", "groups=1, a padding in pixels, 4")
    if (places := weight.shape[2:].numel()) > TERMS:
        raise refusal(f"conv2d with a kernel of {places} places", f"at most {TERMS}")
    operation = convolution(pair(stride), pair(padding), pair(dilation), x, weight.shape, _terms(x))
    if operation.image_terms(x.shape, weight.shape) < 1:
        raise refusal(f"conv2d with a kernel larger than its images, {tuple(weight.shape)} on {tuple(x.shape)}", "smaller ones")
    return _weighted_sum(tape, operation, x, weight, bias)


def _terms(x: Tensor) -> int:
    return BYTE_TERMS if x.dtype == torch.uint8 else TERMS


def _weighted_sum(tape: Tape, operation: Operation, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X uint8 or float32, weight and bias float32 -> float32."""
    if x.dtype not in (torch.uint8, torch.float32):
        raise refusal(f"{operation.name} of {x.dtype}", "bytes and float32")
    if not weight.numel():
        raise refusal(f"{operation.name} with an empty weight, {tuple(weight.shape)}")
    if max(operation.output_terms(weight.shape), operation.input_terms(weight.shape)) >= TERMS * INT64_FACTOR:
        raise refusal(f"{operation.name} with a weight of {tuple(weight.shape)}", f"sums of less than {TERMS * INT64_FACTOR} products")
    x = tape.input(x, operation.name)
    layer = _Layer(tape, operation, x, weight, bias)
    y = _in_parts(lambda part: layer.forward(_of(x, part), part), layer.parts)
    return tape.record(y, (x,), layer.backward)


class _Layer:
    """A weighted sum in one pass: what it keeps from the forward direction, and its sums over the batch, which wait (a BatchSums)."""

    def __init__(self, tape: Tape, operation: Operation, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.tape, self.operation, self.bias, self.x_shape = tape, operation, bias, x.shape
        self.names = [tape.weight(each, operation.name) for each in (weight, bias) if each is not None]
        row_terms = operation.image_terms(x.shape, weight.shape)
        image_terms = row_terms * tape.rows(x)  # a view may have made several rows of an image
        if tape.learns:
            _check_batch(operation, image_terms, tape.batch_images)
        self.fit_float64 = image_terms * tape.batch_images <= operation.terms
        rows, at_once = x.shape[0], max(1, min(operation.images_at_once, operation.terms // row_terms))
        self.parts: list[Part] = [slice(first, min(first + at_once, rows)) for first in range(0, rows, at_once)]
        if len(self.parts) < 2:
            self.parts = [None]
        self.w_grid = grid.of_tensor(weight)
        self.w = grid.place(weight, self.w_grid.scale).double()
        self.x_grid = None if x.dtype == torch.uint8 else grid.choose(_an_image(grid.image_magnitudes(x), x))  # bytes are integers already
        self.operands: list[Tensor] = []

    def forward(self, images: Tensor, part: Part) -> Tensor:
        """The outputs for the images of a part."""
        if self.x_grid is None:
            operand = self.operation.operand(images, self.w.shape)
            # the division by 255, then the product with the unit, a power of two: as one division
            y = self.operation.forward_bytes(operand, self.w).float().div_(self.w_grid.scale * BYTE_MAXIMUM)
        else:
            operand = self.operation.operand(grid.place(images, _of(self.x_grid.scale, part)), self.w.shape)
            y = self.operation.forward(operand, self.w).float().mul_(_of(self.x_grid.unit, part) * self.w_grid.unit)
        if self.tape.learns:
            self.operands.append(operand)
        return y if self.bias is None else y.add_(self.bias.view(-1, *[1] * (y.dim() - 2)))

    def backward(self, g: Tensor) -> tuple[Tensor | None]:
        """The gradient of x from that of y; None of bytes. Those of weight and bias wait."""
        self.g = g
        self.tape.wait(self)
        if self.x_grid is None:  # bytes: one unit for all images
            self.magnitudes = [grid.magnitude(g)]
            return (None,)
        of_images = _an_image(grid.image_magnitudes(g), g)
        self.magnitudes = [grid.largest(of_images * self.x_grid.unit)]
        if self.bias is not None:
            self.magnitudes.append(grid.largest(of_images))
        g_grid = grid.choose(of_images)

        def d_x(part: Part) -> Tensor:
            sums = self.operation.input_gradient(grid.place(_of(g, part), _of(g_grid.scale, part)), self.w, self.x_shape)
            return sums.float().mul_(_of(g_grid.unit, part) * self.w_grid.unit)

        return (_in_parts(d_x, self.parts),)

    def integers(self, scales: list[Tensor]) -> list[Tensor]:
        """The sums for the weight and for the bias; where x are bytes, for which one grid serves both, as one tensor."""
        if self.x_grid is None:
            h = grid.place(self.g, scales[0])
            pairs = [self.operation.gradients(_of(h, part), x, self.w.shape) for part, x in zip(self.parts, self.operands, strict=True)]
            d_weight, d_bias = map(self._total, zip(*pairs, strict=True))
            return [d_weight if self.bias is None else torch.cat((d_weight.flatten(), d_bias))]
        h = grid.place(self.g, self.x_grid.unit * scales[0])
        d_weight = self._total(
            [self.operation.weight_gradient(_of(h, part), x, self.w.shape) for part, x in zip(self.parts, self.operands, strict=True)]
        )
        return [d_weight] if self.bias is None else [d_weight, self.operation.bias_gradient(grid.place(self.g, scales[1]).double())]

    def _total(self, of_parts: Sequence[Tensor]) -> Tensor:
        return sum(of_parts[1:], of_parts[0]) if self.fit_float64 else torch.stack([part.long() for part in of_parts]).sum(0)

    def round(self, sums: list[Tensor], units: list[Tensor]) -> None:
        """Give the tape the gradients of weight and bias."""
        if self.x_grid is None:
            d_weight, *d_bias = sums[0].float().tensor_split([self.w.numel()])  # without a bias, the second part is empty
            d_weight.div_(d_weight.new_full((), BYTE_MAXIMUM))
            units = [units[0], units[0]]
        else:
            d_weight, *d_bias = (each.float() for each in sums)
        gradients = [d_weight.view(self.w.shape), *d_bias]
        self.tape.gradients.update({name: each.mul_(unit) for name, each, unit in zip(self.names, gradients, units, strict=False)})


def _check_batch(operation: Operation, image_terms: int, batch_images: int) -> None:
    """Raises Unsupported where int64 does not hold the sums over the batch; names the largest batch that it does."""
    most = operation.terms * INT64_FACTOR - 1
    if image_terms * batch_images > most:
        raise Unsupported(
            f"sums {image_terms * batch_images} products for {operation.name}'s gradient at batch_size {batch_images}, "
            f"and {most} are the most",
            f"set batch_size to at most {most // image_terms}",
        )


def _an_image(values: Tensor, images: Tensor) -> Tensor:
    """Values [N], one an image, in the shape [N, 1, ...] of `images` [N, ...]."""
    return values.view(-1, *[1] * (images.dim() - 1))


def _of(x: Tensor, part: Part) -> Tensor:
    """The images of a part, of `x` [N, ...]."""
    return x if part is None else x[part]


def _in_parts(compute: Callable[[Part], Tensor], parts: list[Part]) -> Tensor:
    """`compute` on so many images at a time as stay in the caches; the results as one tensor, the batch innermost in memory."""
    y = compute(parts[0])
    if parts[-1] is None:
        return y
    whole = y.new_empty(*y.shape[1:], parts[-1].stop).movedim(-1, 0)
    whole[parts[0]] = y
    for part in parts[1:]:
        whole[part] = compute(part)
    return whole
