"""Other processes that train the same model: who this one is, its share of a batch, and what all of them hold together."""

from __future__ import annotations

from torch import Tensor


class Group:
    """A group of one worker: its share is everything, and what all hold together is what it holds."""

    rank = 0
    count = 1

    def share(self, images: int) -> slice:
        """Which rows of a batch of `images` images are this worker's."""
        return slice(images * self.rank // self.count, images * (self.rank + 1) // self.count)

    def maximum(self, magnitudes: Tensor) -> Tensor:
        """The largest of all workers' magnitudes (float32, not negative, or NaN), element by element."""
        return magnitudes

    def total(self, sums: Tensor) -> Tensor:
        """The sum of all workers' integers (float64 or int64), element by element."""
        return sums


ALONE = Group()
