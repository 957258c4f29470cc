"""Exact sums of products: integers in, integers out, in float64 unless a bound shows that float32 holds them or that int64 must.

Since no partial sum rounds, every way of computing them gives the same bits. So convolution has several: a plain one for any
stride, padding, dilation and size, which the tests take as the reference, and faster ones for where they apply (convolutions.py).

Every operation takes its input in two steps: `operand` arranges it once, and the products of both directions use that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.exact import hardware
from pipeline.exact.grid import BYTE_BITS, FLOAT64_BITS, OPERAND_BITS

FLOAT32_BITS = 24
"""Integers up to 2^24 are float32s."""
SLICE_BITS = 9
"""Bits of each of two slices of a weight: hi * 2^10 + lo, |hi| and |lo| at most 2^9."""
assert OPERAND_BITS == 2 * SLICE_BITS + 1
TERMS: int = 2 ** (FLOAT64_BITS - 2 * OPERAND_BITS)
"""Products of two operands that a float64 holds the sum of, in any order."""
BYTE_TERMS: int = 2 ** (FLOAT64_BITS - OPERAND_BITS - BYTE_BITS)
"""The same where one operand is a byte."""

GAP = 16
"""Numbers between two lines in memory (`in_lines`). conv1's, of 2^11 numbers, would else lie in the same few places of the caches: without
it a native step takes 1.07 of its time (docs/performance.md)."""
WHOLE = 16
"""Lines that MKL's float32 kernels take at a time: with 15 and 30 in a product in the place of 16 and 32, conv1's and conv2's weight
gradients have half the rate, and a native step takes 1.22 of its time. In float64 it makes no difference."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Matmul:
    """y[n, o] = sum_i x[n, i] w[o, i], as torch.nn.functional.linear; results have the batch innermost in memory."""

    terms: int = TERMS
    """Products of an input and another operand that are added in float64; more are added in parts, those in int64."""
    name = "linear"
    images_at_once = 1024
    """Of a larger batch so many at a time, which stay in the caches."""

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
    images_at_once = 128

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

    def operand(self, x: Tensor, w: torch.Size) -> Tensor:
        """X [N, I, H, W] -> the windows of each group, float64 [G, N, H', W', I / G h w]."""
        x = F.pad(x.double(), (self.padding[1],) * 2 + (self.padding[0],) * 2)
        reach = [self.dilation[i] * (w[2 + i] - 1) + 1 for i in (0, 1)]
        windows = x.unfold(2, reach[0], self.stride[0]).unfold(3, reach[1], self.stride[1])[..., :: self.dilation[0], :: self.dilation[1]]
        of_groups: Tensor = windows.unflatten(1, (self.groups, w[1])).permute(1, 0, 3, 4, 2, 5, 6)
        return of_groups.reshape(*of_groups.shape[:4], w[1:].numel())

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """X as `operand` gives it, w [O, I / G, h, w] -> [N, O, H', W']."""
        sums = _product(x.flatten(1, 3), w.flatten(1).unflatten(0, (self.groups, -1)).mT, self.terms)  # [G, N H' W', O / G]
        return sums.view(*x.shape[:4], len(w) // self.groups).permute(1, 0, 4, 2, 3).flatten(1, 2)

    def forward_bytes(self, x: Tensor, w: Tensor) -> Tensor:
        """`forward` for x from bytes and w of at most OPERAND_BITS bits; may return float32: rounded once already."""
        return self.forward(x, w)

    def input_gradient(self, g: Tensor, w: Tensor, x_shape: torch.Size) -> Tensor:
        """G [N, O, H', W'], w [O, I / G, h, w] -> [N, I, H, W]."""

        def of_channels(g: Tensor, w: Tensor) -> Tensor:
            columns = g.flatten(3).mT.double() @ w.flatten(2)  # [N, G, H' W', I / G h w]
            sums: Tensor = F.fold(columns.mT.flatten(1, 2), x_shape[2:], w.shape[3:], self.dilation, self.padding, self.stride)
            return sums

        g, w = g.unflatten(1, (self.groups, -1)), w.unflatten(0, (self.groups, -1))
        channels = max(1, TERMS // w.shape[3:].numel())
        return _added([of_channels(*part) for part in zip(torch.split(g, channels, 2), torch.split(w, channels, 1), strict=True)])

    def weight_gradient(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> Tensor:
        """G [N, O, H', W'], x as `operand` gives it -> [O, I / G, h, w]."""
        g = g.unflatten(1, (self.groups, -1)).permute(1, 2, 0, 3, 4).flatten(2).double()  # [G, O / G, N H' W']
        return _product(g, x.flatten(1, 3), self.terms).view(w_shape)

    def bias_gradient(self, g: Tensor) -> Tensor:
        """G [N, O, H', W'] -> [O]."""
        return g.sum((0, 2, 3))

    def gradients(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Those of weight and bias from one g."""
        g = g.double()
        return self.weight_gradient(g, x, w_shape), self.bias_gradient(g)


class ConvolutionByRows(Convolution):
    """The same for stride 1 without dilation and groups, with few copies and larger products, of float64 or float32.

    All tensors have rows outermost and the batch innermost in memory: [H, C, W, N]. Windows along the height are then
    overlapping views: `_bands`; a step along the width is a step of N numbers. A product takes one row of the output.
    """

    def operand(self, x: Tensor, w: torch.Size) -> Tensor:
        """X [N, I, H, W] -> its rows [H, I, W, N], padded, in lines, float64; bytes are put in order and stay bytes."""
        rows = x.permute(2, 1, 3, 0)
        if x.dtype == torch.uint8:
            return F.pad(rows, (0, 0, *(self.padding[1],) * 2, 0, 0, *(self.padding[0],) * 2)).contiguous()
        return in_lines(rows, torch.float64, self.padding)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """X as `operand` gives it, w [O, I, h, w], both of one dtype -> [N, O, H', W'].

        A product for each column of w, over the rows from that column on: nothing is copied.
        """
        (channels, _, height, width), (rows, _, columns, n) = w.shape, x.shape
        rows, columns = rows - height + 1, columns - width + 1  # of y
        bands = _bands(x, height, width)  # [H', h I, W' N] each
        first, *others = w.permute(3, 0, 2, 1).reshape(width, 1, channels, -1).expand(-1, rows, -1, -1).unbind()
        y = first.bmm(bands[0])  # [H', O, W' N]
        for of_column, band in zip(others, bands[1:], strict=True):
            y.baddbmm_(of_column, band)
        return y.view(rows, channels, columns, n).permute(3, 1, 0, 2)

    def forward_bytes(self, x: Tensor, w: Tensor) -> Tensor:
        """`forward` for bytes and w of at most OPERAND_BITS bits; may return float32: rounded once already.

        Where the bound allows it, two float32 convolutions in one, each exact: w = hi * 2^10 + lo, stacked along the output
        channels. The sums of both stay within 2^24; the last addition rounds once (the product with 2^10 is exact, so
        whether it is fused does not matter).
        """
        if not hardware.is_cpu(x) or w[0].numel() << (BYTE_BITS + SLICE_BITS) > 1 << FLOAT32_BITS:
            return self.forward(in_lines(x, torch.float64), w)
        hi = (w * 2.0 ** -(SLICE_BITS + 1)).round_()
        both = self.forward(in_lines(x, torch.float32), torch.cat((hi, w - hi * 2.0 ** (SLICE_BITS + 1))).float())
        return torch.add(both[:, len(w) :], both[:, : len(w)], alpha=2 ** (SLICE_BITS + 1))

    def input_gradient(self, g: Tensor, w: Tensor, x_shape: torch.Size) -> Tensor:
        """G [N, O, H', W'], w [O, I, h, w] -> [N, I, H, W]."""
        n, channels, columns = g.shape[0], x_shape[1], g.shape[3]
        height, width = x_shape[2] + 2 * self.padding[0], x_shape[3] + 2 * self.padding[1]
        margin = w.shape[2] - 1
        rows = w.new_empty(height + margin, w.shape[0], columns, n)
        rows[:margin].zero_()
        rows[margin:height] = g.permute(2, 1, 3, 0)
        rows[height:].zero_()
        if self.padding[0]:  # rows of the padding need no gradient
            rows, height = rows[self.padding[0] : len(rows) - self.padding[0]], x_shape[2]
        weights = w.flip(2).permute(1, 3, 2, 0).reshape(1, channels * w.shape[3], -1)  # [1, I w, h O]
        sums = weights.expand(height, -1, -1).bmm(_bands(rows, w.shape[2], 1)[0]).view(height, channels, w.shape[3], columns, n)
        d_x = w.new_zeros(height, channels, width, n)
        for column, of_column in enumerate(sums.unbind(2)):
            d_x[:, :, column : column + columns].add_(of_column)
        return d_x[:, :, self.padding[1] : width - self.padding[1]].permute(3, 1, 0, 2)

    def weight_gradient(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> Tensor:
        """G [N, O, H', W'], x as `operand` gives it -> [O, I, h, w]: a product for each column, as `forward` has it."""
        (channels, inputs, height, width), (n, _, rows, columns) = w_shape, g.shape
        x = in_lines(x, torch.float64) if x.dtype == torch.uint8 else x
        spare = -height * inputs % WHOLE if x.dtype == torch.float32 else 0
        g = g.permute(2, 1, 3, 0).reshape(rows, channels, columns * n).to(x.dtype)  # [H', O, W' N]
        products = torch.stack([g.bmm(band.transpose(1, 2)) for band in _bands(x, height, width, spare)])  # [w, H', O, h I + spare]
        return products.sum(1).narrow(2, 0, height * inputs).view(width, channels, height, inputs).permute(1, 3, 2, 0)


class ConvolutionByTurnedRows(ConvolutionByRows):
    """The same, but weight gradients in float64 of inputs whose rows and channels are innermost in memory."""

    def weight_gradient(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> Tensor:
        """G [N, O, H', W'], x as `operand` gives it -> [O, I, h, w]."""
        (channels, inputs, height, width), (n, _, rows, columns) = w_shape, g.shape
        turned = x.new_empty([x.shape[dim] for dim in (2, 3, 0, 1)], dtype=torch.float64)  # [W, N, H, I]
        turned.copy_(x.permute(2, 3, 0, 1))
        line = turned.stride(1)
        sizes = (width, rows, columns * n, height * inputs)  # of overlapping views, as `_bands` has them
        bands = turned.as_strided(sizes, (n * line, inputs, line, 1)).unbind()  # [H', W' N, h I] each
        g = g.permute(2, 1, 3, 0).reshape(rows, channels, columns * n).double()  # [H', O, W' N]
        products = torch.stack([g.bmm(band) for band in bands])  # [w, H', O, h I]
        return products.sum(1).view(width, channels, height, inputs).permute(1, 3, 2, 0)


class ConvolutionOfChannels(Convolution):
    """The same where every channel is a group of its own: a multiplication and an addition a place of the kernel, without windows."""

    def operand(self, x: Tensor, w: torch.Size) -> Tensor:
        """X [N, I, H, W] -> padded, float64, the batch where it lies in memory."""
        return F.pad(x.double(), (self.padding[1],) * 2 + (self.padding[0],) * 2)

    def _at(self, x: Tensor, w: torch.Size, places: Pair) -> list[tuple[int, int, Tensor]]:
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
        y: Tensor | None = None
        for i, j, part in self._at(x, w.shape, self._out(x, w.shape)):
            product = part * w[:, :, i, j].unsqueeze(2)
            y = product if y is None else y.add_(product)
        assert y is not None
        return y

    def input_gradient(self, g: Tensor, w: Tensor, x_shape: torch.Size) -> Tensor:
        """G [N, C, H', W'], w [C, 1, h, w] -> [N, C, H, W]."""
        height, width = x_shape[2] + 2 * self.padding[0], x_shape[3] + 2 * self.padding[1]
        order = sorted(range(4), key=g.stride, reverse=True)  # as g lies in memory
        sizes = (g.shape[0], g.shape[1], height, width)
        d_x = w.new_zeros([sizes[i] for i in order]).permute([order.index(i) for i in range(4)])
        g = g.double()
        for i, j, part in self._at(d_x, w.shape, (g.shape[2], g.shape[3])):
            part.add_(g * w[:, :, i, j].unsqueeze(2))
        return d_x[:, :, self.padding[0] : height - self.padding[0], self.padding[1] : width - self.padding[1]]

    def weight_gradient(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> Tensor:
        """G [N, C, H', W'], x as `operand` gives it -> [C, 1, h, w]."""
        g = g.double()
        sums = [(part * g).sum((0, 2, 3)) for _, _, part in self._at(x, w_shape, (g.shape[2], g.shape[3]))]
        return torch.stack(sums, 1).view(w_shape)


def _product(a: Tensor, b: Tensor, terms: int) -> Tensor:
    """A [..., M, K] @ b [..., K, P] in float64; where K is more than `terms`, parts of so many are added in int64."""
    if a.shape[-1] <= terms:
        return a @ b
    return _added([x @ y for x, y in zip(torch.split(a, terms, -1), torch.split(b, terms, -2), strict=True)])


def _added(parts: list[Tensor]) -> Tensor:
    """The sum of float64 integers that each are exact: one as it is, several in int64."""
    return parts[0] if len(parts) == 1 else torch.stack([part.long() for part in parts]).sum(0)


def in_lines(rows: Tensor, dtype: torch.dtype, padding: Pair = (0, 0)) -> Tensor:
    """A copy of rows [H, C, W, N] in lines, as the products want them: a line [W, N] of each channel of each row, with a gap behind it.

    With `padding` rows of zeros above and below, and columns left and right. A few lines of zeros follow in memory (see `_bands`).
    """
    height, width = padding
    (count, channels, columns, n) = rows.shape[0] + 2 * height, rows.shape[1], rows.shape[2] + 2 * width, rows.shape[3]
    length = columns * n + GAP
    memory = rows.new_empty((count * channels + WHOLE) * length, dtype=dtype)
    (memory if height or width else memory[count * channels * length :]).zero_()
    lines = memory.as_strided((count, channels, columns, n), (channels * length, length, n, 1))
    (lines[height : count - height, :, width : columns - width] if height or width else lines).copy_(rows)
    return lines


def _bands(lines: Tensor, height: int, columns: int, spare: int = 0) -> tuple[Tensor, ...]:
    """Rows in lines [H, C, W, N] -> each `height` of them that follow one another as one matrix, [H', height C + spare, W' N].

    One such view for each of the `columns` that the W' = W - columns + 1 may begin at. The matrices overlap in memory, as the views do;
    `spare` lines beyond them, less than WHOLE, are what comes next in memory.
    """
    count, channels, width, n = lines.shape
    sizes = (columns, count - height + 1, height * channels + spare, (width - columns + 1) * n)
    return lines.as_strided(sizes, (n, lines.stride(0), lines.stride(1), 1)).unbind()
