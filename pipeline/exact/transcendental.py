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


def exp(x: Tensor) -> Tensor:
    """e^x for x <= 0 (float64); below -60 as at -60.

    x = n ln 2 + r with |r| <= ln(2)/2, and Taylor's polynomial of degree 10 for e^r.
    """
    x = x.clamp_min(_LEAST)
    n = (x * _LOG2_E).round_()
    r = (x - n * _LN2_HIGH).sub_(n * _LN2_LOW)
    y = torch.full_like(r, _EXP_TERMS[0])
    for term in _EXP_TERMS[1:]:
        y = y.mul_(r).add_(term)
    return y.mul_(((n.long() + 1023) << 52).view(torch.float64))


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
    y = torch.full_like(f, _LOG_TERMS[0])
    for term in _LOG_TERMS[1:]:
        y = y.mul_(square).add_(term)
    y = y.mul_(f).mul_(2.0)
    return (k * _LN2_HIGH).add_(k * _LN2_LOW).add_(y)
