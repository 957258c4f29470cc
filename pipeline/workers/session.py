"""For the length of a block, this process is one of the workers that train together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed

from pipeline.params import PARAMS
from pipeline.system.errors import UserError
from pipeline.workers import ALONE, Group
from pipeline.workers.rank import Worker

Join = Callable[[torch.device, Mapping[str, object]], Group]
"""Given a worker's device and what it was started with, by name: the group, once all workers are known to be started with the same."""


@contextlib.contextmanager
def together(worker: Worker, folder: Path) -> Iterator[Join]:
    """For the block, this process is one of the workers; yields what makes the group.

    `folder` is for worker 0 that starts the others. An error that leaves the block ends the others, and an error of another's is
    raised here. Only worker 0 prints.

    Raises:
        UserError: another worker failed, died or hangs, was started with something else, or cannot be reached.
    """
    if worker.count == 1:
        yield lambda device, described: ALONE
        return
    if not torch.distributed.is_available():
        raise UserError(f"{worker.count} workers need torch.distributed, which this PyTorch was built without; set workers: 1 in {PARAMS}")
    from pipeline.workers import rendezvous

    with rendezvous.joined(worker, folder) as join:
        yield join
