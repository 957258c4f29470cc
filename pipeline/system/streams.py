"""Standard output and standard error that are closed, on a full disk, or without a reader: no failure to print ends the work."""

import errno
import io
import os
import signal
import sys
import warnings

from pipeline.system.errors import ANSWER_IS_NO, printable

UNWRITTEN = 74
"""The exit code when standard output could not be written (EX_IOERR of sysexits.h)."""
BROKEN_PIPE = 128 + signal.SIGPIPE
"""The exit code when its reader has gone: what a shell reports for any program that ends of SIGPIPE."""
_failures: dict[int, OSError] = {}
"""A standard stream's number -> why it could not be written first."""


class _Stream(io.FileIO):
    """A standard stream that never raises: from its first failure on, what is written is lost."""

    def write(self, content: bytes) -> int:  # type: ignore[override]
        """Write `content`."""
        try:
            return len(content) if self.fileno() in _failures else super().write(content) or 0  # which does not block is asked again
        except OSError as error:
            _failures[self.fileno()] = error
            return len(content)


def prepare() -> None:
    """Make `sys.stdout` and `sys.stderr` such streams; one that is closed is /dev/null, so that no file that is opened takes its number.

    A library's warning is one line there.
    """
    warnings.formatwarning = _one_line
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        given, stream = getattr(sys, name), _Stream(number, "wb", closefd=False)
        encoding, at_once = (given.encoding, given.write_through) if given else ("utf-8", False)
        buffer = stream if at_once else io.BufferedWriter(stream)  # type: ignore[type-var]  # of `write`, as above
        text = io.TextIOWrapper(buffer, encoding, "replace", line_buffering=bool(given and given.line_buffering), write_through=at_once)
        setattr(sys, name, text)


def _one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    return printable(f"warning: {' '.join(str(message).split())} ({filename}:{lineno})") + "\n"


def exit_code(code: int) -> int:
    """`code`, or what tells that the answer could not be printed; not of a stage that DVC runs, which answers with its files."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    failure = _failures.get(1)
    if failure is None or code not in (0, ANSWER_IS_NO) or os.environ.get("DVC_STAGE"):
        return code
    if failure.errno == errno.EPIPE:
        return BROKEN_PIPE
    print(f"error: cannot write to standard output: {failure.strerror}", file=sys.stderr)
    return UNWRITTEN
