"""The project's own shape: stages name what they import and read, imports have one direction, help answers at once."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import inputs, params, sources
from pipeline.cli import commands
from pipeline.data import download
from tests.steps import drawn_set

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipeline"
COMMANDS_FILE = PACKAGE / "cli" / "commands.py"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def file_of(module: str) -> str | None:
    """The file of one of the pipeline's modules or packages, relative to the package; None for any other name."""
    path = ROOT / module.replace(".", "/")
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((str(file.relative_to(PACKAGE)) for file in files if file.is_relative_to(PACKAGE) and file.exists()), None)


def imported(source: ast.AST) -> set[str]:
    """The files of the pipeline that a piece of code imports, anywhere in it: inside functions and for the type checker too."""
    files = set()
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            files |= {file_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            files |= {file_of(f"{node.module}.{alias.name}") or file_of(node.module) for alias in node.names}
    return files - {None}


IMPORTS = {str(path.relative_to(PACKAGE)): imported(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py")}


def reached(start: set[str], imports: dict[str, set[str]] = IMPORTS) -> set[str]:
    """`start`, and all that these files import, directly or not."""
    left, seen = set(start), set()
    while left:
        file = left.pop()
        seen.add(file)
        left |= imports[file] - seen
    return seen


def with_packages(files: set[str]) -> set[str]:
    """`files` and the packages that they are in, which Python imports before them."""
    return files | {str(folder / "__init__.py") for file in files for folder in Path(file).parents}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_module_that_its_command_imports_and_on_no_folder_or_file_in_vain(stage):
    deps = {dep.removeprefix("pipeline/") for dep in STAGES[stage]["deps"] if dep.startswith("pipeline/")}
    assert deps == set(sources.STAGES[stage])
    command = next(node for node in ast.parse(COMMANDS_FILE.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == stage)
    needed = with_packages(reached(imported(command))) - {"__init__.py"}
    assert needed <= set(sources.files(stage))
    assert [dep for dep in deps if not any(file == dep or file.startswith(f"{dep}/") for file in needed)] == []


def test_no_module_imports_what_comes_after_it_directly_or_not():
    """An import inside a function counts: it comes later, but goes the same way."""
    order = ["params.py", "device", "data", "models", "training", "evaluation.py", "comparison"]
    places = {file: order.index(file.split("/")[0]) for file in IMPORTS if file.split("/")[0] in order}
    assert set(places.values()) == set(range(len(order)))
    upward = [(file, other) for file in places for other in reached({file}) if places.get(other, 0) > places[file]]
    assert upward == []


def test_no_module_imports_itself_by_way_of_others():
    """Inside functions and for the type checker neither."""
    assert [file for file in IMPORTS if file in reached(IMPORTS[file])] == []


def test_no_file_of_the_package_has_more_than_300_lines():
    assert [file for file in IMPORTS if len((ROOT / "pipeline" / file).read_text().splitlines()) > 300] == []


def test_rooms_are_few_and_none_imports_itself_by_way_of_others():
    """A room is a package of the pipeline's, or a module beside them."""
    rooms = {file.split("/")[0]: set() for file in IMPORTS}
    for file, others in IMPORTS.items():
        rooms[file.split("/")[0]] |= {other.split("/")[0] for other in others} - {file.split("/")[0]}
    assert len(rooms) <= 22
    assert set(rooms) == sources.OTHERS.union(*sources.STAGES.values()), "a stage knows every room, or that it changes nothing"
    assert [room for room in rooms if room in reached(rooms[room], rooms)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_the_name_of_its_command_and_its_module_or_section(stage):
    assert STAGES[stage]["cmd"] == f"exec python -m pipeline {stage}"


class Recorder:
    """Params that note which of their sections are read."""

    def __init__(self, given: params.Params) -> None:
        self.given, self.read = given, set()

    def __getattr__(self, name: str):
        self.read.add(name)
        return getattr(self.given, name)


def test_a_stage_lists_the_parameters_that_it_reads(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = params.load(ROOT / "params.yaml")
    monkeypatch.setattr(download, "download", lambda data: drawn_set())
    arguments = {"download": {}, "train": {"checkpoint_seconds": 15}, "evaluate": {"run": None, "device": None}}
    read = {}
    for stage in STAGES:
        recorder = Recorder(given)
        monkeypatch.setattr(params, "load", lambda recorder=recorder: recorder)
        getattr(commands, stage)(**arguments[stage])
        read[stage] = recorder.read
    assert (
        read
        == {stage: {name.partition(".")[0] for name in STAGES[stage]["params"]} for stage in STAGES}
        == {k: set(v) for k, v in inputs.PARAMS.items()}
    )


def test_no_path_of_an_output_is_spelled_in_code_but_in_the_module_that_owns_it():
    outputs = {Path(out).name for stage in STAGES.values() for key in ("outs", "metrics") for out in stage.get(key, [])}
    for path in (ROOT / "pipeline").rglob("*.py"):
        if path.name not in ("outputs.py", "dataset.py"):
            strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not strings & outputs, path


def test_only_the_modules_of_devices_know_devices():
    pattern = re.compile(r"torch\.cuda|\.cuda\(|[\"'](?:cpu|cuda|mps)(?::\d+)?[\"']")
    for path in (ROOT / "pipeline").rglob("*.py"):
        if path.parent.name in ("device", "port") or path.name in ("precision.py", "hardware.py"):
            continue
        code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL)
        assert not pattern.findall(code), path


def test_params_yaml_is_valid_and_trains_as_the_tutorial_does():
    given = params.load(ROOT / "params.yaml")
    assert (given.device, given.seed, given.numerics, given.data.source) == ("cpu", 0, "exact", "cifar10")
    assert (given.train.epochs, given.train.batch_size, given.train.lr, given.train.momentum) == (2, 64, 0.001, 0.9)


COMMANDS = re.findall(r"@app\.command\(\)\ndef (\w+)", COMMANDS_FILE.read_text())


def pipeline(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments] if code else [sys.executable, "-m", "pipeline", *arguments],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help_that_does_not_load_pytorch(command):
    code = "import sys, runpy\ntry: runpy.run_module('pipeline', run_name='__main__')\nfinally: assert 'torch' not in sys.modules, 'torch'"
    done = pipeline(*filter(None, [command]), "--help", code=code)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3


def test_a_mistake_is_one_line_with_the_remedy_and_exit_code_2():
    done = pipeline("evaluate", "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr == "error: --device cpu without --run: the stage's device is set in params.yaml; name a kept run with --run\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train", "--fast"], "No such option: --fast"),
        (["evaluate", "--run"], "Option '--run' requires an argument."),
    ],
)
def test_a_command_line_that_is_wrong_is_one_line_with_the_remedy_and_exit_code_2(words, message):
    done = pipeline(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message} (see python -m pipeline --help)\n")


def test_no_command_shows_the_help():
    assert pipeline().stdout == pipeline("--help").stdout


def test_make_repro_runs_the_environments_python_whatever_the_path_has(tmp_path):
    (tmp_path / "requirements").mkdir()
    for name in ("uv.txt", "dev.txt", "torch.txt"):
        (tmp_path / "requirements" / name).touch()
    (tmp_path / "pyproject.toml").touch()
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, line in (("dvc", "exec python"), ("python", "echo the python of .venv")):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    (tmp_path / ".venv" / ".ready").touch()
    done = subprocess.run(
        ["make", "--silent", "-f", ROOT / "Makefile", "repro"], cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert (done.returncode, done.stdout) == (0, "the python of .venv\n")


def test_the_readme_names_every_command_and_with_the_page_for_contributors_every_make_target():
    readme = (ROOT / "README.md").read_text()
    both = readme + (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)) - {"help"}
    assert [name for name in COMMANDS if f"python -m pipeline {name}" not in readme] == []
    assert [name for name in targets if not re.search(rf"make {name}\b(?!-)", both)] == []


def test_the_architecture_page_has_a_row_for_every_module_or_its_package():
    page = (ROOT / "docs" / "architecture.md").read_text()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").rglob("*.py")} - {"pipeline/__init__.py"}
    assert [name for name in modules if f"`{name}`" not in page and f"`{'/'.join(name.split('/')[:2])}/`" not in page] == []
