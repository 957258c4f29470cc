"""Documents of plain values: which key is wrong, what it holds, and what is allowed, in one line."""

import json
import math
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from pipeline.system.errors import UserError
from pipeline.system.schema import DEEPEST, Finite, decode

pytestmark = pytest.mark.fault(41)


class Inner(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, description="a name")]
    loss: Finite


class Outer(Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[2]
    inner: Inner
    per_class: dict[str, Finite]
    pair: tuple[int, str]
    rows: list[Inner] = []
    maybe: Inner | None = None
    notes: dict[str, Any] = {}


GOOD = {"format": 2, "inner": {"name": "a", "loss": 0.5}, "per_class": {"cat": 1}, "pair": [1, "x"]}


def refused(content):
    """The message with which a document is refused; JSON unless it is bytes already."""
    with pytest.raises(UserError) as error:
        decode(Outer, content if isinstance(content, bytes) else json.dumps(content).encode(), "run.json")
    assert len(str(error.value).splitlines()) == 1
    return str(error.value).removeprefix("run.json: ")


def test_json_and_values_give_the_same_object():
    expected = Outer(2, Inner("a", 0.5), {"cat": 1.0}, (1, "x"))
    assert decode(Outer, json.dumps(GOOD).encode(), "run.json") == decode(Outer, GOOD, "run.json") == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "'format' is 3; allowed: 2"),
        ({"inner": 3}, "'inner' is 3; allowed: a mapping with the keys name, loss"),
        ({"inner": {"name": "", "loss": 1}}, "'inner.name' is ''; allowed: a name"),
        ({"inner": {"name": 5, "loss": 1}}, "'inner.name' is 5; allowed: a name (in quotes)"),
        ({"inner": {"name": "a"}}, "key 'inner.loss' is missing; it is a finite number"),
        ({"inner": {"name": "a", "loss": True}}, "'inner.loss' is True; allowed: a finite number"),
        ({"inner": {"name": "a", "loss": 1, "x\ny": 1}}, "unknown key 'inner.x\\ny'; allowed here: name, loss"),
        ({"per_class": {"cat": 1, "dog": "1"}}, "'per_class.dog' is '1'; allowed: a finite number"),
        ({"per_class": [1]}, "'per_class' is [1]; allowed: a mapping"),
        ({"pair": [1, 2]}, "'pair[1]' is 2; allowed: text (in quotes)"),
        ({"pair": [1]}, "'pair' is [1]; allowed: a list"),
        ({"rows": [{"name": "a", "loss": 1}, {"name": "b", "loss": None}]}, "'rows[1].loss' is None; allowed: a finite number"),
        ({"maybe": {"name": "a", "loss": "x"}}, "'maybe.loss' is 'x'; allowed: a finite number"),
        ({"maybe": 1}, "'maybe' is 1; allowed: a mapping with the keys name, loss"),
        ({"more": 1}, "unknown key 'more'; allowed here: format, inner, per_class, pair, rows, maybe, notes"),
        ({"x` - at `$.nowhere": 1}, "unknown key 'x` - at `$.nowhere'; allowed here: format, inner, per_class, pair, rows, maybe, notes"),
        ({"x` - at `$.inner": 1}, "'inner': Object contains unknown field `x`"),
        ({"x` - at `$.pair[7]": 1}, "'pair': Object contains unknown field `x`"),
        ({"per_class": {"http://alice:secret@host": "x"}}, "'per_class.http://***@host' is 'x'; allowed: a finite number"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_itself_and_what_is_allowed(changes, message):
    assert refused(GOOD | changes) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged: not JSON (Input data was truncated)"),
        (b"{", "damaged: not JSON (Input data was truncated)"),
        (b"[]", "the document is []; allowed: a mapping with the keys format, inner, per_class, pair, rows, maybe, notes"),
        (b'{"a": NaN}', "damaged: not JSON (JSON is malformed: invalid character (byte 6))"),
        (b'{"a": -Infinity}', "damaged: not JSON (JSON is malformed: invalid character (byte 7))"),
        (b'{"a": 1e999}', "damaged: not JSON (Number out of range - at `$[...]`)"),
        (b"\xff", "damaged: not JSON (JSON is malformed: invalid character (byte 0))"),
        (b"[" * 100_000, f"damaged: nested more than {DEEPEST} deep"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), f"damaged: nested more than {DEEPEST} deep"),
    ],
)
def test_what_is_no_json_of_ours_is_damaged(content, message):
    assert refused(content) == message


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_whatever_read_it(number):
    with pytest.raises(UserError, match=r"^run\.json: 'inner\.loss' is -?(nan|inf); allowed: a finite number$"):
        decode(Outer, GOOD | {"inner": {"name": "a", "loss": number}}, "run.json")


def test_a_key_that_is_no_text_and_half_a_character_are_refused():
    with pytest.raises(UserError, match=r"^x: key 1 is no text; allowed here: name, loss$"):
        decode(Outer, GOOD | {"inner": {"name": "a", 1: 2}}, "x")
    with pytest.raises(UserError, match=r"^x: '\\ud800' is no text: it holds half a character \(a surrogate\)$"):
        decode(Outer, GOOD | {"\ud800": 1}, "x")


def test_what_a_type_checks_itself_is_told_with_its_key():
    class Picky(Struct):
        low: int
        high: int

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError("low is above high")

    with pytest.raises(UserError, match=r"^x: 'part': low is above high$"):
        decode(Picky, {"low": 2, "high": 1}, "x", "part")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*GOOD, "rows", "maybe", "x", ""]), values, st.booleans())
def test_no_changed_document_escapes(key, value, deep):
    content = msgspec.json.encode(GOOD | ({"inner": GOOD["inner"] | {key: value}} if deep else {key: value}))
    message = ""
    try:
        assert isinstance(decode(Outer, content, "run.json"), Outer)
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1
    assert len(message) < 1000
