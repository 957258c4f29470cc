"""Sums over the batch: of several workers they wait until all are known, and one maximum and one sum over the workers serve them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pipeline.exact import grid
from pipeline.exact.group import Group


class Sums(Protocol):
    """Sums over the batch that wait, on grids of their own."""

    magnitudes: Tensor
    """The largest magnitude on each grid among this worker's images, float32 [G]."""
    fit_float64: bool
    """Whether float64 holds the sums over the whole batch; else they are int64."""

    def integers(self, scales: Tensor) -> Tensor:
        """Compute the sums of this worker's images, of any shape, on grids of these scales, float32 [G]."""

    def round(self, sums: Tensor, units: Tensor) -> Sequence[Tensor]:
        """From all workers' sums and the grids' units, the gradient of each weight that these sums were recorded for, in order."""


def added_up(waiting: Sequence[Sums], group: Group) -> list[Sequence[Tensor]]:
    """What each of the sums gives, added up over the workers of the group."""
    if not waiting:
        return []
    sizes = [each.magnitudes.numel() for each in waiting]
    chosen = grid.choose(group.maximum(torch.cat([each.magnitudes for each in waiting])))
    scales, units = torch.split(chosen.scale, sizes), torch.split(chosen.unit, sizes)
    mine = [each.integers(scale) for each, scale in zip(waiting, scales, strict=True)]
    if group.count == 1:  # nothing to send: no copy of them all
        return [each.round(of, unit) for each, of, unit in zip(waiting, mine, units, strict=True)]
    dtype = torch.float64 if all(each.fit_float64 for each in waiting) else torch.int64
    total = group.total(torch.cat([part.flatten().to(dtype) for part in mine]))
    totals = torch.split(total, [part.numel() for part in mine])
    return [one.round(of.view(part.shape), unit) for one, part, of, unit in zip(waiting, mine, totals, units, strict=True)]
