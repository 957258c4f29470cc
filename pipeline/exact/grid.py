"""Power-of-two grids: how a float32 tensor becomes integers whose sums never round.

Every sum takes three steps, kept apart so that workers fit in between: choose a grid from the largest magnitude (over all
workers: a maximum), add integers exactly (over all workers: a sum), round once. docs/exact-numerics.md has the bound and its proof.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.exact import hardware, layout

FLOAT64_BITS = 53
"""Integers up to 2^53 are float64s, and so is every partial sum that stays within."""
INT64_BITS = 63
"""Integers below 2^63 are int64s."""
OPERAND_BITS = 19
"""Bits of every operand besides its sign, always. 19 is what two float32 slices carry against bytes (see rows.py)."""
BYTE_BITS = 8
FLOOR = 2.0**-40
"""The largest magnitude of a group counts as at least this: the units of two operands multiply to 2^-116 or more, so no result
of a reduction is ever subnormal, and a group of zeros has a grid."""
LEAST = FLOOR * 2.0**-58
"""The least of all magnitudes: FLOOR times the unit of an operand that is no larger."""


@dataclass(frozen=True)
class Grid:
    """The multiples of `unit`; `scale` is 1 / `unit`. Both are powers of two, float32 on the operand's device, of one shape.

    That of one tensor on a CPU has Python's floats: there a look at a value costs less than arithmetic with small tensors.
    """

    scale: Tensor | float
    unit: Tensor | float


@dataclass(frozen=True)
class TensorGrid(Grid):
    """One of tensors, whose values nobody looks at."""

    scale: Tensor
    unit: Tensor


def image_magnitudes(x: Tensor) -> Tensor:
    """The largest magnitude of each image in `x` [N, ...], or FLOOR: float32 [N]; NaN where there is one."""
    if not x.numel():
        return x.new_full(x.shape[:1], FLOOR)
    images = (
        x.permute(layout.batch_innermost(x)).flatten(0, -2) if x.stride(0) == 1 else x.flatten(1).t()
    )  # a view where the batch is innermost
    return torch.maximum(images.amax(0), -images.amin(0)).clamp_min_(FLOOR)


def channel_magnitudes(x: Tensor) -> Tensor:
    """The largest magnitude of each channel of each image in `x` [N, O, ...], or FLOOR: float32 [N, O]; NaN where there is one."""
    if not x.numel():
        return x.new_full(x.shape[:2], FLOOR)
    if x.dim() == 2:
        return x.abs().clamp_min_(FLOOR)
    # An axis at a time, from the innermost one, of what lies in the order of memory: a fifth of the time of all at once.
    order = layout.order(x)
    high = low = x.permute(order)
    for at, axis in reversed(list(enumerate(order))):
        if axis >= 2:
            high, low = high.amax(at), low.amin(at)
    magnitudes = torch.maximum(high, -low).clamp_min_(FLOOR)
    return magnitudes if order.index(0) < order.index(1) else magnitudes.t()


def largest(magnitudes: Tensor) -> Tensor:
    """The largest of `magnitudes` [N, ...] over N; of none LEAST, which has a grid where no worker has any."""
    return magnitudes.amax(0) if magnitudes.shape[0] else magnitudes.new_full(magnitudes.shape[1:], LEAST)


def magnitude(x: Tensor) -> Tensor:
    """The largest magnitude in the whole of `x`, or FLOOR: float32, 0-dim; NaN where there is one."""
    return x.abs().amax().clamp_min_(FLOOR) if x.numel() else x.new_full((), FLOOR)


def of_tensor(x: Tensor) -> Grid:
    """The grid of the whole of `x`, float32; on a CPU by a look at the value."""
    return _seen(x) if hardware.is_cpu(x) and x.numel() else choose(magnitude(x))


def _seen(x: Tensor) -> Grid:
    low, high = (float(extreme) for extreme in x.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        return Grid(math.nan, math.nan)
    exponent = math.frexp(max(-low, high, FLOOR))[1]  # the power of two above
    return Grid(math.ldexp(1.0, OPERAND_BITS - exponent), math.ldexp(1.0, exponent - OPERAND_BITS))


def choose(largest: Tensor, bits: int = OPERAND_BITS) -> TensorGrid:
    """The finest grids on which magnitudes up to `largest` (float32, any shape, at least 2^-98) take at most `bits` bits.

    With 2^e the power of two above `largest`, |x| * 2^(bits-e) is below 2^bits and rounds to at most that. A number divided by
    its mantissa is that power, exactly, as its reciprocal is: no logarithm, whose last bit differs between libraries. Nobody looks
    at a value, which on CUDA would wait for it. Where `largest` is Inf or NaN, so is its mantissa: scale and unit are NaN, and so
    is all that is made with them. Four calls, where the exponent masked out of the bits takes twelve: 17 us and 34 for 64 images.
    """
    unit = (largest * 2.0**-bits).div_(torch.frexp(largest).mantissa)  # multiplied first: 2^128 is no float32
    return TensorGrid(unit.reciprocal(), unit)


def place(x: Tensor, scale: Tensor | float) -> Tensor:
    """`x` (float32) on a grid: integers in float32, each rounded once, half to even.

    The product is exact (a power of two; where it underflows, it rounds to 0 all the same).
    """
    return (x * scale).round_()
