"""Arguments of PyTorch's functions in one spelling."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any


def pair(value: Any) -> tuple[int, int]:
    """One number for both directions, or one for each, as two."""
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return index(first), index(second)


def sizes(given: Iterable[Any]) -> list[int]:
    """Sizes or dimensions that are given one by one, or as one list."""
    return [each if isinstance(each, int) else index(each) for part in given for each in (part if isinstance(part, Iterable) else (part,))]
