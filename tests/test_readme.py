"""README.md: its commands can be copied in order into a fresh clone, and print what stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline import device
from pipeline.data import synthetic
from tests import folders, pages
from tests.conftest import ROOT, git
from tests.settings import set_params

README = (ROOT / "README.md").read_text()
NOT_RUN = {
    "make demo": "tests/test_stages.py runs the demo",
    "make test": "this is one of its tests",
    "make image-cpu": "needs a container engine: tests/test_containers.py",
    "docker run --rm pipeline:cpu": "needs a container engine: tests/test_containers.py",
    'docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/workspace" pipeline:cpu': "needs an engine: tests/test_containers.py",
}
"""Commands that are not run here, and why."""
ON_A_GPU = "python -m pipeline evaluate --run $RUN --device cuda"
"""Shown as it ends where there is no GPU."""
CODES = {ON_A_GPU: 2, "python -m pipeline port docs/examples/train_gpu.py": 3}
"""Other exit codes than 0."""
SHOWN = {command: shown for command, shown in pages.commands(README) if command not in NOT_RUN}


def test_what_is_not_run_is_in_the_readme():
    assert set(NOT_RUN) <= {command for command, _ in pages.commands(README)}


@pytest.fixture(scope="module")
def clone(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone, with this environment as its own, a small set and a short training."""
    folder = pages.clone(origin, tmp_path_factory.mktemp("readme") / "clone")
    small = synthetic.make(320, 2000)
    folders.use(folder, pages.SMALL, small)
    set_params(folder, train={"epochs": 2, "batch_size": 16, "lr": 0.01, "momentum": 0.9, "log_every": 10})
    Image.fromarray(small.test_images[0].transpose(1, 2, 0)).save(folder / "photo.png")
    git("commit", "--quiet", "--all", "--message", "settings", folder=folder)
    return folder


@pytest.fixture(scope="module")
def answers(clone: Path) -> dict[str, tuple[int, str]]:
    """The exit code of each command and what it printed: all in one shell, in order."""
    changed = {
        "PATH": f"{clone}/.venv/bin{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "2",  # the README sets 1 for a run that must be another one
        "DVC_SITE_CACHE_DIR": str(clone.parent / "site"),
    }
    return dict(zip(SHOWN, pages.run(list(SHOWN), clone, **changed), strict=True))


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_ends_well_and_prints_what_is_shown(command, answers):
    code, said = answers[command]
    if command == ON_A_GPU and device.accelerators():
        assert code == 0, said
    else:
        assert (code, pages.missing(SHOWN[command], said)) == (CODES.get(command, 0), None), said


@pytest.mark.parametrize("words", ["fingerprint", "compare --html page.html"])
def test_a_command_that_is_only_named_ends_well(words, answers, clone):
    """Those that are left out: DVC has run the stages, and tests/test_stages.py and tests/test_doctor.py run the demo and the doctor."""
    assert f"python -m pipeline {words.split()[0]}" in README
    environment = {**os.environ, "PATH": f"{clone}/.venv/bin{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-m", "pipeline", *words.split()], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short_enough_to_be_read():
    prose = re.sub(r"<!-- (\w+): made by .*?<!-- /\1 -->", "", README, flags=re.DOTALL)  # the tables grow with what was seen
    prose = re.sub(r"^    .*$|^ *<.*>$", "", prose, flags=re.MULTILINE)  # commands and what they print, pictures
    assert 500 < len(prose.split()) <= 900
