"""What workers say to each other besides sums: short texts under keys, in a store of torch.distributed.

The store is torchrun's, or a file on one machine. All that is said has a prefix that worker 0 draws anew each time: torchrun starts
workers again on a store that still holds what dead ones said (pytorch/pytorch issue 135712).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pipeline.system.errors import UserError, shown
from pipeline.workers import launch, pairs
from pipeline.workers.rank import Worker

SAY_SECONDS = 3.0
"""How long a worker waits before it says for whom."""
_POLL_SECONDS = 0.02
_PREFIX = "pipeline"


class Messages:
    """Keys and texts. Its methods raise RuntimeError when the store is gone."""

    def __init__(self, store: Store, drawn: bool) -> None:
        """With `drawn`, as worker 0 has it, they begin anew."""
        self._store, self._prefix = store, ""
        if drawn:
            self._prefix = secrets.token_hex(8)
            self._store.set(_PREFIX, self._prefix)

    def newest(self) -> str:
        """Turn to the messages that a worker 0 began last, which may be a dead one; its prefix, empty while there is none."""
        self._prefix = self._store.get(_PREFIX).decode() if self._store.check([_PREFIX]) else ""
        return self._prefix

    @property
    def store(self) -> Store:
        """The store of these messages alone."""
        return PrefixStore(self._prefix, self._store)

    def say(self, key: str, text: str) -> None:
        """Set a key for all to read."""
        self.store.set(key, text)

    def said(self, key: str) -> str | None:
        """What a key was set to; None while it is not."""
        return self.store.get(key).decode() if self.store.check([key]) else None

    def count(self, key: str, add: int) -> int:
        """Add to the number under a key; the new number."""
        return self.store.add(key, add)


def opened(
    worker: Worker, folder: Path, held: contextlib.ExitStack, seconds: float
) -> tuple[Messages, launch.Others | None, list[socket.socket]]:
    """The messages of a worker and the others, and those that had to be started here for it, until `held` is left.

    Where worker 0 started them, with this worker's sockets, as `pairs.Pairs` takes them.

    Raises:
        UserError: it cannot be reached within `seconds`, or a worker cannot be started.
    """
    if named := [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]:
        here = [name for _, name in socket.if_nameindex()]
        if absent := [name for name in named if name not in here]:
            raise UserError(
                f"GLOO_SOCKET_IFNAME names {shown(absent[0])}; this machine's networks are {', '.join(here)}: unset it, or name one"
            )
    if worker.local_count == worker.count:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", launch.LOOPBACK)  # the machine's name need not resolve
    others: launch.Others | None = None
    store: Store
    sockets: list[socket.socket] = []
    if worker.starts_others:
        others = held.enter_context(launch.started(worker, folder))
        store, sockets = FileStore(str(others.file), worker.count), others.sockets
    elif file := os.environ.get(launch.FILE):
        launch.end_with_worker_0()
        store, sockets = FileStore(file, worker.count), pairs.inherited()
    else:
        store = _reached(worker, seconds)
    return Messages(store, drawn=worker.rank == 0), others, sockets


def _reached(worker: Worker, seconds: float) -> Store:
    """The store that the environment names. It is reached in a thread, for PyTorch heeds no signal while it waits there.

    Raises:
        UserError: its host's name is none, or it does not answer within `seconds`.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    where = f"MASTER_ADDR={host} MASTER_PORT={port} in the environment"
    waits = "for the others" if worker.rank == 0 else "for worker 0"
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise UserError(
            f"worker {worker.rank} of {worker.count} finds no such host ({error.strerror}): {where}; start with torchrun"
        ) from None
    reached: list[Store | Exception] = []

    def reach() -> None:
        try:
            reached.append(next(rendezvous("env://", timeout=timedelta(seconds=seconds)))[0])
        except Exception as error:
            reached.append(error)

    threading.Thread(target=reach, daemon=True).start()
    if not until(lambda: bool(reached), SAY_SECONDS):
        print(
            f"worker {worker.rank} of {worker.count} waits {waits}, up to {seconds:.0f} seconds: {where}", file=sys.__stderr__, flush=True
        )
        until(lambda: bool(reached), seconds + SAY_SECONDS)
    if reached and not isinstance(reached[0], Exception):
        return reached[0]
    reason = first_line(reached[0]) if reached else "no answer"  # type: ignore[arg-type]
    raise UserError(
        f"worker {worker.rank} of {worker.count} waited {waits} in vain ({reason}): {where}; start all {worker.count} with torchrun, or "
        "unset WORLD_SIZE to train alone"
    )


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask again and again until it is so, or the time is over; whether it is."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def first_line(error: Exception) -> str:
    """The first line of an error of torch.distributed's, short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
