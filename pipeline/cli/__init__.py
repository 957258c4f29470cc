"""The command line: it runs a command, and is the one place that turns an error into an exit code."""

from __future__ import annotations

import atexit
import gc
import signal
import sys
import traceback
from typing import NoReturn

import typer

from pipeline.cli.commands import app
from pipeline.system import streams
from pipeline.system.errors import STOP_SIGNALS, Interrupted, UserError, printable
from pipeline.system.libraries import failed_import, settle_variables

OUR_MISTAKE = 70
"""The exit code of an error that we did not expect (EX_SOFTWARE of sysexits.h)."""


def main() -> NoReturn:
    """Run the command line and end with its exit code (docs/faults.md lists them)."""
    atexit.register(gc.freeze)  # at the end nothing is left to be found, and among PyTorch's modules the search takes half a second
    streams.prepare()
    settle_variables()
    code = answer(sys.argv[1:])
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is _stop:  # else one has come already, and no other may take the place of its exit code
            signal.signal(number, signal.SIG_DFL)
    sys.exit(streams.exit_code(code))


def answer(words: list[str]) -> int:
    """Run the command that `words` are and return the exit code; print one line for what the user can fix."""
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        _refuse_empty(words)
        code = app(words or ["--help"], standalone_mode=False, complete_var="") or 0  # no variable asks for a shell's completion
        sys.stdout.flush()
        return int(code)
    except SystemExit:  # Typer's own, where the reader of standard output has gone
        return streams.BROKEN_PIPE
    except typer.TyperException as error:  # the command line itself is wrong
        return _fail(f"{' '.join(error.format_message().split())} (see python -m pipeline --help)")
    except UserError as error:
        return _fail(str(error), *getattr(error, "remedies", ()))
    except Interrupted as interruption:
        _ignore_signals()
        print(f"stopped: {interruption}", file=sys.stderr)
        return 128 + interruption.signal_number
    except Exception as error:
        if line := failed_import(error):
            return _fail(line)
        if isinstance(error, MemoryError):
            return _fail("this takes more memory than there is; free some, or give it less")
        if isinstance(error, OSError):  # a refusal of the operating system that no module explains
            return _fail(str(error))
        traceback.print_exc()
        print("error: this is a mistake of the pipeline's: please report it with the lines above", file=sys.stderr)
        return OUR_MISTAKE


def _fail(message: str, *remedies: str) -> int:
    print(f"error: {printable(message)}", *(f"  {printable(remedy)}" for remedy in remedies), sep="\n", file=sys.stderr)
    return 2


def _refuse_empty(words: list[str]) -> None:
    """Refuse an empty word, as an unset variable of a script gives it: as a path it would be taken for the current folder."""
    for before, word in zip(["", *words], words, strict=False):
        name, equals, value = word.partition("=")
        if not word or (name.startswith("--") and equals and not value):
            option = name or before
            what = f"{option} has an empty value" if option.startswith("--") else "an argument is empty"
            raise UserError(f"{what}: give it a value or leave it out (see python -m pipeline --help)")


def _stop(number: int, _frame: object) -> NoReturn:
    _ignore_signals()
    raise Interrupted(f"by {signal.Signals(number).name}", number)


def _ignore_signals() -> None:
    """We are on our way out: a second signal must not end it with a traceback."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
