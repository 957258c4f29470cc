"""Who this process is among the workers that train together: what params.yaml says, or torchrun's environment variables."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed

from pipeline.errors import UserError, shown
from pipeline.params import PARAMS
from pipeline.workers import ALONE, Group

Join = Callable[[torch.device, Mapping[str, object]], Group]
"""Given a worker's device and what it was started with, by name: the group, once all workers are known to be started with the same."""


@dataclass(frozen=True)
class Place:
    """A worker's place among all, and among those of this machine."""

    rank: int
    count: int
    local_rank: int
    local_count: int
    starts_others: bool
    """Whether this is worker 0 and the others are still to be started, on this machine."""
    command: tuple[str, ...] = ("train",)
    """The words of the command that the others are started with."""


def here(workers: int, numerics: str, command: tuple[str, ...] = ("train",)) -> Place:
    """The place of this process, one of `workers`. WORLD_SIZE in the environment, as torchrun sets it, comes before that number.

    Raises:
        UserError: the environment contradicts itself, or has another number of workers than native numerics were told.
    """
    if "WORLD_SIZE" not in os.environ:
        return Place(0, workers, 0, workers, starts_others=workers > 1, command=command)
    count, rank = _number("WORLD_SIZE"), _number("RANK")
    local_count, local_rank = _number("LOCAL_WORLD_SIZE", 1), _number("LOCAL_RANK", 0)
    if not (0 <= rank < count and 0 <= local_rank < local_count <= count):
        raise UserError(
            f"RANK={rank} WORLD_SIZE={count} LOCAL_RANK={local_rank} LOCAL_WORLD_SIZE={local_count} in the environment name no worker; "
            "unset them, or start with torchrun"
        )
    if numerics == "native" and count != workers:
        raise UserError(
            f"{PARAMS}: 'workers' is {workers}, but WORLD_SIZE in the environment is {count}, and the bits of numerics 'native' "
            f"depend on it; set workers: {count}"
        )
    return Place(rank, count, local_rank, local_count, starts_others=False)


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, default)
    try:
        return int(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(
            f"{name} in the environment is {shown(text)}, not a number, beside WORLD_SIZE; unset WORLD_SIZE, or start with torchrun"
        ) from None


@contextlib.contextmanager
def together(place: Place, folder: Path) -> Iterator[Join]:
    """For the block, this process is one of the workers; yields what makes the group.

    `folder` is for worker 0 that starts the others. An error that leaves the block ends the others, and an error of another's is
    raised here. Only worker 0 prints.

    Raises:
        UserError: another worker failed, died or hangs, was started with something else, or cannot be reached.
    """
    if place.count == 1:
        yield lambda device, described: ALONE
        return
    if not torch.distributed.is_available():
        raise UserError(f"{place.count} workers need torch.distributed, which this PyTorch was built without; set workers: 1 in {PARAMS}")
    from pipeline.workers import meeting

    with meeting.joined(place, folder) as join:
        yield join
