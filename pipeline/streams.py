"""Standard output and standard error, in whatever state they are: closed, a broken pipe, on a full disk, a terminal that is gone."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import TextIO

from pipeline.errors import ANSWER_IS_NO

UNWRITTEN = 74
"""The exit code when standard output could not be written (EX_IOERR of sysexits.h)."""
BROKEN_PIPE = 128 + signal.SIGPIPE
"""The exit code when the reader of standard output has gone: what a shell reports for any program that ends of SIGPIPE."""


class Stream(io.TextIOWrapper):
    """A standard stream that never raises: it keeps its first failure, and what follows that goes to /dev/null.

    So no failure to print ends a command half-way, and the command's exit code can still tell of it (`exit_code`).
    """

    failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write `text`; characters that the stream's encoding lacks become "?"."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failure = self.failure or error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def prepare() -> None:
    """Make `sys.stdout` and `sys.stderr` streams of this kind; one that is closed is as if it were /dev/null."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # else the next file opened gets this number, and messages of C libraries go into that file
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _stream(sys.stdout, 1), _stream(sys.stderr, 2)


def _stream(given: TextIO | None, number: int) -> TextIO:
    if given is None:
        return Stream(io.BufferedWriter(io.FileIO(number, "w", closefd=False)), encoding="utf-8", errors="replace")
    try:
        if not isinstance(given, io.TextIOWrapper) or given.fileno() != number:
            return given  # no stream of the shell's
    except io.UnsupportedOperation:  # a stream in memory
        return given
    return Stream(
        given.buffer, encoding=given.encoding, errors="replace", line_buffering=given.line_buffering, write_through=given.write_through
    )


def exit_code(code: int) -> int:
    """`code`, or what tells that standard output could not be written where `code` alone would be taken for the whole answer.

    A stage that DVC runs answers with its files: what it printed besides does not make it fail, for DVC would drop its outputs.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is None or code not in (0, ANSWER_IS_NO) or os.environ.get("DVC_STAGE"):
        return code
    if failure.errno == errno.EPIPE:
        return BROKEN_PIPE
    print(f"error: cannot write to standard output: {failure.strerror}", file=sys.stderr)
    return UNWRITTEN
