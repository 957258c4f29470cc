"""The project as a package: what is installed, what it brings, and a command that needs neither this folder nor a path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline import __version__
from tests.conftest import ROOT
from tests.dvc_clone import attempt, copied, kept

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the packages of this one and the project, as `make setup` installs it; its Python."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "pipeline", folder / "project" / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "project")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    here = next(path for path in sys.path if Path(path, "torch").is_dir())
    (site / "here.pth").write_text(here + "\n")
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "uv", "pip", "install", "--no-deps", "--no-build-isolation", "--python", python, folder / "project"]
    done = subprocess.run(install, capture_output=True, text=True, env=os.environ | {"UV_CACHE_DIR": str(folder / "cache")})
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "project")
    return python


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that knows nothing of the project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.mark.fault(65)
@pytest.mark.parametrize("safe", ["", "1"])
def test_the_installed_command_answers_in_any_folder_and_on_a_safe_path(safe, installed, elsewhere):
    for command in ([installed.with_name("pipeline")], [installed, "-m", "pipeline"]):
        for words, code, said in ((["--version"], 0, f"pipeline {__version__}\n"), (["train"], 2, "error: params.yaml: not found; run ")):
            done = subprocess.run([*command, *words], capture_output=True, text=True, env=os.environ | {"PYTHONSAFEPATH": safe})
            assert (done.returncode, (done.stdout + done.stderr)[: len(said)]) == (code, said)


@pytest.mark.fault(65)
def test_dvc_repro_on_a_safe_path_ends_in_the_same_run(clone, tmp_path):
    folder = copied(clone, tmp_path)
    done = attempt(folder, "dvc", "repro", "--force", "--single-item", "evaluate", PYTHONSAFEPATH="1")
    assert (done.returncode, kept(folder)) == (0, kept(clone)), done.stderr


@pytest.mark.fault(65)
@pytest.mark.parametrize("stage", ["download", "train", "evaluate"])
def test_a_stage_of_other_sources_than_those_that_dvc_sees_is_refused(stage, installed, elsewhere):
    """On a safe path the installed package runs, and not the one beside dvc.yaml, whose sources DVC notes."""
    shutil.copytree(ROOT / "pipeline", "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    Path("dvc.yaml").write_text("")
    said = []
    for changed in ("", "# edited\n", None):
        source = Path("pipeline", "data", "dataset.py")
        source.unlink() if changed is None else source.write_text(source.read_text() + changed)
        done = subprocess.run([installed, "-P", "-m", "pipeline", stage], capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        said.append(done.stderr[:60])
    other = f"error: the sources of {stage} in pipeline/, which DVC sees, are not those that run"
    assert said == ["error: params.yaml: not found; run from the folder that holds"[:60], other[:60], other[:60]]


def test_what_is_installed_has_every_file_of_the_package(installed):
    (site,) = installed.parent.parent.glob("lib/python*/site-packages")
    there, here = ({str(path.relative_to(folder)) for path in (folder / "pipeline").rglob("*.*") if path.suffix != ".pyc"
                    and path.parent.name != "__pycache__"} for folder in (site, ROOT))  # fmt: skip
    assert there == here


def test_the_package_asks_for_what_the_lock_has_within_its_ranges():
    from packaging.requirements import Requirement

    asked = {Requirement(text).name: Requirement(text).specifier for text in PROJECT["dependencies"]}
    listed = (ROOT / "requirements" / "run.in").read_text().partition("# what torch needs")[0].splitlines()
    assert asked.keys() - {"torch", "torchvision", "jinja2"} == {line for line in listed if not line.startswith("#")}
    locked = (ROOT / "requirements" / "run.txt").read_text() + (ROOT / "requirements" / "torch.txt").read_text()
    for name, versions in asked.items():
        found = [line.split()[0].partition("==")[2] for line in locked.splitlines() if line.startswith(name.replace(".", "-") + "==")]
        assert found, name
        assert all(version in versions for version in found), (name, found, str(versions))


@pytest.mark.fault(65)
def test_an_editor_that_runs_the_file_runs_the_command_line(elsewhere):
    done = subprocess.run([sys.executable, ROOT / "pipeline" / "__main__.py", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pipeline {__version__}\n", "")
