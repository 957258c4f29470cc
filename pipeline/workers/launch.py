"""The other workers of `workers: N`: started by worker 0 on this machine, watched by it, and ended with it.

They stay in worker 0's process group, so what signals a group, as Ctrl-C and `docker stop` do, reaches all. The standard input of each is a
pipe that only worker 0 holds open: however that ends, the pipe does too.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.params import PARAMS
from pipeline.system import files, libraries
from pipeline.system.errors import UserError, printable
from pipeline.workers.pairs import SOCKET
from pipeline.workers.rank import Worker

FILE = "PIPELINE_WORKERS_FILE"
"""The environment variable that names the meeting file to a worker that was started here."""
END_SECONDS = 5.0
"""How long a worker may take to end by itself."""
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class Others:
    """The workers that were started here, from 1 on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        """Where all meet."""
        self.processes: list[subprocess.Popen[bytes]] = []
        self.sockets: list[socket.socket] = []
        """Worker 0's, one to each of them."""

    def ended(self) -> tuple[int, str] | None:
        """A worker that has ended, and how; None while all run."""
        for rank, process in enumerate(self.processes, 1):
            if (code := process.poll()) is not None:
                return rank, f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return None


@contextlib.contextmanager
def started(worker: Worker, folder: Path) -> Iterator[Others]:
    """Start the workers after `worker`, which is 0; they meet in a new file in `folder`; when the block is left, they have ended.

    The caller holds a lock: what is in `folder` is a killed training's.

    Raises:
        UserError: one cannot be started.
    """
    others = Others(folder / secrets.token_hex(8))
    shutil.rmtree(folder, ignore_errors=True)
    with files.explained(folder):
        files.make_folder(folder.parent)
        folder.mkdir(mode=0o700)
    if folder.lstat().st_mode & 0o077:
        said = f"{folder}: this file system has no owners; whoever can write there can disturb the workers"
        print(printable(said), file=sys.stderr, flush=True)
    try:
        for rank in range(1, worker.count):
            _start(rank, worker, others)
        yield others
        _wait(others.processes)
    finally:
        for one in others.sockets:
            one.close()
        for process in others.processes:
            if process.stdin:
                process.stdin.close()
        _wait(others.processes)
        for process in others.processes:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(rank: int, worker: Worker, others: Others) -> None:
    count = worker.count
    own = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, FILE: others.file.resolve()}
    command = [*libraries.python(), "-m", "pipeline", *worker.command]
    try:
        ours, theirs = socket.socketpair()
        others.sockets.append(ours)
        with theirs:
            environment = {**os.environ, **{name: str(value) for name, value in own.items()}, SOCKET: str(theirs.fileno())}
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        others.processes.append(process)
    except OSError as error:
        raise UserError(f"worker {rank} of {count} cannot be started: {error.strerror}; set fewer workers in {PARAMS}") from error


def _wait(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until they have ended, but not for long."""
    limit = time.monotonic() + END_SECONDS
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, limit - time.monotonic()))


def end_with_worker_0() -> None:
    """From now on this process ends when the one that started it does, wherever it is."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
