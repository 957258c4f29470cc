"""exp and log in float64 from correctly rounded steps alone, so the same bits everywhere.

Library versions of both differ between instruction sets and devices. Here each multiplication and addition is a kernel of
its own, rounded once (IEEE 754), and powers of two are made of exponent bits. Both are good to about 1e-11, float32 needs
6e-8. Do not run this compiled: a compiler may contract a multiplication and an addition into one rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG2_E = 1 / math.log(2)
_LN2_HIGH = 0.693145751953125  # 2^-20 steps: its product with an integer below 2^32 is exact
_LN2_LOW = 1.42860682030941723212e-6  # ln 2 - _LN2_HIGH
_SQRT2 = math.sqrt(2)
_LEAST = -60.0
_EXP_TERMS = tuple(1 / math.factorial(k) for k in range(10, -1, -1))
_LOG_TERMS = tuple(1 / (2 * k + 1) for k in range(8, -1, -1))
_MANTISSA = (1 << 52) - 1
_ONE = 1023 << 52  # the bits of 1.0
_LEAST_OF_ANY, _MOST_OF_ANY = -110.0, 100.0  # beyond them a float32 is 0 and Inf
_SQRT_HALF = math.sqrt(0.5)
_DENSITY = 1 / math.sqrt(2 * math.pi)
_TAIL = tuple(
    float.fromhex(term)
    for term in (
        "-0x1.069173d27ac75p-24", "0x1.f87531d0cf2b2p-24", "0x1.4bb1238182ad4p-22", "-0x1.0d77edb3d1e43p-20", "-0x1.14e9c93055d42p-24",
        "0x1.10dc98a86cb11p-18", "-0x1.7589e8849856bp-18", "-0x1.1e7ef043bb828p-17", "0x1.2f72130a82cf9p-15", "-0x1.207c2c059d64dp-17",
        "-0x1.5bab208ead748p-13", "0x1.b6fcf061dc68bp-13", "0x1.9517f299820dcp-11", "-0x1.a89eb4c7edc43p-10", "-0x1.606e41b952dbcp-8",
        "0x1.2a88e61a3bd76p-7", "0x1.1e2deea6cbc8ep-4", "0x1.5fd386754c4a5p-3", "0x1.058671b52c776p-2",
    )
)  # fmt: skip
"""erfc(a) / 2 = t exp(-a^2) P(2 t - 1) with t = 1 / (a / 2 + 1): P from its highest power, Chebyshev's interpolation, good to 3e-14."""


def exp_of_any(x: Tensor) -> Tensor:
    """e^x (float64) for what becomes a float32: below -110 as there, above 100 as there, which are 0 and Inf."""
    return exp(x.clamp(_LEAST_OF_ANY, _MOST_OF_ANY), _LEAST_OF_ANY)


def log_of_any(x: Tensor) -> Tensor:
    """The natural logarithm of a float32 in float64: -Inf of 0, NaN of less, Inf of Inf."""
    known = torch.full_like(x, torch.nan).masked_fill_(x == 0, -torch.inf).masked_fill_(x == torch.inf, torch.inf)
    usual = (x > 0).logical_and_(x < torch.inf)
    return torch.where(usual, log(torch.where(usual, x, torch.ones_like(x))), known)


def normal_probability(x: Tensor) -> Tensor:
    """The probability that a normal variable is at most x (float64), good to 6e-14."""
    a = x.abs().mul_(_SQRT_HALF)
    t = (a * 0.5).add_(1.0).reciprocal_()
    y = _polynomial((t + t).sub_(1.0), _TAIL)
    tail = exp(a.mul_(a).neg_()).mul_(t).mul_(y)
    return at_least_zero(x).sub_(tail).abs_()  # 1 - tail, or tail


def at_least_zero(x: Tensor) -> Tensor:
    """1.0 where x is 0 or more, else 0.0, in its type: to compute with it takes a CPU a fifth of the time of torch.where."""
    return torch.ge(x, 0, out=torch.empty_like(x))


def normal_density(x: Tensor) -> Tensor:
    """The density of a normal variable at x (float64)."""
    return exp((x * x).mul_(-0.5)).mul_(_DENSITY)


def exp(x: Tensor, least: float = _LEAST) -> Tensor:
    """e^x for x <= 0 (float64); below `least` as there.

    x = n ln 2 + r with |r| <= ln(2)/2, and Taylor's polynomial of degree 10 for e^r.
    """
    r = x.clamp_min(least)
    n = (r * _LOG2_E).round_()
    product = n * _LN2_HIGH
    r = r.sub_(product).sub_(torch.mul(n, _LN2_LOW, out=product))
    bits = n.add_(1023.0).mul_(2.0**52).long()  # of 2^n
    return _polynomial(r, _EXP_TERMS).mul_(bits.view(torch.float64))


def _polynomial(x: Tensor, terms: tuple[float, ...]) -> Tensor:
    """Horner's rule, from the highest power."""
    y = (x * terms[0]).add_(terms[1])
    for term in terms[2:]:
        y = y.mul_(x).add_(term)
    return y


def log(x: Tensor) -> Tensor:
    """The natural logarithm of x >= 1 (float64).

    x = 2^k m with m in [1, 2), or halved to (sqrt(1/2), sqrt(2)]; log m = 2 artanh((m - 1) / (m + 1)), to the 17th power.
    """
    bits = x.view(torch.int64)
    k = ((bits >> 52) - 1023).double()
    m = ((bits & _MANTISSA) | _ONE).view(torch.float64)
    high = (m > _SQRT2).double()
    m = m.mul_(high.mul(-0.5).add_(1.0))
    k = k.add_(high)
    f = (m - 1.0).div_(m + 1.0)
    square = f * f
    y = _polynomial(square, _LOG_TERMS).mul_(f).mul_(2.0)
    return (k * _LN2_HIGH).add_(k * _LN2_LOW).add_(y).add_(x - x)  # 0, or NaN where x is not finite, whose bits tell nothing


def square_root(x: Tensor) -> Tensor:
    """The IEEE square root of float32s, or of float64s from 2^-900 to 2^900 (and 0), which torch.sqrt on a CPU does not give.

    MKL's is a last bit off for one float32 in six and one float64 in eighty, another processor's or a GPU's is not. A float32's root is
    at least 4 units of float64's last place away from any middle between two float32s, so float64's, at most one unit off, rounds right.
    A float64's is corrected by Newton's step from its exact residual, with Dekker's product (https://doi.org/10.1007/BF01397083): that is
    IEEE's too, but for roots within 2^-52 units of a middle, such as that of the largest number below a power of 4.
    """
    if x.dtype != torch.float64:
        return x.double().sqrt().to(x.dtype)
    y = x.sqrt()
    split = y * 134217729.0  # 2^27 + 1
    high = split - (split - y)
    low = y - high
    square = y * y
    rest = (((high * high - square) + high * low) + high * low) + low * low  # y y is square + rest, exactly
    corrected = y + ((x - square) - rest) / (y + y)
    return torch.where((x > 2.0**-900) & (x < 2.0**900), corrected, y)
