"""Exact sums of products: integers in, integers out, in float64 unless a bound shows that float32 holds them or that int64 must.

Since no partial sum rounds, every way of computing them gives the same bits. So convolution has several: a plain one for any
stride, padding, dilation and size, which the tests take as the reference, and faster ones for where they apply (convolutions.py).

Every operation takes its input in two steps: `operand` arranges it once, and the products of both directions use that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.exact import digits, hardware, layout
from pipeline.exact.grid import BYTE_BITS, FLOAT64_BITS, OPERAND_BITS

TERMS: int = 2 ** (FLOAT64_BITS - 2 * OPERAND_BITS)
"""Products of two operands that a float64 holds the sum of, in any order."""
BYTE_TERMS: int = 2 ** (FLOAT64_BITS - OPERAND_BITS - BYTE_BITS)
"""The same where one operand is a byte."""

Pair = tuple[int, int]

Operand = Any
"""An input as an operation arranged it for its products: a tensor, or several."""


@dataclass(frozen=True)
class Matmul:
    """y[n, o] = sum_i x[n, i] w[o, i], as torch.nn.functional.linear; results have the batch innermost in memory."""

    terms: int = TERMS
    """Products of an input and another operand that are added in float64; more are added in parts, those in int64."""
    name = "linear"

    def images_at_once(self, x: torch.Size, w: torch.Size) -> int:
        """Of a larger batch so many at a time, which stay in the caches."""
        return 1024

    def inputs(self, w: torch.Size) -> int:
        """Features of an input that a weight of this shape fits."""
        return w[1]

    def output_terms(self, w: torch.Size) -> int:
        """Products a sum of `forward`, from the weight's shape."""
        return w[1]

    def input_terms(self, w: torch.Size) -> int:
        """Products a sum of `input_gradient`, at most."""
        return w[0]

    def image_terms(self, x: torch.Size, w: torch.Size) -> int:
        """Products of one image in a sum of `weight_gradient`."""
        return 1

    def weight(self, w: Tensor) -> Tensor:
        """W [O, I] as float64."""
        return w.double()

    def operand(self, x: Tensor, w: torch.Size) -> Tensor:
        """X [N, I] as float64."""
        return x.double()

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """X [N, I], w [O, I] -> [N, O]."""
        return _product(w, x.t(), self.terms).t()

    def forward_bytes(self, x: Tensor, w: Tensor) -> Tensor:
        """The same with x from bytes."""
        return self.forward(x, w)

    def input_gradient(self, g: Tensor, w: Tensor, x_shape: torch.Size) -> Tensor:
        """G [N, O], w [O, I] -> [N, I]."""
        return _product(w.t(), g.t().double(), TERMS).t()

    def weight_gradient(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> Tensor:
        """G [N, O], x [N, I] -> [O, I]."""
        return _product(g.t().double(), x, self.terms)

    def bias_gradient(self, g: Tensor) -> Tensor:
        """G [N, O] -> [O]."""
        return g.sum(0)

    def gradients(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Those of weight and bias from one g."""
        g = g.double()
        return self.weight_gradient(g, x, w_shape), self.bias_gradient(g)


@dataclass(frozen=True)
class Convolution:
    """y[n, o, p] = sum_{i, k} x[n, i, stride p + dilation k - padding] w[o, i, k], as torch.nn.functional.conv2d, in groups of channels.

    Each product over copied windows: plain, and the reference.
    """

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    terms: int = TERMS
    groups: int = 1
    name = "conv2d"

    def images_at_once(self, x: torch.Size, w: torch.Size) -> int:
        """Of a larger batch so many at a time, which stay in the caches."""
        return 128

    def inputs(self, w: torch.Size) -> int:
        """Channels of an input that a weight of this shape fits."""
        return w[1] * self.groups

    def output_terms(self, w: torch.Size) -> int:
        """Products a sum of `forward`, from the weight's shape."""
        return w[1:].numel()

    def input_terms(self, w: torch.Size) -> int:
        """Products a sum of `input_gradient`, at most."""
        return w[0] // self.groups * w[2:].numel()

    def image_terms(self, x: torch.Size, w: torch.Size) -> int:
        """Products of one image in a sum of `weight_gradient`: the places of the output."""
        height, width = self.places(x, w)
        return max(height, 0) * max(width, 0)

    def places(self, x: torch.Size, w: torch.Size) -> Pair:
        """Height and width of the output."""
        reach = [self.dilation[i] * (w[2 + i] - 1) + 1 for i in (0, 1)]
        height, width = ((x[2 + i] + 2 * self.padding[i] - reach[i]) // self.stride[i] + 1 for i in (0, 1))
        return height, width

    def weight(self, w: Tensor) -> Tensor:
        """W [O, I / G, h, w] as float64."""
        return w.double()

    def operand(self, x: Tensor, w: torch.Size) -> Operand:
        """X [N, I, H, W] -> the windows of each group, float64 [G, N, H', W', I / G h w]."""
        x = layout.pad(x.double(), (self.padding[1],) * 2 + (self.padding[0],) * 2)
        reach = [self.dilation[i] * (w[2 + i] - 1) + 1 for i in (0, 1)]
        windows = x.unfold(2, reach[0], self.stride[0]).unfold(3, reach[1], self.stride[1])[..., :: self.dilation[0], :: self.dilation[1]]
        of_groups: Tensor = windows.unflatten(1, (self.groups, w[1])).permute(1, 0, 3, 4, 2, 5, 6)
        return of_groups.reshape(*of_groups.shape[:4], w[1:].numel())

    def forward(self, x: Operand, w: Tensor) -> Tensor:
        """X as `operand` gives it, w [O, I / G, h, w] -> [N, O, H', W']."""
        sums = _product(x.flatten(1, 3), w.flatten(1).unflatten(0, (self.groups, -1)).mT, self.terms)  # [G, N H' W', O / G]
        return sums.view(*x.shape[:4], len(w) // self.groups).permute(1, 0, 4, 2, 3).flatten(1, 2)

    def forward_bytes(self, x: Operand, w: Tensor) -> Tensor:
        """`forward` for x from bytes and w of at most OPERAND_BITS bits; may return float32: rounded once already."""
        return self.forward(x, w)

    def input_gradient(self, g: Tensor, w: Tensor, x_shape: torch.Size) -> Tensor:
        """G [N, O, H', W'], w [O, I / G, h, w] -> [N, I, H, W]."""

        def of_channels(g: Tensor, w: Tensor) -> Tensor:
            columns = _product(g.flatten(1, 3).double(), w.flatten(2), TERMS)  # [G, N H' W', I / G h w]
            columns = columns.unflatten(1, (g.shape[1], g.shape[2:4].numel())).permute(1, 0, 3, 2).flatten(1, 2)
            sums: Tensor = F.fold(columns, x_shape[2:], w.shape[3:], self.dilation, self.padding, self.stride)
            return sums

        g = g.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 4, 2)  # [G, N, H', W', O / G]
        w = w.unflatten(0, (self.groups, -1))
        channels = max(1, TERMS // w.shape[3:].numel())
        return _added([of_channels(*part) for part in zip(torch.split(g, channels, -1), torch.split(w, channels, 1), strict=True)])

    def weight_gradient(self, g: Tensor, x: Operand, w_shape: torch.Size) -> Tensor:
        """G [N, O, H', W'], x as `operand` gives it -> [O, I / G, h, w]."""
        g = g.unflatten(1, (self.groups, -1)).permute(1, 2, 0, 3, 4).flatten(2).double()  # [G, O / G, N H' W']
        return _product(g, x.flatten(1, 3), self.terms).view(w_shape)

    def bias_gradient(self, g: Tensor) -> Tensor:
        """G [N, O, H', W'] -> [O]."""
        return g.sum((0, 2, 3))

    def gradients(self, g: Tensor, x: Operand, w_shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Those of weight and bias from one g."""
        g = g.double()
        return self.weight_gradient(g, x, w_shape), self.bias_gradient(g)


class ConvolutionOfChannels(Convolution):
    """The same where every channel is a group of its own: a multiplication and an addition a place of the kernel, without windows.

    They may be one kernel, contracted or not: products and sums of these integers are exact.
    """

    def operand(self, x: Tensor, w: torch.Size) -> Tensor:
        """X [N, I, H, W] -> padded, float64, the batch where it lies in memory."""
        return layout.pad(x.double(), (self.padding[1],) * 2 + (self.padding[0],) * 2)

    def _at(self, x: Tensor, w: torch.Size, places: Sequence[int]) -> list[tuple[int, int, Tensor]]:
        """What each place of the kernel meets in padded x, views [N, C, H', W']."""
        return [
            (i, j, x[:, :, i * self.dilation[0] :: self.stride[0], j * self.dilation[1] :: self.stride[1]][:, :, : places[0], : places[1]])
            for i in range(w[2]) for j in range(w[3])
        ]  # fmt: skip

    def _out(self, x: Tensor, w: torch.Size) -> Pair:
        height, width = ((x.shape[2 + i] - self.dilation[i] * (w[2 + i] - 1) - 1) // self.stride[i] + 1 for i in (0, 1))
        return height, width

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """X as `operand` gives it, w [C, 1, h, w] -> [N, C, H', W']."""
        places = self._out(x, w.shape)
        y = layout.empty((*x.shape[:2], *places), layout.order(x), w)
        for some in hardware.channels_at_once(x):
            of_some = y[:, some]
            for number, (i, j, part) in enumerate(self._at(x[:, some], w.shape, places)):
                factor = w[some, :, i, j].unsqueeze(2)
                of_some = of_some.addcmul_(part, factor) if number else torch.mul(part, factor, out=of_some)
        return y

    def input_gradient(self, g: Tensor, w: Tensor, x_shape: torch.Size) -> Tensor:
        """G [N, C, H', W'], w [C, 1, h, w] -> [N, C, H, W]."""
        height, width = x_shape[2] + 2 * self.padding[0], x_shape[3] + 2 * self.padding[1]
        d_x = layout.empty((g.shape[0], g.shape[1], height, width), layout.order(g), w).zero_()
        for some in hardware.channels_at_once(g):
            of_some = g[:, some].double()
            for i, j, part in self._at(d_x[:, some], w.shape, (g.shape[2], g.shape[3])):
                part.addcmul_(of_some, w[some, :, i, j].unsqueeze(2))
        return d_x[:, :, self.padding[0] : height - self.padding[0], self.padding[1] : width - self.padding[1]]

    def weight_gradient(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> Tensor:
        """G [N, C, H', W'], x as `operand` gives it -> [C, 1, h, w]."""
        sums = []
        for some in hardware.channels_at_once(g):
            of_some = g[:, some].double()
            sums.append(torch.stack([(part * of_some).sum((0, 2, 3)) for _, _, part in self._at(x[:, some], w_shape, g.shape[2:])], 1))
        return torch.cat(sums).view(w_shape)


def _product(a: Tensor, b: Tensor, terms: int) -> Tensor:
    """A [..., M, K] @ b [..., K, P] in float64; where K is more than `terms`, parts of so many are added in int64.

    By digits where that is faster, but for several products: each would be some calls.
    """
    if hardware.multiplies_by_digits(a) and a.shape[:-2].numel() == 1:
        sums = digits.product(a.reshape(a.shape[-2:]), b.reshape(b.shape[-2:])).view(*a.shape[:-1], b.shape[-1])
        return sums if a.shape[-1] > terms else sums.double()
    if a.shape[-1] <= terms:
        return a @ b
    return _added([x @ y for x, y in zip(torch.split(a, terms, -1), torch.split(b, terms, -2), strict=True)])


def _added(parts: list[Tensor]) -> Tensor:
    """The sum of float64 integers that each are exact: one as it is, several in int64."""
    return parts[0] if len(parts) == 1 else torch.stack([part.long() for part in parts]).sum(0)
