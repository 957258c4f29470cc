"""JSON and YAML documents -> validated objects, through msgspec; what is wrong is one line with the value."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from pipeline.errors import UserError

T = TypeVar("T")


def decode(cls: type[T], content: bytes | Any, source: str) -> T:
    """`content`, JSON's bytes or builtin types, as a `cls`. Raises UserError that names `source` and what is wrong."""
    try:
        if isinstance(content, bytes):
            return msgspec.json.decode(content, type=cls)
        return msgspec.convert(content, cls)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{source}: damaged: {error}") from None
