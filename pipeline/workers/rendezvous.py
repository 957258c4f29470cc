"""How workers join, agree that they train the same, tell each other's failures, and part."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline import device as devices
from pipeline.params import PARAMS
from pipeline.system.errors import Interrupted, UserError, shown
from pipeline.workers import launch, store
from pipeline.workers.pairs import Pairs
from pipeline.workers.processes import Processes
from pipeline.workers.rank import Worker
from pipeline.workers.store import SAY_SECONDS, Messages, first_line, until

TIMEOUT = "PIPELINE_WORKERS_TIMEOUT"
"""The environment variable for another number of seconds than TIMEOUT_SECONDS."""
TIMEOUT_SECONDS, MOST_SECONDS = 60.0, 1e6
"""How long a worker waits for the others in a step before it gives them up."""
JOIN_SECONDS = 300.0
"""How long workers wait for all to come: each loads PyTorch and the data first."""
REPORT_SECONDS = 3.0
"""How long it may take until the survivors of a failure have said that they live, and until worker 0 has read why another ends."""
_AGAIN = "run again, which resumes from the last state"


class Lost(UserError):
    """Another worker's fault."""


@contextlib.contextmanager
def joined(worker: Worker, folder: Path) -> Iterator[Callable[[torch.device, Mapping[str, object]], Processes]]:
    """As `session.together`, for more than one worker."""
    seconds = _timeout_seconds()
    if worker.rank:
        _be_silent()
    with contextlib.ExitStack() as held:
        try:
            opened = store.opened(worker, folder, held, JOIN_SECONDS)
        except UserError:
            sys.stderr = sys.__stderr__  # no other can tell it
            raise
        met = Rendezvous(worker, *opened, seconds)
        try:
            yield met.join
            met.part()
        except BaseException as error:
            if met.stopped:
                met.part()
            elif reason := met.tell(error):
                raise reason from error
            raise
        finally:
            met.disconnect()


def _timeout_seconds() -> float:
    text = os.environ.get(TIMEOUT, TIMEOUT_SECONDS)
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) <= MOST_SECONDS:
            return seconds
    raise UserError(f"{TIMEOUT} in the environment is {shown(text)}; allowed: a number of seconds above 0, at most {MOST_SECONDS:,.0f}")


class Rendezvous:
    """Workers that came together, as one of them sees it."""

    def __init__(
        self, worker: Worker, messages: Messages, others: launch.Others | None, sockets: list[socket.socket], timeout_seconds: float
    ) -> None:
        self.rank, self.count, self._others, self._timeout = worker.rank, worker.count, others, timeout_seconds
        self._messages = messages
        self._pairs = Pairs(worker.rank, sockets, timeout_seconds) if sockets else None
        self._group: Processes | None = None

    def join(self, device: torch.device, described: Mapping[str, object]) -> Processes:
        """The group, once all have come and were started with the same.

        Raises:
            UserError: they were not, or one failed or did not come.
        """
        mine = json.loads(json.dumps({"described": dict(described), "hardware": devices.describe(device)["hardware"]}))  # as others read it
        hardware: tuple[str, ...] = ()
        try:
            if self.rank == 0:
                hardware = self._gather(mine)
            else:
                self._announce(mine)
            how = devices.collectives(device)
            own = self._pairs if how["backend"] == "gloo" else None
            if not own:
                dist.init_process_group(
                    store=self._messages.store, rank=self.rank, world_size=self.count, timeout=timedelta(seconds=self._timeout), **how
                )
        except RuntimeError as error:
            variables = " ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.endswith("_SOCKET_IFNAME"))
            remedy = f"try it without {variables}" if variables else "see that they reach each other's ports"
            raise self.lost(error, "the workers cannot connect", remedy) from error
        self._group = Processes(self.rank, self.count, device, hardware, self.lost, own or dist)
        return self._group

    def _gather(self, mine: dict[str, Any]) -> tuple[str, ...]:
        """Wait until all others have come, compare what they were started with, and tell all what came out; the others' hardware."""
        theirs: dict[int, dict[str, Any]] = {}

        def all_came() -> bool:
            if failed := self._failure():
                raise failed
            for rank in range(1, self.count):
                if rank not in theirs and (text := self._messages.said(f"came/{rank}")):
                    theirs[rank] = json.loads(text)
            return len(theirs) == self.count - 1

        # those that were started here are only slow, or `_failure` sees that they ended
        if not until(all_came, SAY_SECONDS * (20 if self._others else 1)):
            waited = ", ".join(str(rank) for rank in range(1, self.count) if rank not in theirs)
            print(f"worker 0 of {self.count} waits for worker {waited}, up to {JOIN_SECONDS:.0f} seconds", file=sys.stderr, flush=True)
        if not until(all_came, JOIN_SECONDS):
            absent = ", ".join(str(rank) for rank in range(1, self.count) if rank not in theirs)
            raise UserError(
                f"of {self.count} workers these did not come within {JOIN_SECONDS:.0f} seconds: {absent}; start them too, or set fewer"
            )
        differences = [_difference(rank, theirs[rank]["described"], mine["described"]) for rank in sorted(theirs)]
        refusal = next(filter(None, differences), None)
        for rank, other in theirs.items():
            self._messages.say(f"answer/{rank}", json.dumps({"token": other["token"], "refusal": refusal}))
        if refusal:
            raise UserError(refusal)
        return tuple(theirs[rank]["hardware"] for rank in sorted(theirs))

    def _announce(self, mine: dict[str, Any]) -> None:
        """Tell worker 0 what this one was started with, and wait for its answer."""
        token, told = secrets.token_hex(8), ""
        answer: dict[str, Any] = {}

        def answered() -> bool:
            nonlocal told, answer
            if not (newest := self._messages.newest()):
                return False
            if told != newest:  # until worker 0 of this time has come, the newest may be a dead one's, whose answers have another token
                self._messages.say(f"came/{self.rank}", json.dumps({"token": token, **mine}))
                told = newest
            if text := self._messages.said(f"answer/{self.rank}"):
                answer = json.loads(text)
            return answer.get("token") == token

        if not until(answered, JOIN_SECONDS):
            raise UserError(f"worker 0 did not answer within {JOIN_SECONDS:.0f} seconds; start it too")
        if answer["refusal"]:
            raise Lost(answer["refusal"])

    @property
    def stopped(self) -> bool:
        """Whether all workers agreed to end because of a signal."""
        return self._group is not None and self._group.stop_signal(None) is not None

    def part(self) -> None:
        """Wait until all workers are through, so that none closes a connection that another still reads."""
        with contextlib.suppress(RuntimeError):
            self._messages.count("through", 1)
            until(lambda: self._messages.count("through", 0) >= self.count, REPORT_SECONDS)

    def disconnect(self) -> None:
        """Close this worker's connections: those who wait for it are told at once, and gloo's threads do not end it with an abort."""
        if self._pairs:
            self._pairs.close()
        if dist.is_initialized():
            dist.destroy_process_group()

    def tell(self, error: BaseException) -> UserError | None:
        """Tell the others that this worker ends because of `error`; the failure of another's that is behind it, if one is."""
        with contextlib.suppress(RuntimeError):
            if self.rank == 0:
                if isinstance(error, Interrupted) and (failed := self._failure()):
                    return failed  # torchrun ends all workers when one failed
                self._messages.say("failed/0", "it ended")
            elif not isinstance(error, Lost):
                reason = str(error)
                if not isinstance(error, UserError | Interrupted):
                    traceback.print_exception(error, file=sys.__stderr__)
                    reason = f"{type(error).__name__}: {error}"
                until(lambda: bool(self._messages.newest()), REPORT_SECONDS)
                self._messages.say(f"failed/{self.rank}", " ".join(reason.split()))
                self.disconnect()
                until(lambda: self._messages.said("failed/0") is not None, REPORT_SECONDS)
        return None

    def lost(self, error: RuntimeError, without_fault: str = "the workers lost each other", remedy: str = _AGAIN) -> UserError:
        """What to raise where the others cannot be reached: names the one whose fault that is; where all live, `without_fault`."""
        living: set[int] = set()
        failures: list[Lost] = []

        def known() -> bool:
            if failed := self._failure():
                failures.append(failed)
            living.update(rank for rank in range(self.count) if rank not in living and self._messages.said(f"lives/{rank}"))
            return bool(failures) or len(living) == self.count

        try:
            self._messages.say(f"lives/{self.rank}", "yes")
            until(known, REPORT_SECONDS)
            if failures:
                return failures[0]
            if self.rank == min(living):
                if self._messages.count("told", 1) > 1:  # this one was so late that another took it for dead
                    _be_silent()
                elif self.rank:
                    sys.stderr = sys.__stderr__  # worker 0 cannot tell it
        except RuntimeError:
            return Lost(f"the workers' store is gone ({first_line(error)}); {_AGAIN}")
        silent = ", ".join(str(rank) for rank in range(self.count) if rank not in living)
        if not silent:
            return Lost(f"{without_fault} ({first_line(error)}); {remedy}")
        return Lost(
            f"worker {silent} of {self.count} died or hangs ({first_line(error)}); {_AGAIN}, with a larger {TIMEOUT} "
            f"where a step takes more than its {self._timeout:g} seconds"
        )

    def _failure(self) -> Lost | None:
        """What another worker ended of, if one did: what it said, or what worker 0 sees of one that it started."""
        for rank in range(self.count):
            if rank != self.rank and (text := self._messages.said(f"failed/{rank}")):
                return Lost(f"worker {rank} of {self.count}: {text}")
        if self._others and (ended := self._others.ended()):
            rank, how = ended
            return Lost(f"worker {rank} of {self.count} {how}; {_AGAIN}")
        return None


def _be_silent() -> None:
    """Another worker speaks."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


def _difference(rank: int, described: dict[str, object], first: dict[str, object]) -> str | None:
    """How what a worker was started with differs from worker 0's, or None."""
    differing = [name for name in first if described.get(name) != first[name]]
    if not differing:
        return None
    phrases = "; ".join(f"{name} is {shown(described.get(name))}, not {shown(first[name])}" for name in differing)
    return f"worker {rank} disagrees with worker 0: {phrases}; give all one {PARAMS}, one data set and one version of the code"
