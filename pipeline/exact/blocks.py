"""Functions of many passes over memory, a part of their tensors after the other, so that it stays in a CPU's caches: the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.exact import hardware, layout

BLOCK = 2**16
"""Numbers of a part for each thread: half a megabyte in float64, of which some fit a core's own cache."""


def size() -> int:
    """Numbers of a part, which the threads share."""
    return BLOCK * torch.get_num_threads()


def are_worth_it(x: Tensor) -> bool:
    """Whether a tensor is much larger than a part, on a CPU."""
    return x.numel() > 2 * size() and hardware.is_cpu(x)


def elementwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What `function` gives for each element of x, float32, rounded to that once."""
    return several(lambda part: (function(part),), x)[0]


def several(function: Callable[[Tensor], Sequence[Tensor]], x: Tensor) -> list[Tensor]:
    """The tensors that `function` gives for each element of x, float32, rounded to that once."""
    axes = layout.order(x)
    flat = x.permute(axes)
    if not are_worth_it(x) or not flat.is_contiguous():
        return [y.float() for y in function(x)]
    results: list[Tensor] = []
    first = 0
    for part in flat.view(-1).split(size()):
        given = function(part)
        results = results or [torch.empty_like(x) for _ in given]
        for y, of_part in zip(results, given, strict=True):
            y.permute(axes).view(-1)[first : first + len(part)].copy_(of_part)
        first += len(part)
    return results


def by_rows(function: Callable[..., Tensor], *tensors: Tensor, apart: bool = True) -> Tensor:
    """What `function` gives for tensors [N, ...] of N rows each, float32 [N, ...]; `apart`: each depends on its own rows alone."""
    x = tensors[0]
    if not apart or not hardware.is_cpu(x):
        return function(*tensors).float()
    at_once = max(1, size() * len(x) // max(1, x.numel()))
    if at_once >= len(x):
        return function(*tensors).float()
    y = torch.empty_like(x)
    for parts in zip(y.split(at_once), *(each.split(at_once) for each in tensors), strict=True):
        parts[0].copy_(function(*parts[1:]))
    return y
