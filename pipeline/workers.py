"""The workers that train one model together: what numerics may ask of them, and nothing of how they talk."""

from __future__ import annotations

from torch import Tensor


class Group:
    """A group of workers as one of them sees it. This one is a group of one, in which a maximum or a sum is what it was."""

    rank = 0
    """Which of the workers this is, from 0."""
    count = 1

    def maximum(self, magnitudes: Tensor) -> Tensor:
        """The largest of all workers' float32 `magnitudes`, element by element; none is negative. NaN where a worker has NaN."""
        return magnitudes

    def total(self, integers: Tensor) -> Tensor:
        """The sum of all workers' `integers`, element by element: float64 or int64, exact in either."""
        return integers


ALONE = Group()
