"""Other processes that train the same model: who this one is, its share of a batch, and what all of them hold together.

Numerics and the trainer know a Group and nothing of processes. One process alone is a group of one, whose answers are its own;
several are a `processes.Processes`. The other modules here are loaded by a training alone.
"""

from __future__ import annotations

from torch import Tensor


class Group:
    """A group of one worker: its share is everything, and what all hold together is what it holds."""

    rank = 0
    count = 1
    hardware: tuple[str, ...] = ()
    """What the other workers compute on, by its own name; worker 0 knows."""

    def share(self, images: int) -> slice:
        """Which rows of a batch of `images` images are this worker's; of fewer images than workers some have none."""
        return slice(images * self.rank // self.count, images * (self.rank + 1) // self.count)

    def maximum(self, magnitudes: Tensor) -> Tensor:
        """The largest of all workers' magnitudes (float32, not negative, or NaN), element by element; NaN where one has it."""
        return magnitudes

    def total(self, sums: Tensor) -> Tensor:
        """The sum of all workers' integers (float64 or int64 [S]), element by element. Each step takes one."""
        return sums

    def copy_first(self, tensor: Tensor) -> None:
        """Overwrite `tensor`, in place, with worker 0's."""

    def stop_signal(self, own: int | None) -> int | None:
        """The signal that ends the training, the same for all workers after the same step; `own` is what this one received."""
        return own


ALONE = Group()
