"""Which commit the sources are of: it decorates a run, and never ends one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from pipeline.system.errors import printable

CARRIED = ".revision"
"""Beside the package in a copy that was carried to where there is no Git: the name that Git gave where the copy was made."""
OF_A_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")
"""Variables that name another repository than the sources' own: Git's hooks set them."""
SECONDS = 10
"""The longest that Git may take."""


def describe(folder: Path) -> str | None:
    """The commit of the sources in `folder`, never a tag, with `-dirty` where a file differs from it; None where nothing can tell.

    Git cannot where it is missing, takes the repository for unsafe or does not answer in time, or where there is no repository; then
    a carried copy says it itself.
    """
    said = _git(folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    return said or _carried(folder)


def is_edited(folder: Path) -> bool:
    """Whether a file in `folder` itself is new, or differs from the commit; what is edited elsewhere in the repository does not count."""
    return bool(_git(folder, "status", "--porcelain", "--untracked-files=all", "--", "."))


def _git(folder: Path, *words: str) -> str | None:
    """What Git says of the repository of `folder`; None where it cannot."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_REPOSITORY}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=SECONDS
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return printable(done.stdout.decode(errors="replace").strip()) if done.returncode == 0 else None


def _carried(folder: Path) -> str | None:
    try:
        return printable((folder.parent / CARRIED).read_text(encoding="utf-8").strip()) or None
    except (OSError, ValueError):
        return None
