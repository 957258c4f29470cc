"""What exact numerics cannot do."""

from __future__ import annotations


class Unsupported(Exception):
    """What a network does has no exact form, or is too large for one: names the operation, and what to do."""

    def __init__(self, what: str, remedy: str = "change the model") -> None:
        super().__init__(what, remedy)
        self.what, self.remedy, self.line = what, remedy, ""

    def at(self, line: str) -> None:
        """Note the line of the network, FILE:LINE, unless one is noted already."""
        self.line = self.line or line

    def __str__(self) -> str:
        return f"numerics 'exact' {self.what}{f', at {self.line}' if self.line else ''}; {self.remedy}"


class Imprecise(Exception):
    """A device or a setting does not compute as exactly as exact numerics need: names it, and what to do."""


def refusal(what: str, instead: str = "") -> Unsupported:
    """The error that says what has no exact form, and what has."""
    return Unsupported(f"has no form of {what}{f' (it has: {instead})' if instead else ''}")
