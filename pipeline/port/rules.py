"""What a rule is: the kind of answer that it gives, what it says, and its examples, which are its test."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import libcst as cst

_PLACEHOLDERS = ("device", "on_gpu", "off_gpu", "device_of", "clock", "null", "torch")
DEVICE, ON_GPU, OFF_GPU, DEVICE_OF, CLOCK, NULL, TORCH = (f"\0{name}\0" for name in _PLACEHOLDERS)
"""What a rewrite leaves to `pipeline.port.device`: the script's device, whether it is a GPU, whether it is none, the numbered GPU that a
word names, the stand-in of `torch.cuda.Event`, `contextlib.nullcontext()`, and what the script calls PyTorch."""


class Answer(enum.Enum):
    """What becomes of a line."""

    SAME = "same"
    """A rewrite computes the same."""
    NUMBERS = "other numbers"
    """It runs elsewhere, or can be made to, and gives other numbers than a GPU."""
    CANNOT = "cannot"
    """No rewrite of a line helps."""
    MOVED = "moved on"
    """It fails on any device, because PyTorch has moved on."""


class Level(enum.Enum):
    """How much a finding matters."""

    BOUND = "bound"
    """The line fails, or means something else, where there is no GPU."""
    NOTE = "note"
    """It is told, and rewritten, but whether it fails is the user's choice, or stands elsewhere."""
    ASKED = "asked"
    """It fails only where an option, or a launcher, asks for it; rewritten where the script is changed for another reason."""
    ALONG = "along"
    """It is harmless, and only rewritten where the script is changed for another reason."""


@dataclass(frozen=True)
class Edit:
    """Bytes `start` to `end` of the script become `text`, which may hold the placeholders above."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Found:
    """A match of a rule: how to rewrite it (nothing: only a person can), and how much it matters."""

    edits: tuple[Edit, ...] = ()
    level: Level = Level.BOUND
    remark: str = ""


Find = Callable[..., "Found | None"]


@dataclass(frozen=True)
class Rule:
    """Looks at every node of the `kinds` and may find a line that is bound to a device.

    `examples` are pairs of the body of a script before and after. After None, the rule speaks and changes nothing; after the same
    text, it is silent.
    """

    name: str
    answer: Answer
    message: str
    kinds: tuple[type[cst.CSTNode], ...]
    find: Find
    examples: tuple[tuple[str, str | None], ...]


RULES: list[Rule] = []


def rule(
    answer: Answer, message: str, *examples: tuple[str, str | None], on: type[cst.CSTNode] | tuple[type[cst.CSTNode], ...] = cst.Call
) -> Callable[[Find], Find]:
    """Make a function of a node and its script a rule, named as the function is."""

    def register(find: Find) -> Find:
        kinds = on if isinstance(on, tuple) else (on,)
        RULES.append(Rule(find.__name__.replace("_", "-"), answer, message, kinds, find, examples))
        return find

    return register


@dataclass(frozen=True)
class Finding:
    """A line of a script that a rule found."""

    rule: Rule
    found: Found
    line: int
    column: int
    code: str
    node: cst.CSTNode

    @property
    def bound(self) -> bool:
        """Whether the line is bound to a device."""
        return self.found.level is Level.BOUND

    @property
    def message(self) -> str:
        """What is said about the line."""
        return self.rule.message + self.found.remark
