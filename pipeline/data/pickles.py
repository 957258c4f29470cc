"""Reading the pickles in CIFAR-10's archive without executing them.

Python's own unpickler, which may find no name but those of an array and of bytes, and each of these stands for a record of what
the pickle says: NumPy never sees it. Before it starts, the operations are counted, so that a few bytes cannot claim the memory. What
is left is in SECURITY.md.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

from pipeline.errors import shown

MOST_OPERATIONS = 200_000
"""In a pickle; 10,000 images need 20,000 to 100,000, by what wrote them."""
ENCODED_BYTES = 64 * 2**20
"""What a pickle may make of its text."""
ARRAYS = frozenset({"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"})


class Refused(Exception):
    """The reason why something is not read."""


class Recorded:
    """Stands for an array or its dtype: what the pickle says of it, to be judged."""

    def __init__(self, *args: Any) -> None:
        self.args: tuple[Any, ...] = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    encoded = 0

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for what an array or bytes need. Raises Refused for any other name."""
        qualified = f"{module}.{name}"
        if qualified in ARRAYS:
            return Recorded
        if qualified == "_codecs.encode":
            return self._latin1
        remedy = "; write the batches with pickle protocol 2" if module.startswith("numpy") else ""
        raise Refused(f"forbidden global {shown(qualified)}; nothing was executed{remedy}")

    def _latin1(self, text: str, _encoding: str) -> bytes:
        """How Python 3 writes bytes in protocol 2."""
        self.encoded += len(text)
        if self.encoded > ENCODED_BYTES:
            raise Refused(f"more than {ENCODED_BYTES} bytes")
        return text.encode("latin1")


def read(content: bytes) -> dict[str, Any]:
    """The dictionary in a pickle, with text as keys; strings of Python 2 are bytes, arrays are `Recorded`.

    Raises:
        Refused: it is damaged, holds anything else, or too much.
    """
    try:
        _check_operations(content)
        batch = _Unpickler(io.BytesIO(content), fix_imports=False, encoding="bytes").load()
        if type(batch) is not dict:
            raise Refused("not a pickled dictionary")
        return {_text(key): value for key, value in batch.items()}
    except Refused:
        raise
    except Exception as error:  # a damaged pickle fails in as many ways as there are operations
        raise Refused(f"not a pickled dictionary ({type(error).__name__})") from None


def _check_operations(content: bytes) -> None:
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        note = argument if operation.name in ("PUT", "LONG_BINPUT") else 0  # the unpickler makes room for as many notes
        if number == MOST_OPERATIONS or note > MOST_OPERATIONS:  # type: ignore[operator]
            raise Refused(f"more than {MOST_OPERATIONS} pickle operations")


def _text(key: Any) -> str:
    if not isinstance(key, str | bytes):
        raise Refused("a key is not text")
    return key if isinstance(key, str) else key.decode()
