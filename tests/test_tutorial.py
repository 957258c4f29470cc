"""docs/tutorial.md: its commands can be copied in order, from a clone to the same weights on two machines, and print what stands there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.data import synthetic
from tests import folders, pages
from tests.conftest import ROOT


@pytest.mark.long
def test_the_tutorials_commands_end_as_the_page_says(origin: Path, tmp_path: Path) -> None:
    clone = pages.clone(origin, tmp_path / "first")
    folders.write(clone / "photos", synthetic.make(400, 100, classes=4))
    page, _, _ = (ROOT / "docs/tutorial.md").read_text().partition("## Other remotes")
    shown = pages.commands(page)
    path = f"{clone}/.venv/bin{os.pathsep}{os.environ['PATH']}"
    said = pages.run([words for words, _ in shown], tmp_path, PATH=path, DVC_SITE_CACHE_DIR=str(tmp_path / "site"))
    for (words, printed), (code, text) in zip(shown, said, strict=True):
        failing = "error:" in printed
        assert (words, code == 0, pages.missing(printed, text)) == (words, not failing, None), text
    assert (clone / "outputs/model.safetensors").read_bytes() == (tmp_path / "second/outputs/model.safetensors").read_bytes()
