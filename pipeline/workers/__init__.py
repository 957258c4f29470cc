"""Other processes that train the same model: who this one is, its share of a batch, and what all of them hold together.

Numerics and the trainer know a Group and nothing of processes. One process alone is a group of one, whose answers are its own;
several are a `processes.Processes`. The other modules here are loaded by a training alone.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.exact.group import Group as Summing


class Group(Summing):
    """A group of one worker, with what a training needs of it besides sums."""

    hardware: tuple[str, ...] = ()
    """What the other workers compute on, by its own name; worker 0 knows."""

    def copy_first(self, tensor: Tensor) -> None:
        """Overwrite `tensor`, in place, with worker 0's."""

    def stop_signal(self, own: int | None) -> int | None:
        """The signal that ends the training, the same for all workers after the same step; `own` is what this one received."""
        return own


ALONE = Group()
