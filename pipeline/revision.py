"""What Git calls the commit that sources are of."""

from __future__ import annotations

import subprocess
from pathlib import Path


def describe(folder: Path) -> str | None:
    """The commit of the sources in `folder`, with `-dirty` where they differ from it; None where Git cannot tell."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() or None if done.returncode == 0 else None
