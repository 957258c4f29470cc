"""Reading the pickles in CIFAR-10's archive without executing them.

An unpickler of our own, which knows only the operations and names that such batches need. Python's own, restricted to a
list of names, would still reserve whatever memory an operation names and hash any key, so that a few bytes can exhaust
the memory, the stack or the day.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import Any

from pipeline.errors import shown

OPERATIONS = 200_000
"""In a pickle; 10,000 images need 20,000 to 100,000, by what wrote them."""
ENCODED_BYTES = 64 * 2**20
"""What a pickle may make of its text."""


class Refused(Exception):
    """The reason why something is not read."""


class Recorded:
    """Stands for an array or its dtype: what the pickle says of it, to be judged. NumPy never sees it."""

    def __init__(self, *args: Any) -> None:
        self.args: tuple[Any, ...] = args
        self.state: Any = None


def _latin1(text: str, _encoding: str) -> bytes:
    return text.encode("latin1")


_NAMES = {
    "numpy.core.multiarray _reconstruct": Recorded,
    "numpy._core.multiarray _reconstruct": Recorded,
    "numpy ndarray": Recorded,
    "numpy dtype": Recorded,
    "_codecs encode": _latin1,  # how Python 3 writes bytes in protocol 2
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def read(content: bytes) -> dict[str, Any]:
    """The dictionary in a pickle, with text as keys; strings of Python 2 are bytes, arrays are `Recorded`.

    Raises:
        Refused: it is damaged, holds anything else, or too much.
    """
    try:
        return _interpreted(content)
    except Refused:
        raise
    except Exception as error:  # a damaged pickle fails in as many ways as there are operations
        raise Refused(f"not a pickled dictionary ({type(error).__name__})") from None


def _interpreted(content: bytes) -> dict[str, Any]:
    """A stack machine; pickletools documents the operations."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    spare = ENCODED_BYTES

    def popped(count: int) -> list[Any]:
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    def marked() -> list[Any]:
        return popped(len(stack) - marks.pop())

    operations: Iterator[tuple[pickletools.OpcodeInfo, Any, Any]] = pickletools.genops(content)
    for number, (opcode, argument, _) in enumerate(operations):
        if number == OPERATIONS:
            raise Refused(f"more than {OPERATIONS} pickle operations")
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "SHORT_BINUNICODE" | "BINUNICODE" | "SHORT_BINBYTES" | "BINBYTES":
                stack.append(argument)
            case "SHORT_BINSTRING" | "BINSTRING":
                stack.append(argument.encode("latin1"))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_CONSTANTS[opcode.name])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(popped(int(opcode.name[-1]))))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND" | "APPENDS":
                items = popped(1) if opcode.name == "APPEND" else marked()
                stack[-1].extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM" | "SETITEMS":
                items = popped(2) if opcode.name == "SETITEM" else marked()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    stack[-1][_text(key)] = value
            case "GLOBAL" | "STACK_GLOBAL":
                name = argument or " ".join(popped(2))
                if name not in _NAMES:
                    raise Refused(f"forbidden global {shown(name.replace(' ', '.'))}; nothing was executed")
                stack.append(_NAMES[name])
            case "REDUCE":
                function, arguments = popped(2)
                if function is not Recorded and function is not _latin1:
                    raise Refused("a pickle operation calls what is no function")
                stack.append(function(*arguments))
                spare -= len(stack[-1]) if function is _latin1 else 0
                if spare < 0:
                    raise Refused(f"more than {ENCODED_BYTES} bytes")
            case "BUILD":
                recorded, state = popped(2)
                if not isinstance(recorded, Recorded):
                    raise Refused("a pickle operation changes what is no array")
                recorded.state = state
                stack.append(recorded)
            case other:
                raise Refused(f"forbidden pickle operation {other}; write the batches with pickle protocol 2")
    if len(stack) != 1 or type(stack[0]) is not dict:
        raise Refused("not a pickled dictionary")
    return stack[0]


def _text(key: Any) -> str:
    if not isinstance(key, str | bytes):
        raise Refused("a key is not text")
    return key if isinstance(key, str) else key.decode()
