"""params.yaml -> frozen, validated objects. Read once, by the command line; functions take the section they need."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, shown

Section = typing.TypeVar("Section")

PARAMS = Path("params.yaml")
LARGEST = 100_000
"""Characters in a params file."""


def _allowed(text: str, check: Callable[[Any], bool]) -> Any:
    """A field whose value must pass `check`; `text` says in an error what is allowed."""
    return field(metadata={"allowed": text, "check": check})


def _one_of(*values: str) -> Any:
    return _allowed(" | ".join(values), lambda value: value in values)


def _whole(low: int, high: int) -> Any:
    return _allowed(f"a whole number from {low} to {high}", lambda value: low <= value <= high)


def _pattern(text: str, pattern: str) -> Any:
    return _allowed(text, lambda value: re.fullmatch(pattern, value) is not None and value.isprintable())


URL = r"https?://[^\s/]\S*"
DEVICE = r"cpu|mps|cuda(?::(?:0|[1-9][0-9]?))?"
"""What `device` may be. PyTorch takes more, and other devices for some of it: it makes cuda:256 cuda:0."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A user's own data set, in the layout of CIFAR-10's official archive."""

    name: str = _pattern(
        "letters, digits, '.', '_' and '-', but not cifar10 or synthetic",
        r"(?!(?i:cifar[._-]?10|synthetic)$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
    )
    """What metrics and kept runs call it."""
    url: str = _pattern("an http(s) URL or a path", r".+")
    """Where it is: an http(s) URL, or a path relative to the folder of params.yaml."""
    sha256: str = _pattern("64 hexadecimal digits (or empty while source is another)", r"(?:[0-9a-f]{64})?")
    """Its SHA-256; nothing is unpacked before it matches."""


@dataclass(frozen=True, kw_only=True)
class Cifar10:
    """The official archive's mirrors and checksums."""

    mirrors: tuple[str, ...] = _allowed(
        "a list of http(s) URLs", lambda urls: bool(urls) and all(re.fullmatch(URL, u) and u.isprintable() for u in urls)
    )
    bytes: int = _whole(1, 10**12)
    md5: str = _pattern("32 hexadecimal digits", r"[0-9a-f]{32}")
    sha256: str = _pattern("64 hexadecimal digits", r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Data:
    """The `download` stage."""

    source: str = _one_of("cifar10", "synthetic", "archive")
    archive: Archive
    cifar10: Cifar10


@dataclass(frozen=True, kw_only=True)
class Train:
    """The `train` stage; the defaults are the guide's."""

    epochs: int = _whole(1, 100_000)
    batch_size: int = _whole(1, 1_000_000)
    lr: float = _allowed("a number above 0, at most 1000", lambda value: 0 < value <= 1000)
    momentum: float = _allowed("a number from 0 to below 1", lambda value: 0 <= value < 1)
    log_every: int = _whole(1, 1_000_000)
    """Steps between two rows of the history."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """The `evaluate` stage."""

    batch_size: int = _whole(1, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class Compare:
    """The `compare` command."""

    margin_points: float = _allowed("a number above 0, at most 100", lambda value: 0 < value <= 100)
    """Percentage points of accuracy within which two models are equivalent."""
    confidence: float = _allowed("a number above 0, at most 0.999999", lambda value: 0 < value <= 0.999999)
    """Of the interval of the difference in accuracy."""


@dataclass(frozen=True, kw_only=True)
class Params:
    """All of params.yaml."""

    device: str = _pattern("cpu | cuda | cuda:N | mps", DEVICE)
    """Where train and evaluate compute."""
    seed: int = _whole(0, 2**63 - 1)
    """Chooses the initial weights and the order of the images."""
    numerics: str = _one_of("exact", "native")
    data: Data
    train: Train
    evaluate: Evaluate
    compare: Compare


def load(path: Path = PARAMS) -> Params:
    """Read and validate a params file.

    Raises:
        UserError: with the file, the key, the value found and what is allowed.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the folder that holds it (a clone of this project)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return parse(text, str(path))


def parse(text: str, source: str = "params") -> Params:
    """Validate the YAML `text`; `source` names it in errors. Raises UserError as `load` does."""
    return typing.cast(Params, _build(Params, _yaml(text, source), source, ""))


def section(cls: type[Section], values: Any, source: str) -> Section:
    """A section of params as something else than params.yaml records it. Raises UserError as `load` does."""
    return typing.cast(Section, _build(cls, values, source, cls.__name__.lower()))


def _yaml(text: str, source: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2's core schema, which DVC reads (010 is not 8, yes is not true), where a key given twice is an error."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                    raise UserError(f"{source}: a key must be plain text, not a list or a mapping (line {key.start_mark.line + 1})")
                if key.value in seen:
                    raise UserError(f"{source}: key {shown(key.value)} is given twice (line {key.start_mark.line + 1}); keep one")
                seen.add(key.value)
            return typing.cast(dict[Any, Any], super().construct_mapping(node, deep))

    Loader.yaml_implicit_resolvers = {}
    for kind, pattern, first in (
        ("null", r"~|null|", ["", "~", "n"]),
        ("bool", r"true|false", "tf"),
        ("int", r"[-+]?(?:0|[1-9]\d*)", "-+0123456789"),
        ("float", r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.inf|\.nan", "-+0123456789."),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$", re.ASCII), list(first))
    if len(text) > LARGEST:
        raise UserError(f"{source}: longer than {LARGEST} characters; this is not a params file")
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a subclass of SafeLoader
    except UserError:
        raise
    except Exception as error:  # not only YAMLError: PyYAML answers "!!bool maybe" with a KeyError, "[[[[..." with a RecursionError
        problem = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: not valid YAML: {problem or type(error).__name__}") from None


def _build(cls: type, value: Any, source: str, at: str) -> Any:
    """Make a dataclass of `cls` from a mapping; `at` is the dotted key."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    where = at or "the file"
    if not isinstance(value, dict):
        raise UserError(f"{source}: {where} is {shown(value)}; it must be a mapping with the keys {', '.join(fields)}")
    prefix = f"{at}." if at else ""
    for key in value:
        if key not in fields:
            raise UserError(f"{source}: unknown key {shown(f'{prefix}{key}')}; allowed here: {', '.join(fields)}")
    types = typing.get_type_hints(cls)
    made = {}
    for name, spec in fields.items():
        if name not in value:
            raise UserError(f"{source}: key '{prefix}{name}' is missing; it is {_describe(spec, types[name])}")
        made[name] = _check(types[name], spec, value[name], source, prefix + name)
    return cls(**made)


def _describe(spec: dataclasses.Field[Any], kind: Any) -> str:
    return str(spec.metadata.get("allowed") or f"a mapping with the keys {', '.join(f.name for f in dataclasses.fields(kind))}")


def _check(kind: Any, spec: dataclasses.Field[Any], value: Any, source: str, at: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, source, at)
    made = value
    if kind is float and type(value) is int and abs(value) < 2**53:
        made = float(value)
    elif kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(v, str) for v in value):
        made = tuple(value)
    right_type = isinstance(made, tuple) if kind == tuple[str, ...] else type(made) is kind
    finite = not isinstance(made, float) or math.isfinite(made)
    if not (right_type and finite and spec.metadata["check"](made)):
        quoted = " (quote what looks like a number)" if kind is str and isinstance(value, int | float) else ""
        raise UserError(f"{source}: '{at}' is {shown(value)}; allowed: {spec.metadata['allowed']}{quoted}")
    return made
