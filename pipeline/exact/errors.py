"""What exact numerics cannot do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType

import torch


class Unsupported(Exception):
    """What a network does has no exact form, or is too large for one: names the operation, and what to do."""

    def __init__(self, what: str, remedy: str = "change the model") -> None:
        super().__init__(what, remedy)
        self.what, self.remedy, self.line = what, remedy, ""

    def at_the_users_line(self) -> None:
        """Note the line of the network that called, unless one is noted already."""
        self.line = self.line or _users_line()

    def __str__(self) -> str:
        return f"numerics 'exact' {self.what}{f', at {self.line}' if self.line else ''}; {self.remedy}"


class Imprecise(Exception):
    """A device or a setting does not compute as exactly as exact numerics need: names it, and what to do."""


def refusal(what: str, instead: str = "") -> Unsupported:
    """The error that says what has no exact form, and what has."""
    return Unsupported(f"has no form of {what}{f' (it has: {instead})' if instead else ''}")


_LIBRARIES = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parent}{os.sep}")


def _users_line() -> str:
    """The innermost line outside PyTorch and this package, as FILE:LINE; empty if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_LIBRARIES) and not name.startswith("<"):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
