"""Documents of plain values -> typed objects: the one place that says which key of a document is wrong, and what is allowed.

A document's type is a `msgspec.Struct` (frozen, unknown fields forbidden) whose fields say what they allow with
`Annotated[..., Meta(description=...)]`. Types are strict: a whole number is no text, true is no number.
"""

from __future__ import annotations

import json
import re
import types
import typing
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from pipeline.system.errors import UserError, shown

Document = TypeVar("Document")

Finite = Annotated[float, msgspec.Meta(ge=-1.7976931348623157e308, le=1.7976931348623157e308, description="a finite number")]
"""A float that is neither NaN nor infinite. JSON can write neither, other sources of values can."""


def text(description: str, pattern: str) -> msgspec.Meta:
    """What a text must be as a whole: the regular expression, and the words for it."""
    return msgspec.Meta(pattern=rf"\A(?:{pattern})\Z", description=description)


NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
Name = Annotated[str, text("1 to 64 letters, digits, '.', '_' and '-', with a letter or digit first", NAME)]
"""What may become a part of a file's name."""
Digest = Annotated[str, text("64 hexadecimal digits", "[0-9a-f]{64}")]
"""A SHA-256."""
STEERS = r"\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
"""Characters, as a set of a regular expression has them, that steer a terminal or turn the direction of what is around them."""
Phrase = Annotated[str, text("1 to 100 characters that can be shown", rf"[^{STEERS}]{{1,100}}")]
"""A text that is shown: it steers no terminal, and does not turn the direction of what is around it."""
LARGEST_BYTES = 2**20
"""Of a JSON document. A run's with the names of 256 classes is a tenth of it."""
DEEPEST = 10
"""Lists and objects within each other in JSON; the documents of this project have four."""


def decode(cls: type[Document], content: Any, source: str, at: str = "") -> Document:
    """A `cls` from JSON, given as bytes, or from values that something else has read.

    Args:
        cls: what the document must be, usually a `msgspec.Struct`.
        content: the bytes of a JSON document, or plain values (mappings, lists, text, numbers).
        source: names the document in errors.
        at: the dotted key of the document within `source`, where it is a part of it.

    Raises:
        UserError: one line that names the source and says that it is damaged, or the dotted key, its value and what is allowed.
    """
    values = _json(content, source) if isinstance(content, bytes) else content
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:
        raise UserError(f"{source}: {_explained(cls, values, at, ' '.join(str(error).split()))}") from None
    except UnicodeEncodeError as error:
        raise UserError(f"{source}: {shown(error.object)} is no text: it holds half a character (a surrogate)") from None


def refuse_doubled(content: bytes) -> None:
    """Raise ValueError where JSON names a key twice in one object: what it means would depend on who reads it."""

    def once(pairs: list[tuple[str, Any]]) -> None:
        names = set()
        for name, _ in pairs:
            if name in names:
                raise ValueError(f"the key {shown(name)} is given twice")
            names.add(name)

    json.loads(content, object_pairs_hook=once)


def _json(content: bytes, source: str) -> Any:
    if len(content) > LARGEST_BYTES:
        raise UserError(f"{source}: {len(content)} bytes; at most {LARGEST_BYTES} are read")
    try:
        values = msgspec.json.decode(content)
        _check_depth(values, DEEPEST)
        refuse_doubled(content)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UserError(f"{source}: damaged: not JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{source}: damaged: nested more than {DEEPEST} deep") from None
    return values


def _check_depth(values: Any, levels: int) -> None:
    if isinstance(values, dict | list):
        if not levels:
            raise RecursionError
        for inner in values.values() if isinstance(values, dict) else values:
            _check_depth(inner, levels - 1)


def _explained(kind: Any, value: Any, at: str, error: str) -> str:
    """What is wrong, from msgspec's message: it ends with the path of the value, which is looked up in the document and its type."""
    problem, of_key, path = typing.cast(re.Match[str], re.fullmatch(r"(.*?)(?: - at (`key` in )?`\$([^`]*)`)?", error)).groups()
    allowed = None
    for name, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", path or ""):
        try:
            kind, value, at = _inner(_bare(kind), value, at, name, index)
        except (LookupError, TypeError, StopIteration):  # no path: an unknown field whose own name looks like one
            break
        allowed = _description(kind) or allowed
    where, prefix = shown(at) if at else "the document", f"{at}." if at else ""
    fields = _fields(kind)
    if of_key:
        wrong = next((key for key in value if not isinstance(key, str)), "")
        return f"key {shown(wrong)} is no text; allowed here: {', '.join(fields) or 'text'}"
    if fields and isinstance(value, dict):
        for key, hint in typing.get_type_hints(_bare(kind), include_extras=True).items():
            if key not in value and problem.startswith("Object missing"):
                return f"key {shown(prefix + key)} is missing; it is {_description(hint) or _plain(hint)}"
        for key in value:
            if key not in fields and problem.startswith("Object contains"):
                return f"unknown key {shown(f'{prefix}{key}')}; allowed here: {', '.join(fields)}"
    if not problem.startswith(("Expected", "Invalid", "Number", "Integer")):  # what a check of the type's own says
        return f"{where}: {problem}"
    quoted = " (in quotes)" if problem.startswith("Expected `str`, got") and not isinstance(value, dict | list | None) else ""
    return f"{where} is {shown(value)}; allowed: {allowed or _plain(kind)}{quoted}"


def _inner(kind: Any, value: Any, at: str, name: str, index: str) -> tuple[Any, Any, str]:
    """Type, value and dotted key of the field `name`, or of the item `index`, of a value."""
    if name:
        return typing.get_type_hints(kind, include_extras=True)[name], value[name], f"{at}.{name}".lstrip(".")
    items = typing.get_args(kind)
    if index == "...":  # of a mapping msgspec does not name the key
        key = next(key for key in value if not _fits(items[1], value[key]))
        return items[1], value[key], f"{at}.{key!s:.80}".lstrip(".")
    return items[0 if items[-1] is Ellipsis or len(items) == 1 else int(index)], value[int(index)], f"{at}[{index}]"


def _fits(kind: Any, value: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _bare(kind: Any) -> Any:
    """A type without its annotations, and without the null that may stand for it."""
    if typing.get_origin(kind) is Annotated:
        return _bare(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _bare(next(arm for arm in typing.get_args(kind) if arm is not type(None)))
    return kind


def _fields(kind: Any) -> tuple[str, ...]:
    return getattr(_bare(kind), "__struct_fields__", ())


def _description(kind: Any) -> str | None:
    """What the annotations of a type say that it allows."""
    return next((meta.description for meta in getattr(kind, "__metadata__", ()) if isinstance(meta, msgspec.Meta)), None)


def _plain(kind: Any) -> str:
    bare = _bare(kind)
    if typing.get_origin(bare) is Literal:
        return " | ".join(map(str, typing.get_args(bare)))
    if fields := _fields(bare):
        return f"a mapping with the keys {', '.join(fields)}"
    origin = typing.get_origin(bare) or bare
    return _WORDS.get(origin, str(origin))


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true | false",
    dict: "a mapping",
    list: "a list",
    tuple: "a list",
}
