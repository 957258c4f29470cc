"""Workers in threads of one process: many of them for the price of one, and sums in any order and grouping that a test wants."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from pipeline.workers import Group
from tests import goldens
from tests.goldens import Weights
from tests.steps import drawn_set, trainer

Result = TypeVar("Result")


class Exchange:
    """What the workers of a group hand to each other; `chaos` is a seed, None for the plain order."""

    def __init__(self, count: int, chaos: int | None = None) -> None:
        self.count, self.chaos = count, chaos
        self.calls: Counter[str] = Counter()
        """Collectives so far, by name, as worker 0 counts them."""
        self._barrier = threading.Barrier(count)
        self._given: list[Any] = [None] * count

    def draw(self, *what: object) -> random.Random:
        """Equal for equal names."""
        return random.Random(f"{self.chaos} {what}")

    def of_all(self, rank: int, mine: torch.Tensor, name: str) -> list[torch.Tensor]:
        """What all hand in at this call, by rank."""
        if rank == 0:
            self.calls[name] += 1
        self._given[rank] = mine
        self._barrier.wait()
        given = list(self._given)
        self._barrier.wait()
        return given

    def give_up(self) -> None:
        """Let none wait for one that failed."""
        self._barrier.abort()


class Simulated(Group):
    """One of them. With chaos each worker adds in an order and a grouping of its own, and shares are cut anywhere and dealt to anyone."""

    def __init__(self, exchange: Exchange, rank: int) -> None:
        self.exchange, self.rank, self.count, self.shares, self.sums = exchange, rank, exchange.count, 0, 0

    def share(self, images: int) -> slice:
        if self.exchange.chaos is None:
            return super().share(images)
        self.shares += 1
        draw = self.exchange.draw("shares", self.shares)
        cuts = [0, *sorted(draw.randint(0, images) for _ in range(self.count - 1)), images]
        dealt = draw.sample(range(self.count), self.count)[self.rank]
        return slice(cuts[dealt], cuts[dealt + 1])

    def maximum(self, magnitudes: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.exchange.of_all(self.rank, magnitudes, "maximum")).amax(0)

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

    def one(rank: int) -> Result:
        threading.current_thread().name = f"worker {rank}"
        try:
            return work(Simulated(exchange, rank))
        except BaseException:
            exchange.give_up()
            raise

    with ThreadPoolExecutor(exchange.count) as pool:
        futures = [pool.submit(one, rank) for rank in range(exchange.count)]
    errors = [error for future in futures if (error := future.exception())]
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return [future.result() for future in futures]


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
