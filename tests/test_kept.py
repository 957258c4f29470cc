"""The parts of one kept run belong together, or it is refused; its name and its fingerprint say what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from pipeline.data import synthetic
from pipeline.data.dataset import Dataset
from pipeline.runs import kept as runs
from pipeline.runs import outputs
from pipeline.runs.kept import IDENTITY
from pipeline.runs.outputs import HISTORY, METRICS, MODEL, PARTS, PREDICTIONS
from pipeline.system import tensors
from pipeline.system.errors import UserError
from tests import kept_runs
from tests.conftest import command
from tests.dvc_clone import SMALL


@pytest.fixture
def whole(clone, tmp_path) -> Path:
    """A copy of a kept run, to be damaged."""
    return Path(shutil.copytree(next((clone / "runs").glob(f"{SMALL}-exact-*-seed0-*")), tmp_path / "run"))


def test_one_weight_changed_after_the_run_is_refused_with_both_fingerprints(whole):
    weights = {name: array.copy() for name, array in outputs.read_weights(whole).items()}
    weights["fc3.bias"][0] += 1
    run = runs.load(whole)
    outputs.write_training(whole, weights, run.history, run.identity.provenance, run.network)
    with pytest.raises(UserError, match=r"model.safetensors: its fingerprint is .{12}\.\.\., but run.json records"):
        runs.load(whole)


def test_an_identity_that_claims_another_training_than_the_weights_say_is_refused(whole):
    document = json.loads((whole / IDENTITY).read_text())
    (whole / IDENTITY).write_text(json.dumps({**document, "seed": 1}))
    with pytest.raises(UserError, match=r"run.json: claims another training than the one that model.safetensors says made it"):
        runs.load(whole)


def test_a_run_of_format_1_is_refused_with_how_to_make_it_again(whole):
    document = json.loads((whole / IDENTITY).read_text())
    (whole / IDENTITY).write_text(json.dumps({**document, "format": 1}))
    with pytest.raises(
        UserError,
        match=r"run.json: format 1; this version reads format 2: read it with the version that made it; here put it back, or delete",
    ):
        runs.load(whole)


@pytest.mark.parametrize("name", PARTS)
def test_a_run_without_one_of_its_parts_is_refused_by_its_name(whole, name):
    (whole / name).unlink()
    with pytest.raises(UserError, match=f"{name}: not found"):
        runs.load(whole)


def test_a_part_of_another_run_is_refused(whole):
    rows = (whole / HISTORY).read_text().splitlines()
    (whole / HISTORY).write_text("\n".join([*rows[:-1], rows[-1].rpartition(",")[0] + ",0.5"]) + "\n")
    with pytest.raises(UserError, match=r"history.csv: changed after the run, or of another run"):
        runs.load(whole)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (METRICS, '{"accuracy": NaN, "loss": 1, "accuracy_per_class": {}, "fingerprint": "", "numerics": ""}', "damaged"),
        (METRICS, '{"accuracy": 1}', "loss"),
        (METRICS, "[]", r"the document is \[\]; allowed: a mapping"),
        (HISTORY, "step,epoch,loss\n1,1,inf\n", "inf where a finite"),
        (HISTORY, "step,epoch,loss\n", "it has no rows"),
        (PREDICTIONS, "index,actual,predicted,confidence\n1,a,b,0.5\n", "must count from 0"),
        (PREDICTIONS, "", "its first line is None"),
        (IDENTITY, "{}", "format"),
    ],
)
def test_a_damaged_part_is_refused_with_the_file_and_the_reason(whole, name, content, reason):
    (whole / name).write_text(content)
    with pytest.raises(UserError, match=f"{name}: .*{reason}"):
        runs.load(whole)


def test_runs_that_differ_in_anything_that_matters_have_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = kept_runs.DATA
    changes = [{}, {"seed": 1}, {"numerics": "native"}, {"train": {"lr": 0.5}}, {"device": "cuda:1"}, {"code": "d" * 64},
               {"data": msgspec.structs.replace(data, digest="2" * 64)}, {"numerics": "native", "workers": 2}, {"threads": 7},
               {"tensors": kept_runs.weights(off=1)}, {"confidence": 0.25}]  # fmt: skip
    names = [kept_runs.keep(**change).name for change in changes]
    assert len(set(names)) == len(changes)
    assert kept_runs.keep(seconds_per_epoch=99.0).name == names[0], "what is measured is no difference"


def test_the_fingerprint_is_sha_256_over_names_dtypes_shapes_and_bytes_and_counts_zeros_as_positive():
    import hashlib

    import numpy as np

    named = {"b": np.array([[1.0, -0.0]], np.float32), "a": np.array(3, np.uint8)}
    wanted = hashlib.sha256(b"a uint8 \n\x03" + b"b float32 1x2\n\x00\x00\x80\x3f\x00\x00\x00\x00").hexdigest()
    assert tensors.fingerprint(named) == wanted


def test_the_command_prints_each_runs_fingerprint_one_a_line(tmp_path):
    wanted = ""
    for name in ("one", "two"):
        weights = kept_runs.weights(off=len(wanted))
        tensors.write(tmp_path / name / MODEL, weights)
        wanted += f"{tensors.fingerprint(weights)}  {name}\n"
    assert command("fingerprint", "one", "two", folder=tmp_path).stdout == wanted


def test_a_data_set_of_another_name_with_the_same_images_has_the_same_digest():
    one = synthetic.make()
    assert Dataset("other", one.classes, *one.tensors().values()).digest == one.digest


def test_metrics_do_not_say_more_than_they_measured(clone):
    metrics = json.loads((clone / "outputs/metrics.json").read_text())
    assert metrics["accuracy"] * 200 == round(metrics["accuracy"] * 200)
