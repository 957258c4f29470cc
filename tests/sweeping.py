"""What every sweep needs: the commands and their paths as the command line has them, a workspace, and what must hold of an answer."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.models import OptionInfo

from pipeline.cli.commands import app
from tests import kept_runs
from tests.conftest import ROOT, own_files

SLOW = {"train", "demo", "doctor", "predict", "reproduce", "check"}
"""Commands that import PyTorch: swept over fewer cases, but for `evaluate`, which stands for them."""
IN_PLACE_OF = {"runs": ["A", "B"], "folders": ["A", "B"], "run": ["A"], "images": ["no-image.png"], "to": ["A/model.onnx"]}
"""What a path that is not the one in question is, by the parameter's name; any other is left out, or is A where it is required."""
ANSWERED = (0, 2, 3)
LIMIT_SECONDS = 120


@dataclass(frozen=True)
class Parameter:
    """A path that a command takes."""

    name: str
    option: str | None
    """Its option; None for an argument."""
    required: bool
    several: bool


def commands() -> dict[str, list[Parameter]]:
    """Command -> the paths that it takes, from the functions that typer calls."""
    by_command = {}
    for registered in app.registered_commands:
        function = registered.callback
        hints = typing.get_type_hints(function, include_extras=True)
        paths = []
        for name, parameter in inspect.signature(function).parameters.items():
            annotation, info = (
                typing.get_args(hints[name])[:2] if typing.get_origin(hints[name]) is typing.Annotated else (hints[name], None)
            )
            if "Path" in str(annotation) or name == "images":
                named = getattr(info, "param_decls", None) or ()
                option = next((word for word in named if word.startswith("--")), f"--{name.replace('_', '-')}")
                required = parameter.default is inspect.Parameter.empty
                paths.append(Parameter(name, option if isinstance(info, OptionInfo) else None, required, "list" in str(annotation)))
        by_command[registered.name or function.__name__.replace("_", "-")] = paths
    return by_command


COMMANDS = commands()


def words(command: str, given: dict[str, list[str]]) -> list[str]:
    """The command line with these paths, and others where they are needed."""
    line = [command]
    for parameter in sorted(COMMANDS[command], key=lambda parameter: parameter.option is None):
        values = given.get(parameter.name) or IN_PLACE_OF.get(parameter.name) or (["A"] if parameter.required else [])
        for value in values if parameter.several else values[:1]:
            line += [parameter.option, value] if parameter.option else [value]
    return line


# --- the workspace -------------------------------------------------------------------------------------------------------


def make_runs(folder: Path) -> Path:
    """Make two kept runs there whose weights are identical, A and B, and a params.yaml that needs no network and finds no data."""
    settings = (ROOT / "params.yaml").read_text()
    (folder / "params.yaml").write_text(settings.replace("source: cifar10", "source: folder"))
    with contextlib.chdir(folder):
        for name, hardware in {"A": "A processor", "B": "Another processor"}.items():
            shutil.move(kept_runs.keep(hardware=hardware), name)
        shutil.rmtree("runs")
        shutil.rmtree(".cache")
    return folder


def watched(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of `runs` to work in; beside it and in the project nothing may change, and no special file may become another."""
    folder = tmp_path / "workspace"
    shutil.copytree(runs, folder)
    for name in ("home", "beside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site"))
    before, special = own_files(), {path: os.stat(path).st_rdev for path in ("/dev/null", "/dev/full")}
    yield folder
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if folder not in (path, *path.parents)} == {
        "home",
        "home/file",
        "beside",
        "beside/file",
    }
    assert [(tmp_path / name / "file").read_text() for name in ("home", "beside")] == ["home", "beside"]
    assert own_files() == before
    assert {path: os.stat(path).st_rdev for path in special} == special


def check(line: list[str], code: int, out: str, said: str, allowed: tuple[int, ...]) -> None:
    shown = f"{line}: exit code {code}\n{out}\n{said}"
    assert code in allowed, shown
    assert "Traceback" not in out + said, shown
