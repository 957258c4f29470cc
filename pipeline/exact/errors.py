"""What exact numerics cannot do."""

from __future__ import annotations


class Unsupported(Exception):
    """What a network does has no exact form, or is too large for one: names the operation, and what to do."""

    def __init__(self, what: str, remedy: str = "change the model") -> None:
        super().__init__(f"numerics 'exact' {what}; {remedy}")


class Imprecise(Exception):
    """A device or a setting does not compute as exactly as exact numerics need: names it, and what to do."""


def refusal(what: str, instead: str = "") -> Unsupported:
    """The error that says what has no exact form, and what has."""
    return Unsupported(f"has no form of {what}{f' (it has: {instead})' if instead else ''}")
