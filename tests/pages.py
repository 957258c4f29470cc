"""The commands of a page: what it shows, and what they print when they are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from pipeline.data import synthetic
from tests.conftest import ROOT, git

SMALL = "synthetic-small"
"""What a small set is called that takes the place of the synthetic one."""


def commands(page: str) -> list[tuple[str, str]]:
    """The commands in the indented blocks of a page, each with what it prints there."""
    found = []
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", page, re.MULTILINE):
        lines = "".join(line[4:] or "\n" for line in block.splitlines(keepends=True))
        found += re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", lines, re.MULTILINE) or [(line, "") for line in lines.splitlines() if line]
    return found


def clone(origin: Path, folder: Path) -> Path:
    """A fresh clone in `folder`, with this environment as its own, in which Git knows who commits."""
    git("clone", "--quiet", str(origin), str(folder), folder=ROOT)
    (folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".ready":
            (folder / ".venv" / part.name).symlink_to(part)
    (folder / ".venv" / ".ready").touch()  # newer than the requirements, so `make setup` has nothing to do
    git("config", "user.name", "tests", folder=folder)
    git("config", "user.email", "tests@example.invalid", folder=folder)
    return folder


def run(words: list[str], folder: Path, **changed: str) -> list[tuple[int, str]]:
    """The exit code of each command and what it printed: all in one shell, in order."""
    script = "".join(f'{command} 2>&1\necho "@@ $?"\n' for command in words)
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "COLUMNS": "80", **changed}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    parts = re.split(r"@@ (\d+)\n", done.stdout)
    assert len(parts) == 2 * len(words) + 1, done.stdout + done.stderr
    return [(int(code), said) for said, code in zip(parts[::2], parts[1::2], strict=False)]


def missing(shown: str, said: str) -> str | None:
    """What is shown and was not said, in order, but for what `skeleton` leaves out and an ellipsis cuts."""
    said = skeleton(said)
    for part in map(skeleton, shown.split("…")):
        if part not in said:
            return part
        said = said[said.index(part) + len(part) :]
    return None


def skeleton(text: str) -> str:
    """What of a text does not depend on the data set, without the lines of progress: no numbers, digests, classes and tensors."""
    text = re.sub(r"^train: .*\n", "", text.replace(SMALL, "synthetic"), flags=re.MULTILINE)
    text = re.sub("|".join(synthetic.CLASSES), "class", re.sub(r"\w+\.(weight|bias)\b", "tensor", text))
    text = re.sub(r"(?<![\w.])[0-9a-f]{7,64}\b", "#", text)
    return " ".join(re.sub(r"[-+]?\d+(?:[.,]\d+)*(?:e-\d+)?", "#", text).split())
