"""Packages for another machine, in the versions of requirements/*.txt, through uv."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.system.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
LOCKED = PROJECT / "requirements" / "dev.txt"


def install(names: list[str], folder: Path, python: str, platform: str) -> None:
    """Unpack wheels of packages and of what they need into a folder, for a version of Python (3.12) and a platform as uv names it.

    Raises:
        UserError: one cannot be had, as without a package index.
    """
    target: list[str | Path] = ["--target", folder, "--python-version", python, "--python-platform", platform, "--no-build"]
    command: list[str | Path] = [sys.executable, "-m", "uv", "pip", "install", "--quiet", *target, "--constraint", LOCKED, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise UserError(f"packages for {platform} cannot be fetched; this needs a package index ({said[:300]})")
