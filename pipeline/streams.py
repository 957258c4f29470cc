"""Standard output and standard error that are closed, on a full disk, or without a reader: no failure to print ends the work."""

import errno
import io
import os
import signal
import sys

from pipeline.errors import ANSWER_IS_NO

UNWRITTEN = 74
"""The exit code when standard output could not be written (EX_IOERR of sysexits.h)."""
BROKEN_PIPE = 128 + signal.SIGPIPE
"""The exit code when its reader has gone: what a shell reports for any program that ends of SIGPIPE."""


class Stream(io.TextIOWrapper):
    """A standard stream that never raises: what follows its first failure, which it keeps, goes to /dev/null."""

    failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write `text`."""
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
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), self.fileno())


def prepare() -> None:
    """Make `sys.stdout` and `sys.stderr` such streams; one that is closed is /dev/null, so that no file that is opened takes its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if given := getattr(sys, name):
            stream = Stream(given.buffer, given.encoding, "replace", None, given.line_buffering, given.write_through)
        else:
            stream = Stream(open(number, "wb", closefd=False), "utf-8", "replace")  # noqa: SIM115 - as long as the process
        setattr(sys, name, stream)


def exit_code(code: int) -> int:
    """`code`, or what tells that the answer could not be printed; not of a stage that DVC runs, which answers with its files."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is None or code not in (0, ANSWER_IS_NO) or os.environ.get("DVC_STAGE"):
        return code
    if failure.errno == errno.EPIPE:
        return BROKEN_PIPE
    print(f"error: cannot write to standard output: {failure.strerror}", file=sys.stderr)
    return UNWRITTEN
