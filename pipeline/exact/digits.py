"""The gradients of a convolution of bytes by one product of bytes, added in int32.

An integer of OPERAND_BITS bits and a sign is sum_k d_k * 2^(7 k) of three digits d_k, each at most 2^6; a byte counts as what it is more
than 128. No sum reaches 2^31, so none rounds. Larger digits would not do: processors without VNNI add two products in 16 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.exact.grid import BYTE_BITS, OPERAND_BITS
from pipeline.exact.rows import ConvolutionByRows

BITS, DIGITS = 7, 3
assert BITS * DIGITS - 1 > OPERAND_BITS
HALF = 2 ** (BYTE_BITS - 1)
"""What a byte is taken less."""
TERMS: int = 2 ** (31 - (BYTE_BITS - 1) - (BITS - 1)) - 1
"""Products of a digit and a byte that int32 holds the sum of."""


class ConvolutionOfBytes(ConvolutionByRows):
    """The same for bytes. Its gradients are of copied windows, of a byte an element, by a function that PyTorch calls private."""

    def gradients(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> tuple[Tensor, Tensor]:
        """G [N, O, H', W'], x as `operand` gives it -> [O, I, h, w] and [O].

        A row of ones beside the windows gives the sums of g: the bias gradient, and what the bytes taken less HALF leave out.
        """
        (channels, inputs, height, width), (n, _, rows, columns) = w_shape, g.shape
        places = rows * columns * n
        if not 2 <= places <= TERMS:  # of one place, strides are ambiguous, and _int_mm reads foreign memory
            return super().gradients(g, x, w_shape)
        pixels = x.bitwise_xor(HALF).view(torch.int8)  # [H, I, W, N]
        windows = pixels.new_empty(width * height * inputs + 1, places)
        sizes, (of_row, of_line) = (width, height, inputs, rows, columns * n), pixels.stride()[:2]
        windows[:-1].view(sizes).copy_(pixels.as_strided(sizes, (n, of_row, of_line, of_row, 1)))
        windows[-1] = 1
        digits = _digits(g.permute(1, 2, 3, 0)).view(DIGITS * channels, places)
        sums = torch._int_mm(windows, digits.t()).double()  # [w h I + 1, DIGITS O]
        low, middle, high = sums.view(-1, DIGITS, channels).unbind(1)
        d_w, d_bias = (low + middle * 2**BITS + high * 2 ** (2 * BITS)).split((len(windows) - 1, 1))
        return (d_w + d_bias * HALF).view(width, height, inputs, channels).permute(3, 2, 1, 0), d_bias[0]


def _digits(x: Tensor) -> Tensor:
    """Integers of at most OPERAND_BITS bits and a sign, of any shape -> their digits, the lowest first, int8 [DIGITS, ...], contiguous."""
    digits = x.new_empty((DIGITS, *x.shape), dtype=torch.int8)
    *lower, highest = digits.unbind()
    for digit in lower:
        above = (x * 2.0**-BITS).round_()
        digit.copy_(torch.sub(x, above, alpha=2**BITS))
        x = above
    highest.copy_(x)
    return digits
