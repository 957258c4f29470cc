"""Workers that are threads of one process: many of them for the price of one, to prove that shares do not matter."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.exact.group import Group

Result = TypeVar("Result")


class Exchange:
    """What the workers of a group hand to each other."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.calls: Counter[str] = Counter()
        """Collectives so far, by name, as worker 0 counts them."""
        self._barrier = threading.Barrier(count)
        self._given: list[Any] = [None] * count

    def of_all(self, rank: int, mine: Tensor, name: str) -> list[Tensor]:
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


class Worker(Group):
    """One of them."""

    def __init__(self, exchange: Exchange, rank: int) -> None:
        self.exchange, self.rank, self.count = exchange, rank, exchange.count

    def maximum(self, magnitudes: Tensor) -> Tensor:
        """As the base's."""
        return torch.stack(self.exchange.of_all(self.rank, magnitudes, "maximum")).amax(0)

    def total(self, sums: Tensor) -> Tensor:
        """As the base's. Integers, so their order does not matter."""
        return torch.stack(self.exchange.of_all(self.rank, sums, "total")).sum(0)


def together(exchange: Exchange, work: Callable[[Group], Result], worker: Callable[[Any, int], Group] = Worker) -> list[Result]:
    """What `work` gives each worker, by rank; the first error of any is raised."""

    def one(rank: int) -> Result:
        threading.current_thread().name = f"worker {rank}"
        try:
            return work(worker(exchange, rank))
        except BaseException:
            exchange.give_up()
            raise

    with ThreadPoolExecutor(exchange.count) as pool:
        futures = [pool.submit(one, rank) for rank in range(exchange.count)]
    errors = [error for future in futures if (error := future.exception())]
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return [future.result() for future in futures]
