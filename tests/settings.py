"""Changing a params.yaml, in the way the pipeline and DVC read it."""

from __future__ import annotations

from pathlib import Path

from msgspec import to_builtins

from pipeline import params


def set_params(folder: Path, **changed: object) -> None:
    """Change values or sections of the params.yaml in `folder`."""
    path = folder / params.PARAMS
    path.write_text(params.dump(to_builtins(params.load(path)) | changed))
