"""Git's name for the sources' revision, where there is one. It decorates a run, so nothing about it ever fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from pipeline.errors import printable

OF_A_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")
"""Variables that name another repository than the sources' own: Git's hooks set them."""
CARRIED = ".revision"
"""Beside the package in a copy that was carried to where there is no Git: what Git said where the copy was made."""
SECONDS = 10
"""The longest that Git may take."""


def describe(folder: Path) -> str | None:
    """What `git describe` says of the repository that holds `folder`, as printable text; else what a carried copy says of itself.

    None where neither says anything. Git says nothing without a repository, in one that it takes for unsafe, or when it does
    not answer in time. A tag's name is bytes: what is not UTF-8 or not printable in it becomes U+FFFD.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_REPOSITORY}
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=SECONDS)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return _carried(folder)
    return (printable(done.stdout.decode(errors="replace").strip()) or None) if done.returncode == 0 else _carried(folder)


def _carried(folder: Path) -> str | None:
    try:
        return printable((folder.parent / CARRIED).read_text(errors="replace").strip()) or None
    except OSError:
        return None
