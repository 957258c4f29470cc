"""The workers that compute one step together, as exact numerics see them: who this one is, and two sums that all of them hold."""

from __future__ import annotations

from torch import Tensor


class Group:
    """A group of one worker: its share is everything, and what all hold together is what it holds. Others override."""

    rank = 0
    count = 1

    def share(self, images: int) -> slice:
        """Which rows of a batch of `images` images are this worker's; of fewer images than workers some have none."""
        return slice(images * self.rank // self.count, images * (self.rank + 1) // self.count)

    def maximum(self, magnitudes: Tensor) -> Tensor:
        """The largest of all workers' magnitudes (float32, not negative, or NaN), element by element; NaN where one has it."""
        return magnitudes

    def total(self, sums: Tensor) -> Tensor:
        """The sum of all workers' integers (float64 or int64 [S]), element by element."""
        return sums


ALONE = Group()
