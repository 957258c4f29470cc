"""What a message shows of a text that came from outside: no secrets, and no time that grows faster than the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import pytest

from pipeline.system import errors

HOSTILE = {
    "colons": ":",
    "at signs": "@",
    "schemes": "://",
    "addresses": "http://user:password@host/a?b#c ",
    "one address": "a:b@c/d?",
    "brackets": "?)]}",
    "letters": "a",
    "short words": "a ",
    "spaces": " ",
}


class _Counted(str):
    """A text that counts the characters that its methods look at."""

    looked_at = 0

    def _counting(self, name: str, *given: Any) -> Any:
        _Counted.looked_at += len(self)
        found = getattr(str, name)(self, *given)
        return tuple(map(_Counted, found)) if isinstance(found, tuple) else _Counted(found) if isinstance(found, str) else found

    def partition(self, *given: Any) -> Any:
        return self._counting("partition", *given)

    def rpartition(self, *given: Any) -> Any:
        return self._counting("rpartition", *given)

    def rstrip(self, *given: Any) -> Any:
        return self._counting("rstrip", *given)

    def __getitem__(self, *given: Any) -> Any:
        return self._counting("__getitem__", *given)


class _CountingRe:
    """The regular expressions of a module: what each looks at is counted, and each must look at a character once."""

    def _count(self, pattern: str, text: str) -> None:
        assert _looks_once(pattern), f"{pattern!r} may look at a character again and again"
        _Counted.looked_at += len(text)

    def sub(self, pattern: str, new: Any, text: str) -> str:
        """Every match, each as a text that counts."""
        self._count(pattern, text)
        return re.sub(pattern, lambda found: new({0: _Counted(found[0])}), text)

    def search(self, pattern: str, text: str) -> re.Match[str] | None:
        """The first match."""
        self._count(pattern, text)
        return re.search(pattern, text)


def _looks_once(pattern: str) -> bool:
    """Whether a pattern is one set of characters, or a run of such: what a search looks at, it never goes back to."""
    (kind, what), *more = list(_parser.parse(pattern))
    if str(kind) == "MAX_REPEAT":
        (kind, what), *inner = list(what[2])
        more += inner
    return not more and str(kind) in ("IN", "LITERAL", "NOT_LITERAL", "CATEGORY")


def operations(unit: str, characters: int) -> int:
    """How many characters are looked at for a text of so many."""
    _Counted.looked_at = 0
    errors.without_secrets(unit * (characters // len(unit)))
    return _Counted.looked_at


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(errors, "re", _CountingRe())
    return


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_hiding_the_secrets_of_a_text_takes_operations_in_proportion_to_its_length(unit: str, counting: None) -> None:
    counts = [operations(unit, size) for size in (1_000, 10_000, 100_000)]
    assert counts[0] >= 900, "the operations are counted"
    for size, count in zip((1_000, 10_000, 100_000), counts, strict=True):
        assert count <= 12 * size, f"{count} operations for {size} characters"


@pytest.mark.parametrize("pattern", [r"\S+", "[?#]", "@", r"[^@]*", r"\s"])
def test_patterns_that_look_at_a_character_once_are_told(pattern: str) -> None:
    assert _looks_once(pattern)


@pytest.mark.parametrize("pattern", [r"\S*:\S*@", r"(a+)+", r"[^:]*:", r"a|ab", r"(?:a*)*"])
def test_patterns_that_may_look_at_a_character_again_are_told(pattern: str) -> None:
    assert not _looks_once(pattern)
