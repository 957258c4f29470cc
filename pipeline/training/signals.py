"""Signals in a training: noted instead of died of, so that the loop can save its state before it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.system.errors import STOP_SIGNALS, Interrupted


@contextmanager
def noted() -> Iterator[Callable[[], int | None]]:
    """Note the signals that ask for an end; the yielded function gives the first of them, and the loop asks after each step.

    Once that has ended the training, they go on being noted: another signal must not take the place of what the first one says.
    DVC dies of a SIGTERM of its own without a word to its stage, and torchrun of a SIGKILL without one to its workers: a stage whose
    parent has changed counts as terminated.
    """
    received: list[int] = []
    parent = os.getppid() if os.environ.keys() & {"DVC_STAGE", "TORCHELASTIC_RUN_ID"} else None

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    def first() -> int | None:
        if parent is not None and os.getppid() != parent:
            received.append(signal.SIGTERM)
        return received[0] if received else None

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield first
    except Interrupted:
        before.clear()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
