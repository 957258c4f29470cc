"""README.md: its commands can be copied in order into a fresh clone, and print what stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data import synthetic
from tests import archives
from tests.conftest import ROOT, git
from tests.settings import set_params

README = (ROOT / "README.md").read_text()
SMALL = "synthetic-small"
NOT_RUN = {
    "make demo": "tests/test_stages.py runs the demo",
    "make test": "this is one of its tests",
    "make image-cpu": "needs a container engine: tests/test_containers.py",
    "docker run --rm pipeline:cpu": "needs a container engine: tests/test_containers.py",
    'docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/workspace" pipeline:cpu': "needs an engine: tests/test_containers.py",
    "python -m pipeline evaluate --run $RUN --device cuda": "its end depends on the GPU that is here: tests/test_device.py",
}
"""Commands that are not run here, and why."""


def blocks(page: str) -> list[list[tuple[str, str]]]:
    """The indented blocks of a page: each command, and what it prints there. Where no line has a `$`, each line is a command."""
    found = []
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", page, re.MULTILINE):
        lines = "".join(line[4:] or "\n" for line in block.splitlines(keepends=True))
        shown = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", lines, re.MULTILINE)
        found.append(shown or [(line, "") for line in lines.splitlines() if line])
    return found


SHOWN = [pair for block in blocks(README) for pair in block if pair[0] not in NOT_RUN]
COMMANDS = [command for command, _ in SHOWN]


def test_what_is_not_run_is_in_the_readme():
    assert set(NOT_RUN) <= {command for block in blocks(README) for command, _ in block}


@pytest.fixture(scope="module")
def clone(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone, with this environment as its own, a small set and a short training."""
    folder = tmp_path_factory.mktemp("readme") / "clone"
    git("clone", "--quiet", str(origin), str(folder), folder=ROOT)
    (folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".ready":
            (folder / ".venv" / part.name).symlink_to(part)
    (folder / ".venv" / ".ready").touch()  # newer than the requirements, so `make setup` has nothing to do
    small = synthetic.make(320, 2000)
    archives.use(folder, SMALL, small)
    set_params(folder, train={"epochs": 2, "batch_size": 16, "lr": 0.05, "momentum": 0.9, "log_every": 10})
    Image.fromarray(small.test_images[0].transpose(1, 2, 0)).save(folder / "photo.png")
    git("config", "user.name", "tests", folder=folder)
    git("config", "user.email", "tests@example.invalid", folder=folder)
    git("commit", "--quiet", "--all", "--message", "settings", folder=folder)
    return folder


@pytest.fixture(scope="module")
def answers(clone: Path) -> dict[str, tuple[int, str]]:
    """The exit code of each command and what it printed: all in one shell, in order."""
    script = "".join(f'{command} 2>&1\necho "@@ $?"\n' for command in COMMANDS)
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(clone.parent / "site"), "COLUMNS": "80",
                   "PATH": f"{clone}/.venv/bin{os.pathsep}{os.environ['PATH']}"}  # fmt: skip
    done = subprocess.run(["bash", "-c", script], cwd=clone, env=environment, capture_output=True, text=True)
    parts = re.split(r"@@ (\d+)\n", done.stdout)
    assert len(parts) == 2 * len(COMMANDS) + 1, done.stdout + done.stderr
    return {command: (int(code), said) for command, said, code in zip(COMMANDS, parts[::2], parts[1::2], strict=False)}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_ends_well(command, answers):
    code, said = answers[command]
    assert code == 0, said


@pytest.mark.parametrize(("command", "shown"), [pair for pair in SHOWN if pair[1].strip()], ids=lambda text: text.split("\n")[0])
def test_a_command_prints_what_is_shown(command, shown, answers):
    """But for numbers, digests and names of classes, which are those of another set, and for what an ellipsis cuts."""
    said = skeleton(answers[command][1])
    for part in shown.split("…"):
        assert skeleton(part) in said
        said = said[said.index(skeleton(part)) + len(skeleton(part)) :]


def skeleton(text: str) -> str:
    """What of a text does not depend on the data set, without the lines of progress."""
    text = re.sub(r"^train: .*\n", "", text.replace(SMALL, "synthetic"), flags=re.MULTILINE)
    text = re.sub("|".join(synthetic.CLASSES), "class", re.sub(r"\w+\.(weight|bias)\b", "tensor", text))
    text = re.sub(r"\b[0-9a-f]{7,64}\b|[-+]?\d+(?:[.,]\d+)*(?:e-\d+)?", "#", text)
    return " ".join(text.split())


@pytest.mark.parametrize("words", ["fingerprint", "compare --html page.html"])
def test_a_command_that_is_only_named_ends_well(words, answers, clone):
    """Those that are left out: DVC has run the stages, and tests/test_stages.py and tests/test_doctor.py run the demo and the doctor."""
    assert f"python -m pipeline {words.split()[0]}" in README
    environment = {**os.environ, "PATH": f"{clone}/.venv/bin{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-m", "pipeline", *words.split()], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short_enough_to_be_read():
    assert len(README.split()) < 1400
