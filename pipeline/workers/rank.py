"""Who this process is among the workers that train together: what params.yaml says, or torchrun's environment variables."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pipeline.params import PARAMS
from pipeline.system.errors import UserError, shown


@dataclass(frozen=True)
class Worker:
    """A worker's rank among all, and among those of this machine."""

    rank: int
    count: int
    local_rank: int
    local_count: int
    starts_others: bool
    """Whether this is worker 0 and the others are still to be started, on this machine."""
    command: tuple[str, ...] = ("train",)
    """The words of the command that the others are started with."""


def here(workers: int, numerics: str, command: tuple[str, ...] = ("train",)) -> Worker:
    """Who this process is, one of `workers`. WORLD_SIZE in the environment, as torchrun sets it, comes before that number.

    Raises:
        UserError: the environment contradicts itself, or has another number of workers than native numerics were told.
    """
    if "WORLD_SIZE" not in os.environ:
        return Worker(0, workers, 0, workers, starts_others=workers > 1, command=command)
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
    return Worker(rank, count, local_rank, local_count, starts_others=False)


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, default)
    try:
        return int(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(
            f"{name} in the environment is {shown(text)}, not a number, beside WORLD_SIZE; unset WORLD_SIZE, or start with torchrun"
        ) from None
