"""Tensors that are computed when they are first used, if ever: an operation that has a faster way to its result need not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache

import torch
from torch import Tensor


class Later(ABC):
    """What stands behind such a tensor. The tensor itself has the right shape and is NaN, so that none is used by mistake."""

    def __init__(self, source: Tensor) -> None:
        self.source = source
        self.value: Tensor | None = None
        """The tensor's own, once it was computed."""

    @abstractmethod
    def compute(self) -> Tensor:
        """The tensor's value, from the source, which has its shape."""

    def placeholder(self) -> Tensor:
        """The tensor."""
        x = _nan(self.source.device).expand(self.source.shape)
        x.later = self  # type: ignore[attr-defined]
        return x

    @staticmethod
    def of(x: Tensor) -> Later | None:
        """What stands behind `x`, if it is such a tensor."""
        return getattr(x, "later", None)


@cache
def _nan(device: torch.device) -> Tensor:
    return torch.full((), torch.nan, device=device)
