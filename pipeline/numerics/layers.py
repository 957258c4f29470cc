"""SimpleCNN's operations with exact sums, forward and backward: what `exact` puts in the place of PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pipeline.numerics import grid, transcendental
from pipeline.numerics.grid import Placed
from pipeline.numerics.reductions import Convolution, Matmul

Operation = Matmul | Convolution
BYTE_MAXIMUM = 255.0
"""A uint8 input stands for byte / 255, as torchvision's ToTensor has it; the byte enters the sum, the division follows it."""


class Weighted(Function):
    """Sums of inputs times weights, plus a bias: linear and conv2d.

    Rounding points, forward: each operand to its grid, the sum to float32, (for bytes: the division by 255,) the bias's
    addition. Backward: the gradient to its grid, then each sum to float32.
    """

    @staticmethod
    def forward(ctx: Any, operation: Operation, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """X uint8 or float32, weight and bias float32 -> float32."""
        from_bytes = x.dtype == torch.uint8
        terms = operation.terms(x.shape, weight.shape)
        bits = grid.operand_bits(terms, len(x), operation.name, grid.BYTE_BITS if from_bytes else None)
        w = grid.place(weight, bits)
        x_grid = grid.BYTES if from_bytes else grid.choose(grid.magnitude(x), bits)
        operands = []

        def part(images: Tensor) -> Tensor:
            if from_bytes:
                placed = Placed(operation.operand(images, weight.shape), x_grid, grid.BYTE_BITS)
                y = operation.forward_bytes(placed.integers, w.integers).float().div_(BYTE_MAXIMUM / w.grid.unit)
            else:
                placed = Placed(operation.operand(grid.place(images, bits, x_grid).integers, weight.shape), x_grid, bits)
                y = grid.rounded(operation.forward(placed.integers, w.integers), x_grid.unit * w.grid.unit)
            if any(ctx.needs_input_grad):
                operands.append(placed)
            return y if bias is None else y.add_(bias.view(-1, *[1] * (y.dim() - 2)))

        y = _in_parts(part, x, operation.images_at_once)
        ctx.operation, ctx.has_bias, ctx.from_bytes, ctx.x_shape = operation, bias is not None, from_bytes, x.shape
        ctx.operands, ctx.w = operands, w
        ctx.save_for_backward(weight)  # autograd then refuses a weight that was changed in between
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x (where asked for), weight and bias."""
        (weight,) = ctx.saved_tensors
        operation, shapes, batch, what = ctx.operation, (ctx.x_shape, weight.shape), ctx.x_shape[0], f"{ctx.operation.name}'s gradient"
        bits = grid.operand_bits(operation.weight_terms(*shapes), batch, what, grid.BYTE_BITS if ctx.from_bytes else None)
        if ctx.needs_input_grad[1]:
            bits = min(bits, grid.operand_bits(operation.input_terms(*shapes), batch, what))
        g = grid.place(gradients[0], bits)
        parts = torch.split(g.integers, operation.images_at_once)
        operands = [grid.coarser(x, bits) for x in ctx.operands]
        sums = [operation.weight_gradient(part, x.integers, weight.shape) for part, x in zip(parts, operands, strict=True)]
        d_weight = grid.rounded(sum(sums[1:], sums[0]), g.grid.unit * operands[0].grid.unit)
        if ctx.from_bytes:
            d_weight.div_(d_weight.new_full((), BYTE_MAXIMUM))
        d_x = d_bias = None
        if ctx.needs_input_grad[1]:
            w = grid.coarser(ctx.w, bits)

            def d_part(part: Tensor) -> Tensor:
                return grid.rounded(operation.input_gradient(part, w.integers, ctx.x_shape), g.grid.unit * w.grid.unit)

            d_x = _in_parts(d_part, g.integers, operation.images_at_once)
        if ctx.has_bias:
            d_bias = grid.rounded(operation.bias_gradient(g.integers), g.grid.unit)
        return None, d_x, d_weight, d_bias


def _in_parts(compute: Callable[[Tensor], Tensor], batch: Tensor, at_once: int) -> Tensor:
    """`compute` on as many images at a time as stay in the caches; the results as one tensor, the batch innermost in memory."""
    if len(batch) <= at_once:
        return compute(batch)
    made = None
    for first, part in zip(range(0, len(batch), at_once), torch.split(batch, at_once), strict=True):
        y = compute(part)
        if made is None:
            made = y.new_empty(*y.shape[1:], len(batch)).movedim(-1, 0)
        made[first : first + len(part)] = y
    assert made is not None
    return made


class MaxPool(Function):
    """The maximum of each k x k tile (stride k, no padding); the gradient goes to the first maximum in row-major order.

    Comparisons, and products with 0 and 1: nothing rounds. Each place in the tiles is one tensor, a view where its runs in
    memory are long, else a contiguous copy, which on a CPU takes a fraction of the time of PyTorch's kernel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        """X float32 [N, C, H, W] -> [N, C, H // k, W // k], in memory in x's order of dimensions where the batch is innermost."""
        ctx.k, ctx.batch_last = k, x.stride(0) == 1
        tiles = _tiles(x, k) if ctx.batch_last else _tiles(x, k).contiguous()
        rows = reduce(torch.maximum, tiles.unbind())  # [k, ...]
        y = reduce(torch.maximum, rows.unbind())
        ctx.save_for_backward(x, tiles, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x."""
        x, tiles, y = ctx.saved_tensors
        k, covered = ctx.k, x.shape[2] % ctx.k == x.shape[3] % ctx.k == 0
        d_x = torch.empty_like(x) if covered else torch.zeros_like(x)
        d_tiles = _tiles(d_x, k)
        left = gradients[0]  # what no place has taken yet
        for place in range(k * k - 1):
            i, j = divmod(place, k)
            taken = d_tiles[i, j] if ctx.batch_last else torch.empty_like(y)
            torch.eq(tiles[i, j], y, out=taken).mul_(left)  # 0 or 1 in float32: the comparison's fastest form
            if not ctx.batch_last:
                d_tiles[i, j].copy_(taken)
            left = left - taken
        d_tiles[-1, -1].copy_(left)
        return d_x, None


def _tiles(x: Tensor, k: int) -> Tensor:
    """A view of x [N, C, H, W] as [k, k, N, C, H // k, W // k]: the places in the tiles first."""
    return x.unfold(2, k, k).unfold(3, k, k).permute(4, 5, 0, 1, 2, 3)


PROBABILITY_BITS = 40
"""Exponentials are integers of this many bits in the sum over classes."""


class Softmax:
    """Softmax and its logarithm, in float64, with an exact sum over the classes: loss and evaluation share it."""

    def __init__(self, logits: Tensor) -> None:
        z = logits.double()
        self.shifted = z - z.amax(1, keepdim=True)  # [N, C], largest 0
        e = (transcendental.exp(self.shifted) * 2.0**PROBABILITY_BITS).round_()
        self.total = e.sum(1, keepdim=True)  # exact: C * 2^40 at most
        self.probabilities = e / self.total  # [N, C]

    def losses(self, labels: Tensor) -> Tensor:
        """Cross-entropy of each row, float64 [N], for labels int64 [N]."""
        log_total = transcendental.log(self.total * 2.0**-PROBABILITY_BITS)
        return (log_total - self.shifted.gather(1, labels.unsqueeze(1))).squeeze(1)


def mean(losses: Tensor) -> Tensor:
    """The mean of float64 losses [N], float64 0-dim: placed on one grid, summed exactly, divided once."""
    bits = grid.SIGNIFICAND_BITS - grid.ceil_log2(len(losses))
    on = grid.choose(grid.magnitude(losses).float(), bits)
    total = (losses * on.scale).round_().sum()
    return (total * on.unit) / torch.full_like(total, len(losses))


class CrossEntropy(Function):
    """The batch's mean cross-entropy. Rounding points: those of Softmax and `mean`, the gradient's division, to float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits float32 [N, C], labels int64 [N] -> float32 0-dim."""
        softmax = Softmax(logits)
        ctx.save_for_backward(softmax.probabilities, labels)
        return mean(softmax.losses(labels)).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        probabilities, labels = ctx.saved_tensors
        n, classes = probabilities.shape
        hot = labels.unsqueeze(1) == torch.arange(classes, device=labels.device)
        d_logits = (probabilities - hot.double()) / torch.full((), float(n), dtype=torch.float64, device=labels.device)
        return (d_logits * gradients[0].double()).float(), None
