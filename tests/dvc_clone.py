"""A checkout with its own Git and DVC, in which the real stages train on a small set, and what is done in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.data import synthetic
from pipeline.runs import kept as runs
from pipeline.system import tensors
from tests import folders
from tests.conftest import ROOT
from tests.settings import set_params

BIN = Path(sys.executable).parent
SMALL = "synthetic-small"
TRAIN = {"epochs": 1, "batch_size": 16, "lr": 0.05, "momentum": 0.9, "log_every": 10}


def sh(folder: Path, *words: str) -> str:
    """What a command says, run in `folder` with this environment's programs first."""
    done = attempt(folder, *words)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def attempt(folder: Path, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, with this environment's programs first."""
    return subprocess.run(words, cwd=folder, env=environment(**changed), capture_output=True, text=True)


def environment(**changed: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", **changed}


def kept(folder: Path) -> dict[str, str]:
    """Name of each kept run -> the fingerprint that its own weights have; every run must be whole."""
    return {path.name: tensors.fingerprint(runs.load(path).weights) for path in runs.listed(folder / "runs")}


def copied(clone: Path, tmp_path: Path) -> Path:
    """A copy of the clone, to be changed."""
    return Path(shutil.copytree(clone, tmp_path / "copy", symlinks=True))


def make(folder: Path) -> None:
    """Make `folder` a checkout with its own Git and DVC, a small set, and one finished run, committed."""
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "networks", folder / "networks", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    # DVC runs the real stages; the set is small, so that a training takes a second
    folders.use(folder, SMALL, synthetic.make(640, 200))
    set_params(folder, train=TRAIN)
    for words in (["git", "init", "-q", "-b", "main"], ["git", "config", "user.email", "tests@example.invalid"],
                  ["git", "config", "user.name", "tests"], ["dvc", "init", "-q"],
                  ["cp", f"{ROOT}/.dvc/config", ".dvc"], ["dvc", "repro", "-q"],
                  ["git", "add", "-A"], ["git", "commit", "-qm", "a run"]):  # fmt: skip
        sh(folder, *words)
