"""Arguments of PyTorch's functions in one spelling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import index
from typing import Any

from torch import Tensor


def pair(value: Any) -> tuple[int, int]:
    """One number for both directions, or one for each, as two."""
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return index(first), index(second)


def check_from(least: int, what: str, *values: Any) -> None:
    """Raise RuntimeError, as PyTorch does, where a number of some, or of some pairs, is below the least that `what` may have."""
    if any(each < least for value in values for each in (value if isinstance(value, tuple) else (value,))):
        raise RuntimeError(f"{what} below {least}: {', '.join(map(str, values))}")


def check_shape(what: str, shape: tuple[int, ...], *tensors: Tensor | None) -> None:
    """Raise RuntimeError, as PyTorch does, where one of the tensors that `what` takes, if given, has another shape than this."""
    for each in tensors:
        if each is not None and tuple(each.shape) != shape:
            raise RuntimeError(f"{what} with a weight, bias or statistics {list(each.shape)}, and {list(shape)} is what it takes")


def sizes(given: Iterable[Any]) -> list[int]:
    """Sizes or dimensions that are given one by one, or as one list."""
    return [each if isinstance(each, int) else index(each) for part in given for each in (part if isinstance(part, Iterable) else (part,))]


def leaves(given: Any) -> Iterator[Any]:
    """What stands in lists, tuples, dictionaries and slices."""
    if isinstance(given, tuple | list):
        for each in given:
            yield from leaves(each)
    elif isinstance(given, dict):
        yield from leaves(tuple(given.values()))
    elif isinstance(given, slice):
        yield from (given.start, given.stop, given.step)
    else:
        yield given


def tensors(given: Any) -> Iterator[Tensor]:
    """The tensors among them."""
    return (each for each in leaves(given) if isinstance(each, Tensor))
