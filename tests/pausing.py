"""`python -m tests.pausing ...` is `python -m pipeline ...` in the current folder, which pauses where a file says so.

While a file called `pause` is there, a training waits after each state that it has saved, until it is told to stop; where one
called `pause-before` is there, a stage says "here" and waits before it reads its data set.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from pipeline import cli
from pipeline.data import dataset
from pipeline.training import signals
from pipeline.training.checkpoint import Checkpoint

PAUSE, PAUSE_BEFORE = Path("pause"), Path("pause-before")


def main() -> None:
    save, noted, load = Checkpoint.save, signals.noted, dataset.load
    stopped = [lambda: None]

    @contextlib.contextmanager
    def noted_here():
        with noted() as first:
            stopped[0] = first
            yield first

    def save_and_wait(self, state):
        save(self, state)
        while PAUSE.exists() and not stopped[0]():
            time.sleep(0.01)

    def wait_and_load(*arguments):
        if PAUSE_BEFORE.exists():
            print("here", flush=True)
            time.sleep(600)
        return load(*arguments)

    Checkpoint.save, signals.noted, dataset.load = save_and_wait, noted_here, wait_and_load
    cli.main()


if __name__ == "__main__":
    main()
