"""Which way to compute a convolution: all give the same sums, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.exact import hardware
from pipeline.exact.reductions import TERMS, Convolution, ConvolutionOfChannels, Pair
from pipeline.exact.rows import ConvolutionByRows, ConvolutionByTurnedRows, ConvolutionOfBytes, ConvolutionOfGroupsByRows


def convolution(stride: Pair, padding: Pair, dilation: Pair, groups: int, x: Tensor, w: torch.Size, terms: int) -> Convolution:
    """The fastest form for inputs x [N, I, H, W] and weights [O, I / groups, h, w].

    They differ in gradients. On an AMD EPYC (Zen 4) at ed58e72, conv1's and conv2's of 64 images, two threads: of bytes 0.93 ms, by rows
    1.85 and 0.73, by turned rows 3.5 and 1.1. On an Intel Xeon with AVX-512 turned rows are the fastest (docs/performance.md).
    """
    plain = Convolution(stride, padding, dilation, terms, groups)
    short = plain.output_terms(w) <= terms and plain.input_terms(w) <= TERMS and plain.image_terms(x.shape, w) <= terms
    if short and groups == x.shape[1] == w[0] and w[1] == 1:
        return ConvolutionOfChannels(stride, padding, dilation, terms, groups)
    if not short or dilation != (1, 1) or not all(p < k for p, k in zip(padding, w[2:], strict=True)):
        return plain
    if groups != 1:  # of few images, or many groups, calls take longer than copies of windows (docs/performance.md)
        by_rows = x.shape[0] >= 16 and groups <= 64
        return ConvolutionOfGroupsByRows(stride, padding, terms=terms, groups=groups) if by_rows else plain
    if hardware.multiplies_by_digits(x):  # two large matrices
        return plain
    if stride != (1, 1):
        return ConvolutionByRows(stride, padding, terms=terms)
    if x.dtype == torch.uint8 and hardware.is_cpu(x) and hardware.multiplies_bytes() and padding == (0, 0):
        return ConvolutionOfBytes(padding=padding, terms=terms)
    turned = hardware.is_cpu(x) and hardware.is_from_intel()
    return (ConvolutionByTurnedRows if turned else ConvolutionByRows)(padding=padding, terms=terms)
