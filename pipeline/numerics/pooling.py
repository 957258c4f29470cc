"""The exact form of max-pooling: comparisons, and one rule for which of equal maxima the gradient goes to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.numerics import tiles
from pipeline.numerics.tape import Tape, refusal


def max_pool2d(tape: Tape, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """The exact form of torch.nn.functional.max_pool2d for square tiles that do not overlap. Raises UserError for others and bytes."""
    tape.input(x, "max_pool2d")
    k = tiles.square(*arguments, **named)
    if k is None:
        raise refusal("max_pool2d with overlapping, padded or oblong windows, ceil_mode or indices", "square windows with stride = size")
    if x.dtype != torch.float32 or x.dim() != 4:
        raise refusal(f"max_pool2d of {x.dtype}, {x.dim()} dimensions", "float32, 4")
    y, places = tiles.maxima(x, k)
    return tape.record(y, (x,), lambda g: (tiles.spread(g, x, places, y),))
