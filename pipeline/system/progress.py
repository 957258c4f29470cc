"""How far long work is: a bar on a terminal, plain lines elsewhere, both on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from pipeline.system.errors import printable

PLAIN_SECONDS = 10.0
"""Between two plain lines."""


@contextlib.contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Show the progress of `what`; the block calls the yielded function with the number of units done and a remark.

    Where standard error is closed nothing is shown, and nothing fails because it cannot be shown.
    """
    what = printable(what)
    if sys.stderr is None:
        yield lambda now, remark: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(what, total=total, completed=done, remark="")
            yield lambda now, remark: bars.update(task, completed=now, remark=remark)
        return
    last = time.monotonic()

    def plain(now: int, remark: str) -> None:
        nonlocal last
        if now >= total or time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            with contextlib.suppress(OSError):
                print(f"{what}: {now}/{total} {unit} {remark}".rstrip(), file=sys.stderr, flush=True)

    yield plain
