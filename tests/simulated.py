"""Workers in threads of one process: many of them for the price of one, and sums in any order and grouping that a test wants."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch

from pipeline.exact import threads
from pipeline.exact.threads import Result
from pipeline.workers import Group
from tests import goldens
from tests.goldens import Weights
from tests.steps import drawn_set, trainer


class Exchange(threads.Exchange):
    """`chaos` is a seed, None for the plain order."""

    def __init__(self, count: int, chaos: int | None = None) -> None:
        super().__init__(count)
        self.chaos = chaos

    def draw(self, *what: object) -> random.Random:
        """Equal for equal names."""
        return random.Random(f"{self.chaos} {what}")


class Simulated(threads.Worker, Group):
    """One of them. With chaos each worker adds in an order and a grouping of its own, and shares are cut anywhere and dealt to anyone."""

    exchange: Exchange

    def __init__(self, exchange: Exchange, rank: int) -> None:
        super().__init__(exchange, rank)
        self.shares, self.sums = 0, 0

    def share(self, images: int) -> slice:
        if self.exchange.chaos is None:
            return super().share(images)
        self.shares += 1
        draw = self.exchange.draw("shares", self.shares)
        cuts = [0, *sorted(draw.randint(0, images) for _ in range(self.count - 1)), images]
        dealt = draw.sample(range(self.count), self.count)[self.rank]
        return slice(cuts[dealt], cuts[dealt + 1])

    def total(self, sums: torch.Tensor) -> torch.Tensor:
        parts = self.exchange.of_all(self.rank, sums, "total")
        self.sums += 1
        draw = self.exchange.draw("order", self.rank, self.sums)
        while len(parts) > 1:
            if self.exchange.chaos is not None:
                draw.shuffle(parts)
            parts = [parts[0] + parts[1], *parts[2:]]
        return parts[0]

    def copy_first(self, tensor: torch.Tensor) -> None:
        tensor.copy_(self.exchange.of_all(self.rank, tensor.clone(), "copy")[0])


def together(exchange: Exchange, work: Callable[[Group], Result]) -> list[Result]:
    """What `work` gives each worker, by rank; the first error of any is raised."""
    return threads.together(exchange, work, Simulated)


class Workers(goldens.Pipeline):
    """The pipeline's numerics, trained by several workers, for the goldens."""

    def __init__(self, exchange: Exchange, steps: int) -> None:
        """For a golden of so many steps."""
        super().__init__()
        self.exchange, self.count = exchange, steps

    def take_steps(self, images: int, batch_size: int) -> list[list[tuple[float, Weights]]]:
        """Loss and weights after each step, by worker."""

        def train(group: Group) -> list[tuple[float, Weights]]:
            given, taken = trainer(data=drawn_set(images), batch_size=batch_size, lr=goldens.LR, group=group), []
            for _ in range(self.count):
                given.step()
                (logged,) = given.read_step_log()
                taken.append((logged.loss, given.named_weights()))
            return taken

        return together(self.exchange, train)

    def steps(self, images: int, batch_size: int) -> Iterator[tuple[float, Weights]]:
        of_workers = self.take_steps(images, batch_size)
        for of_step in zip(*of_workers, strict=True):
            assert len({(loss, goldens.reference.fingerprint(weights)) for loss, weights in of_step}) == 1, "the workers differ"
            yield of_step[0]
