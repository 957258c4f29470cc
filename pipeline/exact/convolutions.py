"""Which way to compute a convolution: all give the same sums, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.exact import hardware
from pipeline.exact.digits import ConvolutionOfBytes
from pipeline.exact.reductions import TERMS, Convolution, ConvolutionByRows, ConvolutionByTurnedRows, Pair


def convolution(stride: Pair, padding: Pair, dilation: Pair, x: Tensor, w: torch.Size, terms: int) -> Convolution:
    """The fastest form for inputs x [N, I, H, W] and weights [O, I, h, w].

    They differ in gradients. On an AMD EPYC (Zen 4) at ed58e72, conv1's and conv2's of 64 images, two threads: of bytes 0.93 ms, by rows
    1.85 and 0.73, by turned rows 3.5 and 1.1. On an Intel Xeon with AVX-512 turned rows are the fastest (docs/performance.md).
    """
    plain = Convolution(stride, padding, dilation, terms)
    short = plain.output_terms(w) <= terms and plain.input_terms(w) <= TERMS and plain.image_terms(x.shape, w) <= terms
    if not short or (stride, padding, dilation) != ((1, 1), (0, 0), (1, 1)):
        return plain
    if hardware.is_cpu(x) and x.dtype == torch.uint8 and hardware.multiplies_bytes():
        return ConvolutionOfBytes(terms=terms)
    return ConvolutionByTurnedRows(terms=terms) if hardware.is_cpu(x) and hardware.is_from_intel() else ConvolutionByRows(terms=terms)
