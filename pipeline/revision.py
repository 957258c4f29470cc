"""What Git calls the commit that sources are of."""

from __future__ import annotations

import subprocess
from pathlib import Path

CARRIED = ".revision"
"""Beside the package in a copy that was carried to where there is no Git: the name that Git gave where the copy was made."""


def describe(folder: Path) -> str | None:
    """The commit of the sources in `folder`, with `-dirty` where they differ from it; None where nothing can tell."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]  # the commit, never a tag
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return carried(folder)
    return done.stdout.decode(errors="replace").strip() or None if done.returncode == 0 else carried(folder)


def carried(folder: Path) -> str | None:
    """What the copy that holds the package in `folder` says of itself, or None."""
    try:
        return (folder.parent / CARRIED).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
