"""Convolutions whose windows along the height are views: a few large products in place of copied windows.

Tensors have rows outermost and the batch innermost in memory, [H, C, W, N]: `in_lines`. Some rows that follow one another are then one
matrix, and those of the next row of the output overlap it in memory; a step along the width is a step of N numbers: `_bands`. Where the
stride along the width is s, columns s apart stand side by side in memory, so that a step is one of N numbers there too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.exact import digits, hardware, layout
from pipeline.exact.grid import BYTE_BITS, OPERAND_BITS
from pipeline.exact.reductions import Convolution, Operand, Pair

FLOAT32_BITS = 24
"""Integers up to 2^24 are float32s."""
SLICE_BITS = 9
"""Bits of each of two slices of a weight: hi * 2^10 + lo, |hi| and |lo| at most 2^9."""
assert OPERAND_BITS == 2 * SLICE_BITS + 1
GAP = 16
"""Numbers between two lines in memory (`in_lines`). conv1's, of 2^11 numbers, would else lie in the same few places of the caches: without
it a native step takes 1.07 of its time (docs/performance.md)."""
WHOLE = 16
"""Lines that MKL's float32 kernels take at a time: with 15 and 30 in a product in the place of 16 and 32, conv1's and conv2's weight
gradients have half the rate, and a native step takes 1.22 of its time. In float64 it makes no difference."""

FEW = 16
"""Channels of a product that are few."""
BAND_BYTES = 2**19
"""Of a band in float64, at most: what stays in a core's own cache while its products are taken."""
COLUMNS = 256
"""Of a product, at least, where the batch has them: each reads all weights."""

HALF = 2 ** (BYTE_BITS - 1)
"""What a byte is taken less."""
BYTES: int = 2 ** (31 - (BYTE_BITS - 1) - (digits.BITS - 1)) - 1
"""Products of a byte and a digit that int32 holds the sum of."""


class ConvolutionByRows(Convolution):
    """The same for any stride and padding, without dilation and groups, with few copies and larger products, of float64 or float32."""

    def images_at_once(self, x: torch.Size, w: torch.Size) -> int:
        """As the base's."""
        of_an_image = 8 * x[1] * w[2] * (x[3] + 2 * self.padding[1])
        fit = min(128, 1 << (BAND_BYTES // of_an_image).bit_length() - 1) if of_an_image <= BAND_BYTES else 0
        return max(16, fit, COLUMNS // max(1, self.places(x, w)[1]))

    def weight(self, w: Tensor) -> Tensor:
        """W [O, I, h, w] as float64, in the order of memory that `_products` wants."""
        return layout.empty(w.shape, (3, 0, 2, 1), w.new_empty(0, dtype=torch.float64)).copy_(w)

    def operand(self, x: Tensor, w: torch.Size) -> Tensor:
        """X [N, I, H, W] -> its rows [H, I, W, N], padded, in lines, float64; bytes are put in order and stay bytes."""
        rows, (top, left) = x.permute(2, 1, 3, 0), self.padding
        right = self.stride[1] * (self.places(x.shape, w)[1] - 1) + w[3] - left - x.shape[3]  # columns that no window meets are left out
        dtype = x.dtype if x.dtype == torch.uint8 else torch.float64
        return in_lines(rows, dtype, (top, top), (left, right), self.stride[1])

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """X as `operand` gives it, w [O, I, h, w], both of one dtype -> [N, O, H', W']."""
        return _products(x, w, self.stride)

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
        """G [N, O, H', W'], w [O, I, h, w] -> [N, I, H, W].

        Where a row and a column of x fall in a step tells which of w's they meet: each such phase is a convolution of g by stride 1.
        """
        if self.stride == (1, 1) and x_shape[1] < FEW:
            return self._added_by_column(g, w, x_shape)
        down, along = self.stride
        rows, columns = (_phases(x_shape[2 + i], w.shape[2 + i], self.stride[i], self.padding[i]) for i in (0, 1))
        above, left = ((w.shape[2 + i] - 1) // self.stride[i] for i in (0, 1))
        below, right = (max([0, *(phase.last - g.shape[2 + i] for phase in of)]) for i, of in enumerate((rows, columns)))
        lines = in_lines(g.permute(2, 1, 3, 0), w.dtype, (above, below), (left, right))

        def of_phase(row: _Phase, column: _Phase) -> Tensor:
            part = w[:, :, row.place :: down, column.place :: along].flip(2, 3).transpose(0, 1)
            top, start = above + row.first - part.shape[2] + 1, left + column.first - part.shape[3] + 1
            return _products(lines[top : above + row.last, :, start : left + column.last], part)

        if self.stride == (1, 1):
            return of_phase(rows[0], columns[0])
        d_x = w.new_zeros(x_shape[2], x_shape[1], x_shape[3], g.shape[0]).permute(3, 1, 0, 2)
        for row in rows:
            for column in columns:
                d_x[:, :, row.at :: down, column.at :: along] = of_phase(row, column)
        return d_x

    def _added_by_column(self, g: Tensor, w: Tensor, x_shape: torch.Size) -> Tensor:
        """One product for all columns of w, whose sums are added where they belong: products with few channels have half the rate."""
        n, channels, columns, (top, left) = g.shape[0], x_shape[1], g.shape[3], self.padding
        above = w.shape[2] - 1 - top
        rows = in_lines(g.permute(2, 1, 3, 0), w.dtype, (above, above))
        weights = w.flip(2).permute(1, 3, 2, 0).reshape(1, channels * w.shape[3], -1)  # [1, I w, h O]
        sums = weights.expand(x_shape[2], -1, -1).bmm(_bands(rows, (w.shape[2], 1))[0]).view(x_shape[2], channels, w.shape[3], columns, n)
        d_x = w.new_zeros(x_shape[2], channels, x_shape[3] + 2 * left, n)
        for column, of_column in enumerate(sums.unbind(2)):
            d_x[:, :, column : column + columns].add_(of_column)
        return d_x[:, :, left : left + x_shape[3]].permute(3, 1, 0, 2)

    def weight_gradient(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> Tensor:
        """G [N, O, H', W'], x as `operand` gives it -> [O, I, h, w]: a product for each column, as `forward` has it."""
        (channels, inputs, height, width), (n, _, rows, columns) = w_shape, g.shape
        x = in_lines(x, torch.float64) if x.dtype == torch.uint8 else x
        spare = -height * inputs % WHOLE if x.dtype == torch.float32 else 0
        g = g.permute(2, 1, 3, 0).reshape(rows, channels, columns * n).to(x.dtype)  # [H', O, W' N]
        bands = _bands(x, (height, width), self.stride, spare)
        products = torch.stack([g.bmm(band.transpose(1, 2)) for band in bands])  # [w, H', O, h I + spare]
        return products.sum(1).narrow(2, 0, height * inputs).view(width, channels, height, inputs).permute(1, 3, 2, 0)


class ConvolutionOfGroupsByRows(Convolution):
    """The same for groups of channels, one after the other: an operand is a list of theirs."""

    @property
    def of_group(self) -> ConvolutionByRows:
        """What computes one of them."""
        return ConvolutionByRows(self.stride, self.padding, terms=self.terms)

    def images_at_once(self, x: torch.Size, w: torch.Size) -> int:
        """As the base's."""
        return self.of_group.images_at_once(_of_group(x, 1, self.groups), w)

    def operand(self, x: Tensor, w: torch.Size) -> Operand:
        """X [N, I, H, W] -> the rows of each group."""
        of_group = self.of_group
        return [of_group.operand(part, w) for part in x.chunk(self.groups, 1)]

    def forward(self, x: Operand, w: Tensor) -> Tensor:
        """X as `operand` gives it, w [O, I / G, h, w] -> [N, O, H', W']."""
        return _side_by_side([self.of_group.forward(*each) for each in zip(x, w.chunk(self.groups), strict=True)])

    def forward_bytes(self, x: Operand, w: Tensor) -> Tensor:
        """As ConvolutionByRows's."""
        return _side_by_side([self.of_group.forward_bytes(*each) for each in zip(x, w.chunk(self.groups), strict=True)])

    def input_gradient(self, g: Tensor, w: Tensor, x_shape: torch.Size) -> Tensor:
        """G [N, O, H', W'], w [O, I / G, h, w] -> [N, I, H, W]."""
        shape = _of_group(x_shape, 1, self.groups)
        parts = zip(g.chunk(self.groups, 1), w.chunk(self.groups), strict=True)
        return _side_by_side([self.of_group.input_gradient(*each, shape) for each in parts])

    def weight_gradient(self, g: Tensor, x: Operand, w_shape: torch.Size) -> Tensor:
        """G [N, O, H', W'], x as `operand` gives it -> [O, I / G, h, w]."""
        shape = _of_group(w_shape, 0, self.groups)
        return torch.cat([self.of_group.weight_gradient(*each, shape) for each in zip(g.chunk(self.groups, 1), x, strict=True)])


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


class ConvolutionOfBytes(ConvolutionByRows):
    """The same for bytes. Its gradients are one product of copied windows, of a byte an element, with digits of a byte (digits.py)."""

    def gradients(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> tuple[Tensor, Tensor]:
        """G [N, O, H', W'], x as `operand` gives it -> [O, I, h, w] and [O].

        A byte counts as what it is more than HALF. A row of ones beside the windows gives the sums of g: the bias gradient, and what the
        bytes taken less HALF leave out.
        """
        (channels, inputs, height, width), (n, _, rows, columns) = w_shape, g.shape
        places = rows * columns * n
        if not 2 <= places <= BYTES:  # of one place, strides are ambiguous, and _int_mm reads foreign memory
            return super().gradients(g, x, w_shape)
        pixels = x.bitwise_xor(HALF).view(torch.int8)  # [H, I, W, N]
        windows = pixels.new_empty(width * height * inputs + 1, places)
        sizes, (of_row, of_line) = (width, height, inputs, rows, columns * n), pixels.stride()[:2]
        windows[:-1].view(sizes).copy_(pixels.as_strided(sizes, (n, of_row, of_line, of_row, 1)))
        windows[-1] = 1
        of_g = digits.split(g.permute(1, 2, 3, 0)).view(digits.DIGITS * channels, places)
        sums = torch._int_mm(windows, of_g.t()).double()  # [w h I + 1, DIGITS O]
        low, middle, high = sums.view(-1, digits.DIGITS, channels).unbind(1)
        d_w, d_bias = (low + middle * 2**digits.BITS + high * 2 ** (2 * digits.BITS)).split((len(windows) - 1, 1))
        return (d_w + d_bias * HALF).view(width, height, inputs, channels).permute(3, 2, 1, 0), d_bias[0]


def _of_group(shape: torch.Size, axis: int, groups: int) -> torch.Size:
    """The shape of a group's part of what is this large."""
    return torch.Size((*shape[:axis], shape[axis] // groups, *shape[axis + 1 :]))


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """Parts [N, C, H, W], in each of which the batch is innermost in memory, as one [N, G C, H, W] of the kind."""
    n, channels, height, width = parts[0].shape
    return torch.cat(parts, 1, out=layout.empty((n, len(parts) * channels, height, width), (2, 1, 3, 0), parts[0]))


def in_lines(rows: Tensor, dtype: torch.dtype, of_rows: Pair = (0, 0), of_columns: Pair = (0, 0), stride: int = 1) -> Tensor:
    """A copy of rows [H, C, W, N] in lines, as the products want them: a line [W, N] of each channel of each row, with a gap behind it.

    With zeros: so many rows above and below, columns left and right (less than none on the right: those are left out). Columns of a line
    lie in order of their place in a step of `stride`. A few lines of zeros follow in memory (see `_bands`).
    """
    (height, channels, width, n), (above, below), (left, right) = rows.shape, of_rows, of_columns
    count, in_phase = height + above + below, -(-(left + width + right) // stride)
    length = stride * in_phase * n + GAP
    memory = rows.new_empty((count * channels + WHOLE) * length, dtype=dtype)
    memory[: above * channels * length].zero_()
    memory[(above + height) * channels * length :].zero_()
    lines = memory.as_strided((count, channels, stride * in_phase, n), (channels * length, length, n, 1))
    for phase, line in enumerate(lines[above : above + height].unflatten(2, (stride, in_phase)).unbind(2)):
        first = max(0, -(-(left - phase) // stride))
        of_phase = rows[:, :, stride * first + phase - left :: stride][:, :, : in_phase - first]
        last = first + of_phase.shape[2]
        line[:, :, :first].zero_()
        line[:, :, first:last].copy_(of_phase)
        line[:, :, last:].zero_()
    return lines


def _bands(lines: Tensor, kernel: Pair, stride: Pair = (1, 1), spare: int = 0) -> tuple[Tensor, ...]:
    """Rows in lines [H, C, W, N] -> each h of them, `stride` rows apart, as one matrix [H', h C + spare, W' N].

    One such view for each of the w columns that a window may begin at. The matrices overlap in memory, as the views do; `spare` lines
    beyond them, less than WHOLE, are what comes next in memory.
    """
    (rows, channels, width, n), (height, columns), (down, along) = lines.shape, kernel, stride
    in_phase = width // along
    sizes = ((rows - height) // down + 1, height * channels + spare, ((width - columns) // along + 1) * n)
    begin = (lines.storage_offset() + (column % along * in_phase + column // along) * n for column in range(columns))
    return tuple(lines.as_strided(sizes, (down * lines.stride(0), lines.stride(1), 1), first) for first in begin)


def _products(lines: Tensor, w: Tensor, stride: Pair = (1, 1)) -> Tensor:
    """Rows in lines [H, I, W, N], w [O, I, h, w], both of one dtype -> [N, O, H', W'].

    A product for each column of w, over the rows from that column on: nothing is copied.
    """
    channels, _, height, width = w.shape
    first, *others = _bands(lines, (height, width), stride)  # [H', h I, W' N] each
    of_first, *of_others = w.permute(3, 0, 2, 1).reshape(width, 1, channels, -1).expand(-1, len(first), -1, -1).unbind()
    y = of_first.bmm(first)  # [H', O, W' N]
    for of_column, band in zip(of_others, others, strict=True):
        y.baddbmm_(of_column, band)
    return y.view(len(y), channels, (lines.shape[2] - width) // stride[1] + 1, lines.shape[3]).permute(3, 1, 0, 2)


class _Phase(NamedTuple):
    """Rows (or columns) of an input that fall on one place of a step."""

    at: int
    """The first of them."""
    place: int
    """The kernel's first row that meets them; the others follow a step apart."""
    first: int
    last: int
    """Which of the output's rows that row of the kernel meets them from: the first, and one more than the last."""


def _phases(size: int, kernel: int, stride: int, padding: int) -> list[_Phase]:
    """Those of so many rows that a kernel meets."""
    phases = []
    for place in range(min(stride, kernel)):
        if (at := (place - padding) % stride) < size:
            first = (at + padding - place) // stride
            phases.append(_Phase(at, place, first, first + -(-(size - at) // stride)))
    return phases
