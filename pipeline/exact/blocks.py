"""Functions of many passes over memory, a part of their tensors after the other, so that it stays in a CPU's caches: the same bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.exact import hardware, layout

BLOCK = 2**18
"""Numbers of a part: 2 MB in float64, which the cores share."""


def are_worth_it(x: Tensor) -> bool:
    """Whether a tensor is much larger than a part, on a CPU."""
    return x.numel() > 2 * BLOCK and hardware.is_cpu(x)


def elementwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What `function` gives for each element of x, float32, rounded to that once."""
    if are_worth_it(x):
        axes = layout.order(x)
        flat = x.permute(axes)
        if flat.is_contiguous():
            y = torch.empty_like(x)
            for part, of_part in zip(flat.view(-1).split(BLOCK), y.permute(axes).view(-1).split(BLOCK), strict=True):
                of_part.copy_(function(part))
            return y
    return function(x).float()


def by_rows(function: Callable[..., Tensor], *tensors: Tensor, apart: bool = True) -> Tensor:
    """What `function` gives for tensors [N, ...] of N rows each, float32 [N, ...]; `apart`: each depends on its own rows alone."""
    x = tensors[0]
    if not apart or not hardware.is_cpu(x):
        return function(*tensors).float()
    at_once = max(1, BLOCK * len(x) // max(1, x.numel()))
    if at_once >= len(x):
        return function(*tensors).float()
    y = torch.empty_like(x)
    for parts in zip(y.split(at_once), *(each.split(at_once) for each in tensors), strict=True):
        parts[0].copy_(function(*parts[1:]))
    return y
