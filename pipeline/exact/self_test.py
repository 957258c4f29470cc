"""Known sums at the bound, computed on a device before anything counts on it: what a kernel loses, it loses here, in milliseconds.

What lowers precision and is known is switched off or refused by `device.prepare`; this finds the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.exact import grid, hardware, precision, transcendental
from pipeline.exact.errors import Imprecise
from pipeline.exact.optimizers import SGD
from pipeline.exact.reductions import (
    BYTE_TERMS,
    TERMS,
    Convolution,
    ConvolutionOfChannels,
    Matmul,
)
from pipeline.exact.rows import ConvolutionByRows, ConvolutionByTurnedRows, ConvolutionOfBytes

_ODD = 2**grid.OPERAND_BITS - 1
"""An operand whose every bit counts: rounded to fewer bits, it is another number."""
_SLICES = 511 * 2**10 + 511
"""An operand with both slices as large as they may be and not a power of two (rows.SLICE_BITS)."""
_DIGITS = 63 + 63 * 2**7 + 31 * 2**14
"""One with digits as large as they may be and not a power of two (digits.BITS)."""
_BYTE = 255
_LEAST = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 3, 2), (3, 1, 1), (2, 3, 3)]
"""The least sizes of a product, where strides say little: rows of both operands, and what is added."""
_LEAST_KERNELS = [(1, 1, 1, 1, 1), (2, 1, 1, 1, 1), (3, 1, 2, 1, 1), (1, 2, 1, 3, 3), (1, 1, 1, 3, 2)]
"""Those of a convolution: images, channels in and out, sides of an image and of the kernel. One sum is of 1 product, of 2, of 3."""


def check(on: torch.device) -> None:
    """Prove on a device what exact numerics need of its kernels.

    Raises:
        Imprecise: an operation gives other results than exact arithmetic; names it, the device and what is set that may do this.
    """
    with torch.no_grad():
        for operation, results, known in _proofs(on):
            if results.tolist() != known:
                causes = precision.set_from_outside()
                raise Imprecise(
                    f"numerics 'exact': on device '{on}' {operation} gives other results than exact arithmetic does "
                    f"({'set here: ' + ', '.join(causes) if causes else 'no setting known to do this is set'}); "
                    f"{'unset that' if causes else 'use another device'}"
                )


def _proofs(on: torch.device) -> Iterator[tuple[str, Tensor, list[float]]]:
    """For each kind of kernel: its name, what it gives on the device, and the same from Python's integers or IEEE 754 by hand."""

    def float64(*shape: int, value: int = _ODD) -> Tensor:
        return torch.full(shape, float(value), dtype=torch.float64, device=on)

    # the longest that float64 holds, a usual one, an odd one, the least
    for images, outputs, terms in ((1, 2, TERMS), (64, 120, 400), (3, 7, 84), *_LEAST):
        x, w = float64(images, terms), float64(outputs, terms)
        x[0, 0] -= 1  # so not all products are alike
        known = terms * _ODD * _ODD
        g = float64(images, outputs)
        yield "linear in float64", Matmul().forward(x, w)[:1, -1], [known - _ODD]
        yield "linear's input gradient", Matmul().input_gradient(g, w, x.shape)[0, -1:], [outputs * _ODD * _ODD]
        first_two = [images * _ODD**2 - _ODD, images * _ODD**2][:terms]
        yield "linear's weight gradient", Matmul().weight_gradient(g, x, w.shape)[-1, :2], first_two
    forms = [
        ("conv2d over windows", Convolution),
        ("conv2d over rows", ConvolutionByRows),
        ("conv2d over turned rows", ConvolutionByTurnedRows),
    ]
    for form, convolution in forms:
        for images, inputs, outputs, size, kernel in ((2, 6, 16, 14, 5), (3, 6, 16, 14, 5), *_LEAST_KERNELS):
            of_floats, x, w = convolution(terms=TERMS), float64(images, inputs, size, size), float64(outputs, inputs, kernel, kernel)
            g, operand, middle = float64(images, outputs, size - kernel + 1, size - kernel + 1), of_floats.operand(x, w.shape), size // 2
            yield form, of_floats.forward(operand, w)[-1, -1, -1, -1:], [inputs * kernel**2 * _ODD**2]
            meets = 1 + min(middle, kernel - 1, size - kernel, size - 1 - middle)  # so many rows of windows, and columns
            d_x = of_floats.input_gradient(g, w, x.shape)[-1, -1, middle, middle : middle + 1]
            yield f"the input gradient of {form}", d_x, [outputs * meets**2 * _ODD**2]
            d_w = of_floats.weight_gradient(g, operand, w.shape)[-1, -1, -1, -1:]
            yield f"the weight gradient of {form}", d_w, [g[:, 0].numel() * _ODD**2]
    if on.type == hardware.CPU and hardware.multiplies_bytes():
        forms.append(("conv2d by digits", ConvolutionOfBytes))
    for images, inputs, outputs, size, kernel in ((8, 3, 6, 32, 5), (3, 3, 6, 32, 5), *_LEAST_KERNELS):
        pixels = torch.full((images, inputs, size, size), _BYTE, dtype=torch.uint8, device=on)
        pixels[0, -1, -1, -1] -= 1  # so that no sum is even
        for form, convolution in forms:
            of_bytes, w = convolution(terms=BYTE_TERMS), float64(outputs, inputs, kernel, kernel, value=_SLICES)
            g, operand = float64(images, outputs, size - kernel + 1, size - kernel + 1, value=_DIGITS), of_bytes.operand(pixels, w.shape)
            known_float32 = float(np.float32((inputs * kernel**2 * _BYTE - (images == 1)) * _SLICES))
            yield f"{form} of bytes", of_bytes.forward_bytes(operand, w)[-1, -1, -1, -1:].float(), [known_float32]
            (d_w, d_bias), places = of_bytes.gradients(g, operand, w.shape), g[:, 0].numel()
            yield f"the weight gradient of {form} of bytes", d_w[-1, -1, -1, -1:], [(places * _BYTE - 1) * _DIGITS]
            yield f"the bias gradient of {form} of bytes", d_bias[-1:], [places * _DIGITS]
    for matrices, outputs, terms in ((2, 3, TERMS), *_LEAST):
        product = float64(matrices, outputs, terms) @ float64(matrices, outputs + 1, terms).mT
        yield "a product of activations", product[-1, -1], [terms * _ODD**2] * (outputs + 1)
    for images, channels, size, kernel in ((2, 3, 9, 3), (1, 1, 1, 1), (3, 2, 2, 2)):
        for name, convolution in (("conv2d of channels", ConvolutionOfChannels), ("conv2d in groups", Convolution)):
            of_groups, x, w = (
                convolution(terms=TERMS, groups=channels),
                float64(images, channels, size, size),
                float64(channels, 1, kernel, kernel),
            )
            g, operand = float64(images, channels, size - kernel + 1, size - kernel + 1), of_groups.operand(x, w.shape)
            yield name, of_groups.forward(operand, w)[-1, -1, -1, -1:], [kernel**2 * _ODD**2]
            yield f"the input gradient of {name}", of_groups.input_gradient(g, w, x.shape)[-1, -1, 0, :1], [_ODD**2]
            d_w = of_groups.weight_gradient(g, operand, w.shape)[-1, -1, -1, -1:]
            yield f"the weight gradient of {name}", d_w, [g[:, 0].numel() * _ODD**2]
    large = 2**40 - 1
    yield "a sum over the batch", Convolution().bias_gradient(float64(8, 2, 32, 32, value=large)), [8 * 1024 * large] * 2
    yield "a sum over classes", float64(3, 1000, value=large).sum(1), [1000 * large] * 3

    halves = torch.tensor([0.5, 1.5, -0.5, -1.5, 2.5], device=on)
    yield "rounding to integers", halves.round_(), [0, 2, 0, -2, 2]
    ties = torch.tensor([2**24 + 1, 2**24 + 3, -(2**53) + 1], dtype=torch.float64, device=on)
    yield "rounding float64 to float32", ties.float(), [2**24, 2**24 + 4, -(2**53)]
    sticky = torch.tensor([(2**24 + 1) * 2**30, (2**24 + 1) * 2**30 + 1], dtype=torch.int64, device=on)
    yield "rounding int64 to float32", sticky.float(), [2**54, (2**24 + 2) * 2**30]
    small = torch.tensor([2.0**-100], device=on)
    yield "a product that is subnormal", small.mul(2.0**-40).mul_(2.0**100), [2.0**-40]

    # a contraction to one rounding, or a quotient by a reciprocal, gives another last bit in each of these
    for dtype, epsilon in ((torch.float32, 2.0**-20), (torch.float64, 2.0**-40)):
        a = torch.tensor([1 + epsilon], dtype=dtype, device=on)
        yield f"a product and a sum in {dtype}", (a * a).add_(torch.full_like(a, -1)), [2 * epsilon]
    by_255 = torch.tensor([7.0, 29.0, 61.0], device=on).div_(torch.full((), 255.0, device=on))
    yield "a quotient in float32", by_255, [float(np.float32(n) / np.float32(255)) for n in (7, 29, 61)]
    of = grid.choose(torch.tensor([2.0**-40, 0.75, 1.5 * 2.0**127], device=on))
    yield "a grid", torch.cat((of.scale, of.unit)), [2.0**58, 2.0**19, 2.0**-109, 2.0**-58, 2.0**-19, 2.0**109]
    of = grid.choose(torch.tensor([torch.inf, torch.nan], device=on))
    yield "a grid of what is not finite", torch.cat((of.scale, of.unit)).isnan().float(), [1, 1, 1, 1]
    z = torch.tensor([-0.15625, -0.96875], dtype=torch.float64, device=on)
    yield "exp", transcendental.exp(z), [float.fromhex("0x1.b5efd29f24c26p-1"), float.fromhex("0x1.84aaa3b8d51e8p-2")]
    yield "log", transcendental.log(10 / (1 - z)), [float.fromhex("0x1.1425c8c3355c3p+1"), float.fromhex("0x1.a00c3514fda94p+0")]
    weights = torch.zeros(1, device=on)
    sgd = SGD([weights], 0.5, 0.9)
    for gradient in (0.046875, float.fromhex("-0x1.5f15f2p-5")):
        weights.grad = torch.full_like(weights, gradient)
        sgd.step()
    velocity = sgd.state[weights]["momentum_buffer"]
    yield "the update", torch.cat((velocity, weights)), [float.fromhex("-0x1.5f168p-11"), float.fromhex("-0x1.7a83a6p-6")]
