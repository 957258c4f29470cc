"""What the workers of one machine add up, over sockets that have no name: worker 0 makes a pair for each worker that it starts.

A worker inherits its end, so there is no port and no path where anybody else could connect. gloo listens on the loopback interface and
asks nobody who he is: there another user of the machine could take a worker's place, or end the training with many connections.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.system.errors import UserError, shown

SOCKET = "PIPELINE_WORKERS_SOCKET"
"""The environment variable with the number of the open socket to worker 0, for a worker that was started here."""


def inherited() -> list[socket.socket]:
    """The socket to worker 0 that this process was started with. Raises UserError where there is none."""
    number = os.environ.get(SOCKET, "")
    try:
        found = socket.socket(fileno=int(number))
        if found.family != socket.AF_UNIX:
            raise ValueError
    except (ValueError, OSError):
        raise UserError(f"{SOCKET} in the environment is {shown(number)}, which worker 0 alone can set; unset it") from None
    found.set_inheritable(False)
    return [found]


class Pairs:
    """The sums of all workers, as torch.distributed has them: its arguments, and RuntimeError where another worker is lost."""

    def __init__(self, rank: int, sockets: Iterable[socket.socket], seconds: float) -> None:
        """The `sockets` are worker 0's to all others, by rank, or another one's to worker 0."""
        self._rank, self._sockets = rank, list(sockets)
        for one in self._sockets:
            one.settimeout(seconds if rank == 0 else 2 * seconds)  # so that worker 0, which waits for all, sees first who is lost

    def all_reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
        """Replace a tensor of one dimension by the sum, or the maximum, over all workers; added by rank, so always in one order."""
        if self._rank == 0:
            theirs = torch.empty_like(tensor)
            for number, one in enumerate(self._sockets, 1):
                self._receive(one, theirs, number)
                torch.maximum(tensor, theirs, out=tensor) if operation == dist.ReduceOp.MAX else tensor.add_(theirs)
        else:
            self._send(self._sockets[0], tensor, 0)
        self.broadcast(tensor, 0)

    def broadcast(self, tensor: Tensor, _source: int) -> None:
        """Replace a tensor by worker 0's, the source."""
        whole = tensor.detach().contiguous()
        if self._rank == 0:
            for number, one in enumerate(self._sockets, 1):
                self._send(one, whole, number)
        else:
            self._receive(self._sockets[0], whole, 0)
            tensor.detach().copy_(whole)

    def close(self) -> None:
        """Let those who wait for this worker know that it ends."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.close()

    def _send(self, to: socket.socket, tensor: Tensor, rank: int) -> None:
        try:
            to.sendall(_bytes(tensor))
        except OSError as error:
            raise RuntimeError(f"to worker {rank}: {error}") from error

    def _receive(self, one: socket.socket, tensor: Tensor, rank: int) -> None:
        room = _bytes(tensor)
        try:
            while len(room):
                if not (count := one.recv_into(room)):
                    raise ConnectionResetError("the connection was closed")
                room = room[count:]
        except OSError as error:
            raise RuntimeError(f"from worker {rank}: {error}") from error


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor that lies in one piece."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
