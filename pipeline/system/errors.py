"""What a user can fix, and how a message shows what came from outside."""

import re
import reprlib
import signal
from typing import Any

ANSWER_IS_NO = 3
"""The exit code of every answer of no: different, not usable, not all. Python gives 1 or 2, a shell 2 or more than 125."""

MAKE_AGAIN = "make the environment again: rm -r .venv; make setup, or build the image"
"""The remedy where a library is missing or broken; `make setup` alone takes an environment that is there for whole."""

STOP_SIGNALS = tuple(
    number
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
)
"""The signals that end the work in good order. SIGHUP (a closed terminal) is not one where it is ignored from the start, as nohup does."""


class UserError(Exception):
    """A mistake of the user's, or a machine that lacks something: one line with the value found and the remedy.

    Where there are several remedies, `remedies` holds them, each a line of its own. The command line prints it all and exits
    with 2 (`cli.main`).
    """

    def __init__(self, message: str, *remedies: str) -> None:
        super().__init__(message)
        self.remedies = remedies


class Interrupted(BaseException):
    """One of STOP_SIGNALS arrived; `signal_number` gives the exit code, 128 + number.

    Like KeyboardInterrupt it is no Exception, so that no `except Exception` on its way takes it for a failure.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def without_secrets(text: str) -> str:
    """`text` whose URLs lack what may be secret: user name, password and query.

    A password that is written badly may hold what ends it, so what is hidden goes up to the last @.
    """
    return re.sub(r"\S+", lambda word: _without_secrets(word[0]), text)


def _without_secrets(word: str) -> str:
    """A text without spaces, searched once: a long one from outside must not take long."""
    before, scheme, address = word.partition("://")
    _, at, host = address.rpartition("@")
    address = f"***@{host}" if at else address
    if query := re.search("[?#]", address):
        hidden = address[query.end() :]
        address = address[: query.end()] + "***" + hidden[len(hidden.rstrip("])}:;,.'\"")) :]
    return before + scheme + address if scheme else word


def printable(text: str) -> str:
    """`text` on one line, without what would steer a terminal, and without secrets in URLs."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in without_secrets(text))


class _Short(reprlib.Repr):
    """Short forms of values; text that looks like an address, well-formed or not, without its secrets."""

    def repr_str(self, x: str, level: int) -> str:
        before, at, after = x.rpartition("@")
        if at and ":" in before:
            scheme = re.match(r"\s*[\w+.-]*://", before)
            x = f"{scheme[0] if scheme else ''}***@{after}"
        if "://" in x and (query := re.search("[?#]", x[x.index("://") :])):
            x = x[: x.index("://") + query.end()] + "***"
        return super().repr_str(x, level)


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """`value` on one line, short however large it is or however often it holds itself: for a message about input."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write numbers of more than 4300 digits
        return "a number of thousands of digits"
