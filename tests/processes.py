"""Processes that tests start: none outlives its test, and which of them still run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests import torture

STARTED: list[subprocess.Popen[str]] = []


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a terminal starts it; it ends with the test."""
    STARTED.append(torture.start(folder, *command))
    return STARTED[-1]


def end_all() -> None:
    """Kill the groups of all that was started."""
    while STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(STARTED.pop().pid, signal.SIGKILL)


def everywhere() -> Iterable[int]:
    """Every process of this machine."""
    return (int(process.name) for process in Path("/proc").glob("[0-9]*"))


def stat(pid: int) -> list[str]:
    """The fields of a process's /proc/PID/stat after its name: its state, its parent and more. Raises OSError where there is none."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def running(pids: Iterable[int]) -> list[int]:
    """Those that run; one that has ended and is still to be waited for does not."""
    alive = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if stat(pid)[0] != "Z":
                alive.append(pid)
    return alive


def of_group(group: int) -> list[int]:
    """The processes of a group that run."""

    def belongs(pid: int) -> bool:
        with contextlib.suppress(OSError):
            return os.getpgid(pid) == group
        return False

    return running(filter(belongs, everywhere()))


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and theirs; torchrun makes each a session of its own."""
    parents = {}
    for process in everywhere():
        with contextlib.suppress(OSError):
            parents[process] = int(stat(process)[1])
    pids = [pid]
    for each in pids:
        pids += [child for child, parent in parents.items() if parent == each]
    return pids[1:]
