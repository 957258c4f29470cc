"""Which files are read: the scripts that were named, those of a folder, and the modules beside them that they import."""

from __future__ import annotations

import ast
import io
import os
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.port.script import NotPython, parsed, without_async
from pipeline.system import paths
from pipeline.system.errors import UserError

_NOT_THEIRS = {"__pycache__", "node_modules", "site-packages", "build", "dist"}


@dataclass
class Source:
    """A script as it lies there."""

    path: Path
    text: str
    encoding: str
    named: bool
    """Whether the user named this file, and no folder or other script that led to it."""
    imports: dict[str, Path] = field(default_factory=dict)
    """The user's own modules that it imports, by the words of its import statements."""
    fault: str = ""
    """Why it could not be read."""

    def encoded(self, text: str) -> bytes:
        """`text` in the encoding of the file."""
        return text.encode(self.encoding)


def collect(given: Sequence[Path]) -> list[Source]:
    """All scripts, each after those that it imports.

    Raises:
        UserError: there is none, or one imports the next too often for Python.
    """
    found: dict[str, Source] = {}
    order: list[Source] = []
    roots = [path if os.path.isdir(path) else path.parent for path in given]
    for path in given:
        for script in _scripts(path):
            try:
                _follow(script, script == path, roots, found, order)
            except RecursionError:
                raise UserError(f"{script}: its modules import each other in too long a row to be followed; name some alone") from None
    return order


def _scripts(path: Path) -> list[Path]:
    """The scripts at a path: a file itself, all `*.py` of a folder, but for environments and what begins with a dot."""
    if path.suffix == ".ipynb":
        raise UserError(f"{path}: a notebook; `jupyter nbconvert --to script {path.name}` makes a script of it")
    if not os.path.isdir(path):
        return [path]
    scripts = []
    try:
        for folder, folders, names in os.walk(path, onerror=_raise):
            folders[:] = sorted(
                f for f in folders if f not in _NOT_THEIRS and not f.startswith(".") and not (Path(folder, f, "pyvenv.cfg")).exists()
            )
            scripts += [Path(folder, name) for name in sorted(names) if name.endswith(".py") and not name.startswith(".")]
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror}; name a script, or a folder of scripts") from None
    if not scripts:
        raise UserError(f"{path}: there is no script (*.py) in this folder; name one, or another folder")
    return scripts


def _raise(error: OSError) -> None:
    raise error


def _follow(path: Path, named: bool, roots: list[Path], found: dict[str, Source], order: list[Source]) -> Source:
    """Read a script after the modules that it imports, unless it was read before."""
    file = os.path.realpath(path)
    if file in found:
        found[file].named = found[file].named or named
        return found[file]
    source = found[file] = read(path, named)
    for words, module in _modules(source, roots):
        source.imports[words] = _follow(module, False, roots, found, order).path
    order.append(source)
    return source


def read(path: Path, named: bool = True) -> Source:
    """The text of a script, in the encoding that it declares, or why there is none."""
    try:
        content = bytes(paths.read(path))
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
        if "\0" in text:
            raise UnicodeDecodeError("utf-8", content, text.index("\0"), text.index("\0") + 1, "a byte 0")
        if text.encode(encoding) != content:
            raise UnicodeError(f"its encoding, {encoding}, would not be written as it is")
        return Source(path, text, encoding, named)
    except OSError as error:
        fault = f"cannot be read: {error.strerror}"
    except UserError as error:
        fault = str(error).removeprefix(f"{path}: ")
    except (SyntaxError, UnicodeError, LookupError) as error:  # the last of a codec that is not for texts
        fault = f"no Python: {error}"
    return Source(path, "", "utf-8", named, fault=fault)


def _modules(source: Source, roots: list[Path]) -> Iterator[tuple[str, Path]]:
    """The user's own modules that a script imports: the words of the statement, and the file."""
    try:
        tree = parsed(without_async(source.text)[0] if re.search(r"\basync\s*=", source.text) else source.text)
    except (NotPython, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from ((alias.name, path) for path in _files(alias.name, 0, source.path, roots))
        elif isinstance(node, ast.ImportFrom):
            words = "." * node.level + (node.module or "")
            yield from ((words, path) for path in _files(node.module or "", node.level, source.path, roots))
            for alias in node.names:
                name = f"{node.module}.{alias.name}" if node.module else alias.name
                yield from ((f"{words}:{alias.name}", path) for path in _files(name, node.level, source.path, roots))


def _files(module: str, level: int, path: Path, roots: list[Path]) -> list[Path]:
    """The file of a module, if it lies beside the script or under a folder that was named."""
    bases = [path.parent.joinpath(*[".."] * (level - 1))] if level else [path.parent, *roots]
    parts = module.split(".") if module else []
    for base in bases:
        for file in (
            base.joinpath(*parts[:-1], f"{parts[-1]}.py") if parts else base / "__init__.py",
            base.joinpath(*parts, "__init__.py"),
        ):
            if os.path.isfile(file) and os.path.realpath(file) != os.path.realpath(path):
                return [Path(os.path.normpath(file)) if level > 1 else file]
    return []
