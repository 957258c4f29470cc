"""What a user can fix."""

import reprlib
import signal
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask a command to end."""


class UserError(Exception):
    """A mistake of the user's, or a machine that lacks something: one line with the value found and the remedy.

    The command line prints it and exits with 2 (`cli.main`).
    """


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; `signal_number` gives the exit code, 128 + number.

    Like KeyboardInterrupt it is no Exception, so that no `except Exception` on its way takes it for a failure.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def printable(text: str) -> str:
    """`text` on one line, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """`value` on one line, short however large it is or however often it holds itself: for a message about input."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write numbers of more than 4300 digits
        return "a number of thousands of digits"
