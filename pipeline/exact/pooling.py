"""The exact form of max-pooling: comparisons, and one rule for which of equal maxima the gradient goes to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.exact import tiles
from pipeline.exact.elementwise import Rectified, rectified
from pipeline.exact.errors import refusal
from pipeline.exact.later import Later
from pipeline.exact.tape import Tape


def max_pool2d(tape: Tape, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """The exact form of torch.nn.functional.max_pool2d for square tiles that do not overlap. Raises Unsupported for others and bytes."""
    k = tiles.square(*arguments, **named)
    if k is None:
        raise refusal("max_pool2d with overlapping, padded or oblong windows, ceil_mode or indices", "square windows with stride = size")
    x = tape.current(x, "max_pool2d")
    if x.dim() == 4 and k > min(x.shape[2:]):
        raise refusal(f"max_pool2d with windows of {k} on images of {tuple(x.shape[2:])}", "windows that the images hold")
    if x.dtype != torch.float32 or x.dim() != 4:
        raise refusal(f"max_pool2d of {x.dtype}, {x.dim()} dimensions", "float32, 4")
    later = Later.of(x)
    if isinstance(later, Rectified) and later.value is None:
        return _of_rectified(tape, x, later, k)
    x = tape.input(x, "max_pool2d")
    y, places = tiles.maxima(x, k)
    return tape.record(y, (x,), lambda g: (tiles.spread(g, x, places, y),))


def _of_rectified(tape: Tape, x: Tensor, relu: Rectified, k: int) -> Tensor:
    """The same after a ReLU that was not computed yet: the maxima are rectified, a fraction of the elements.

    The bits are equal: where a tile's maximum is positive, its places are the same before and after ReLU; elsewhere the gradient is 0.
    """
    maxima, places = tiles.maxima(relu.source, k)
    y = torch.relu(maxima)

    def backward(g: Tensor) -> tuple[Tensor]:
        relu.rectified_gradient = tiles.spread(rectified(g, y), relu.source, places, maxima)
        return (relu.rectified_gradient,)

    return tape.record(y, (x,), backward)
