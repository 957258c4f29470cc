"""Products of integers by bytes: an integer of OPERAND_BITS bits and a sign is sum_k d_k * 2^(7 k) of three digits d_k, each at most 2^6.

Bytes are multiplied and added in int32, by a function that PyTorch calls private. No sum reaches 2^31, so none rounds. Larger digits would
not do: processors without VNNI add two products in 16 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.exact.grid import OPERAND_BITS

BITS, DIGITS = 7, 3
assert BITS * DIGITS - 1 > OPERAND_BITS
TERMS: int = 2**17
"""Products of operands that `product` adds in int32: three of their digits have the same power of two, and 3 * 2^12 * 2^17 < 2^31."""
STEP = 16
"""CUDA takes more than 16 rows, and terms and columns by eights; its kernels read 16 bytes at a time."""


def split(x: Tensor) -> Tensor:
    """Integers of at most OPERAND_BITS bits and a sign, of any shape -> their digits, the lowest first, int8 [DIGITS, ...], contiguous."""
    return _into(x, x.new_empty((DIGITS, *x.shape), dtype=torch.int8))


def _into(x: Tensor, digits: Tensor) -> Tensor:
    *lower, highest = digits.unbind()
    for digit in lower:
        above = (x * 2.0**-BITS).round_()
        digit.copy_(torch.sub(x, above, alpha=2**BITS))
        x = above
    highest.copy_(x)
    return digits


def product(a: Tensor, b: Tensor) -> Tensor:
    """A [M, K] @ b [K, P], of integers of at most OPERAND_BITS bits and a sign, in a type of floats -> int64 [M, P].

    Of each TERMS terms one product of all digits of `a` with all of `b`, whose nine parts are added by their powers of two. Rows and terms
    are filled up with zeros.
    """
    (rows, terms), columns = a.shape, b.shape[1]
    sums = torch.zeros(rows, columns, dtype=torch.int64, device=a.device)
    for first in range(0, terms, TERMS):
        left, right = _filled(a[:, first : first + TERMS]), _filled(b[first : first + TERMS].t())
        products = torch._int_mm(left.flatten(0, 1), right.flatten(0, 1).t())  # int32, of rows of both
        parts = products.view(DIGITS, -1, DIGITS, right.shape[1])[:, :rows, :, :columns]
        of_terms = torch.zeros_like(sums)
        for power in reversed(range(2 * DIGITS - 1)):
            same = [parts[i, :, power - i] for i in range(DIGITS) if 0 <= power - i < DIGITS]
            of_terms = of_terms.mul_(2**BITS).add_(sum(same[1:], same[0]))
        sums += of_terms
    return sums


def _filled(x: Tensor) -> Tensor:
    """The digits of x [R, K], int8 [DIGITS, R', K'], where both are multiples of STEP."""
    digits = x.new_zeros((DIGITS, *(max(STEP, -(-size // STEP) * STEP) for size in x.shape)), dtype=torch.int8)
    _into(x, digits[:, : x.shape[0], : x.shape[1]])
    return digits
