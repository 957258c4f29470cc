"""What the demo says of what it found."""

from __future__ import annotations

import shutil

import pytest
import yaml

from pipeline import params
from pipeline.machine import demo
from pipeline.params import Data, Model
from tests.conftest import ROOT

OURS, OTHER = demo.FINGERPRINT, "0" * 64


@pytest.mark.fault(81)
@pytest.mark.parametrize(
    ("fingerprints", "one_evaluation", "edited", "right", "said"),
    [
        ({OURS}, True, False, True, f"every fingerprint is the one in the README: {OURS}"),
        ({OURS}, True, True, True, f"every fingerprint is the one in the README: {OURS}"),
        ({OTHER}, True, True, True, "for the sources here are edited: the claim holds of them, too"),
        ({OTHER}, True, False, False, "that is right where you changed what is trained; else please report it"),
        ({OURS, OTHER}, True, True, False, "NOT every way gave the same bits: please report it"),
        ({OURS}, False, False, False, "NOT every way gave the same bits: please report it"),
    ],
)
def test_edited_sources_prove_the_invariance_of_what_is_there_and_only_parting_bits_are_always_a_fault(
    fingerprints, one_evaluation, edited, right, said
):
    told = demo.judged(fingerprints, one_evaluation, edited)
    assert (told[0], told[1].endswith(said)) == (right, True)


@pytest.mark.fault(81)
@pytest.mark.parametrize("edited", ["seed: 5", "model: {name: networks/mine.py:Net}\ndata: {source: mnist, size: 64, folder: mine}", "]"])
def test_the_demo_has_its_own_settings_whatever_params_yaml_says(edited, tmp_path, monkeypatch):
    project, folder = tmp_path / "project", tmp_path / "demo"
    shutil.copytree(ROOT / "pipeline", project / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", project)
    (project / params.PARAMS).write_text(edited)
    monkeypatch.setattr(demo, "PROJECT", project)
    demo.lay_out(folder)
    given = params.load(folder / params.PARAMS)
    assert (given.data, given.model, given.seed) == (Data(source="synthetic"), Model(), 0)
    assert (folder / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
    written = yaml.safe_load((folder / params.PARAMS).read_text())
    assert {"folder", "size"} <= written["data"].keys(), "DVC asks for what dvc.yaml names"
