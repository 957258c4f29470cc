"""The commit that a measurement names."""

from __future__ import annotations

from pipeline import sources
from pipeline.system import revision
from pipeline.system.errors import UserError


def measured() -> str:
    """The commit of the sources, in 12 hex digits. Raises UserError where a file differs from it, or nothing tells it."""
    commit = revision.describe(sources.PACKAGE)
    if commit is None or commit.endswith("-dirty"):
        raise UserError(f"the sources are those of no commit ({commit or 'no Git'}); commit first, then measure")
    return commit
