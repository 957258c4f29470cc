"""Text between two markers in a Markdown file: what a command writes there, and a test reads."""

from __future__ import annotations

from pathlib import Path

from pipeline.system import files
from pipeline.system.errors import UserError


def read(path: Path, name: str) -> str:
    """The block called `name`, which `make NAME` writes, without its markers. Raises UserError as `replace` does."""
    return _split(path, name)[1].strip("\n")


def replace(path: Path, name: str, block: str) -> None:
    """Put `block` between the markers of `name`; the rest of the file stays.

    Raises:
        UserError: the file has not exactly one block of that name.
    """
    before, _, after = _split(path, name)
    begin, end = _markers(name)
    block = block.strip("\n")
    files.write_text(path, f"{before}{begin}\n{block}\n{end}{after}")


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: made by `make {name}` -->", f"<!-- /{name} -->"


def _split(path: Path, name: str) -> tuple[str, str, str]:
    """The text before the block, the block, and the text after it."""
    text = path.read_text(encoding="utf-8")
    begin, end = _markers(name)
    if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
        raise UserError(f"{path}: needs the lines '{begin}' and, below it, '{end}' once each; put them where the block goes")
    before, _, rest = text.partition(begin)
    block, _, after = rest.partition(end)
    return before, block, after
