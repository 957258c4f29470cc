"""Which way to compute a convolution: all give the same sums, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline import device
from pipeline.numerics.digits import ConvolutionOfBytes
from pipeline.numerics.reductions import TERMS, Convolution, ConvolutionByRows, Pair


def convolution(stride: Pair, padding: Pair, dilation: Pair, x: Tensor, w: torch.Size, terms: int) -> Convolution:
    """The fastest form for inputs [N, I, H, W] and weights [O, I, h, w]."""
    plain = Convolution(stride, padding, dilation, terms)
    short = plain.output_terms(w) <= terms and plain.input_terms(w) <= TERMS and plain.image_terms(x.shape, w) <= terms
    if not short or (stride, padding, dilation) != ((1, 1), (0, 0), (1, 1)):
        return plain
    by_digits = x.dtype == torch.uint8 and device.is_cpu(x) and device.multiplies_bytes()
    return (ConvolutionOfBytes if by_digits else ConvolutionByRows)(terms=terms)
