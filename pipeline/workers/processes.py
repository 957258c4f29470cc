"""A group of several processes: over sockets of their own (`pairs`), or over torch.distributed, gloo between CPUs, NCCL between GPUs.

A step takes two collectives: one maximum, one sum. Whether to stop rides on the sum, so that all workers know it after the same step.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.system.errors import UserError
from pipeline.workers import Group

_VOTES = {signal.SIGINT: 1, signal.SIGTERM: 2**20}
"""What a worker that received a signal adds to the sum: so the sum tells both, for less than 2^20 workers."""
_MAGNITUDE = 0x7FFFFFFF  # all bits of a float32 but its sign


class Processes(Group):
    """One of several workers: this process."""

    def __init__(
        self,
        rank: int,
        count: int,
        device: torch.device,
        hardware: tuple[str, ...],
        lost: Callable[[RuntimeError], UserError],
        between: Any = dist,
    ) -> None:
        """`lost` turns the failure of a collective into what is to be raised; collectives are `between`'s: Pairs, or torch.distributed."""
        self.rank, self.count, self.hardware, self._lost = rank, count, hardware, lost
        self._between = between
        self._own_vote = torch.zeros(1, device=device)
        self._votes = torch.zeros(1, device=device)

    def maximum(self, magnitudes: Tensor) -> Tensor:
        """As Group's. Raises UserError, as all that follow do, when another worker is lost."""
        # gloo's maximum of floats drops a NaN that is not worker 0's. Without their signs floats have the order of their bits, and
        # NaN comes last.
        bits = magnitudes.view(torch.int32) & _MAGNITUDE
        self._all_reduce(bits, dist.ReduceOp.MAX)
        return bits.view(torch.float32)

    def total(self, sums: Tensor) -> Tensor:
        """As Group's."""
        message = torch.cat((sums, self._own_vote.to(sums.dtype)))
        self._all_reduce(message, dist.ReduceOp.SUM)
        self._votes = message[-1:]
        return message[:-1]

    def copy_first(self, tensor: Tensor) -> None:
        """As Group's."""
        try:
            self._between.broadcast(tensor, 0)
        except RuntimeError as error:
            raise self._lost(error) from error

    def stop_signal(self, own: int | None) -> int | None:
        """As Group's. What this worker received counts from the next step's sum on."""
        if own is not None:
            self._own_vote.fill_(_VOTES[signal.Signals(own)])
        votes = int(self._votes)
        return None if votes == 0 else signal.SIGTERM if votes >= _VOTES[signal.SIGTERM] else signal.SIGINT

    def _all_reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
        try:
            self._between.all_reduce(tensor, operation)
        except RuntimeError as error:
            raise self._lost(error) from error
