"""Power-of-two grids: how a float32 tensor becomes integers whose sums never round.

Every reduction takes three steps, kept apart so that a sum over several workers fits between them: choose a grid from the
largest magnitude (over all workers: a maximum), reduce integers exactly (over all workers: a sum), round once.
docs/exact-numerics.md has the bound and its proof.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import device
from pipeline.errors import UserError

SIGNIFICAND_BITS = 53
"""Integers up to 2^53 are float64s, and so is every partial sum that stays within."""
OPERAND_BITS = 19
"""Bits of an operand besides its sign. 19 is what two float32 slices carry against bytes (see reductions.Convolution)."""
LEAST_OPERAND_BITS = 16
"""A reduction that leaves fewer to its operands is refused."""
BYTE_BITS = 8
FLOOR = 2.0**-40
"""The largest magnitude counts as at least this: the units of two operands multiply to 2^-116 or more, so no result of a
reduction is ever subnormal, and an all-zero tensor has a grid."""

_EXPONENT_BITS = 0x7F800000  # of a float32: clearing the others leaves the power of two at or below it
_FRACTION_BITS = 23
_RECIPROCAL = 254 << _FRACTION_BITS  # minus the bits of a power of two: the bits of its reciprocal


@dataclass(frozen=True)
class Grid:
    """The multiples of `unit`; `scale` is 1 / `unit`.

    Both are powers of two: float32, 0-dim tensors on the operand's device, whose values nobody looks at; on a CPU, where a
    look costs less than arithmetic with small tensors, Python's floats.
    """

    scale: Tensor | float
    unit: Tensor | float


BYTES = Grid(1.0, 1.0)
"""That of bytes, which are integers already."""


@dataclass(frozen=True)
class Placed:
    """A tensor on a grid: `integers` * `grid.unit`. Float64 holding integers of at most `bits` bits and a sign."""

    integers: Tensor
    grid: Grid
    bits: int


def magnitude(x: Tensor) -> Tensor:
    """The largest magnitude in `x`, 0-dim; NaN if there is one. Over several workers: the maximum of theirs."""
    # aminmax copies what is not contiguous: so in the order in which it lies in memory
    low, high = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)).aminmax()
    return torch.maximum(-low, high)


def choose(largest: Tensor, bits: int) -> Grid:
    """The finest grid on which magnitudes up to `largest` (float32, 0-dim) take at most `bits` bits.

    With 2^e the power of two at or below `largest`, |x| * 2^(bits-1-e) is below 2^bits and rounds to at most that. The
    exponent is masked out, not taken from a logarithm, whose last bit differs between libraries, and negated as an integer.
    With an Inf or NaN in it, `largest` gives units of infinity: what is made of them is not finite and stops training.
    """
    if device.is_cpu(largest):
        value = float(largest)
        power = math.ldexp(1.0, math.frexp(max(value, FLOOR))[1] - 1) if math.isfinite(value) else math.inf
        return Grid(math.ldexp(1 / power, bits - 1), math.ldexp(power, 1 - bits))
    return choose_on_device(largest, bits)


def choose_on_device(largest: Tensor, bits: int) -> Grid:
    """`choose` without a look at the value."""
    power = largest.clamp_min(FLOOR).view(torch.int32) & _EXPONENT_BITS
    scale = (_RECIPROCAL - power).add_((bits - 1) << _FRACTION_BITS)
    return Grid(scale.view(torch.float32), power.view(torch.float32) * 2.0 ** (1 - bits))


def place(x: Tensor, bits: int, grid: Grid | None = None) -> Placed:
    """Put float32 `x` on `grid` (by default the finest that `bits` allow): one rounding, half to even, an element.

    The product is exact (a power of two; where it underflows, it rounds to 0 all the same).
    """
    grid = grid or choose(magnitude(x), bits)
    return Placed((x * grid.scale).round_().double(), grid, bits)


def coarser(x: Placed, bits: int) -> Placed:
    """`x` with at most `bits` bits: rounded once more, half to even, where it has more."""
    if bits >= x.bits:
        return x
    factor = 2.0 ** (x.bits - bits)
    return Placed((x.integers * (1 / factor)).round_(), Grid(x.grid.scale / factor, x.grid.unit * factor), bits)


def rounded(integers: Tensor, unit: Tensor | float) -> Tensor:
    """The final step: exact integer sums (float64) times `unit`, rounded once to float32."""
    return integers.float().mul_(unit)


def operand_bits(terms: int, batch: int, what: str, other: int | None = None) -> int:
    """Bits for each operand of a reduction over `terms` products, so that its sums stay within 2^53.

    `other` is the other operand's bits where they are given (bytes); else both take the same, at most OPERAND_BITS.

    Raises:
        UserError: fewer than LEAST_OPERAND_BITS are left; names the largest batch that leaves enough.
    """
    free = SIGNIFICAND_BITS - ceil_log2(terms)
    bits = min(OPERAND_BITS, free // 2 if other is None else free - other)
    if bits < LEAST_OPERAND_BITS:
        least = 2 * LEAST_OPERAND_BITS if other is None else LEAST_OPERAND_BITS + other
        largest = 2 ** (SIGNIFICAND_BITS - least) // (terms // batch)
        raise UserError(
            f"numerics 'exact': {what} sums {terms} products at batch_size {batch}, which leaves {bits} bits an operand; "
            f"{LEAST_OPERAND_BITS} are needed: set batch_size to at most {largest}, or numerics: native"
        )
    return bits


def ceil_log2(n: int) -> int:
    """The least k with n <= 2^k."""
    return (n - 1).bit_length()
