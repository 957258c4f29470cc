"""Kept runs: whatever DVC does to outputs/, nothing kept is lost or mixed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import run
from pipeline.data import synthetic
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from tests import archives, kept_runs
from tests.conftest import ROOT, command
from tests.settings import set_params

BIN = Path(sys.executable).parent
SMALL = "synthetic-small"
TRAIN = {"epochs": 1, "batch_size": 16, "lr": 0.05, "momentum": 0.9, "log_every": 10}


def sh(folder: Path, *words: str) -> str:
    """What a command says, run in `folder` with this environment's programs first."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def kept(folder: Path) -> dict[str, str]:
    """Name of each kept run -> the fingerprint that its own weights have; every run must be whole."""
    runs = [path for path in (folder / "runs").iterdir() if not path.name.startswith(".")]
    return {path.name: run.fingerprint(run.load(path).weights) for path in runs}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with its own Git and DVC, a small set, and one finished run, committed."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    # DVC runs the real stages; the set is small, so that a training takes a second
    archives.use(folder, SMALL, synthetic.make(640, 200))
    set_params(folder, train=TRAIN)
    for words in (["git", "init", "-q", "-b", "main"], ["git", "config", "user.email", "tests@example.invalid"],
                  ["git", "config", "user.name", "tests"], ["dvc", "init", "-q"],
                  ["cp", f"{ROOT}/.dvc/config", f"{ROOT}/.dvc/plots.html", ".dvc"], ["dvc", "repro", "-q"],
                  ["git", "add", "-A"], ["git", "commit", "-qm", "a run"]):  # fmt: skip
        sh(folder, *words)
    return folder


def test_a_second_repro_does_nothing(clone):
    before = (clone / "dvc.lock").read_bytes()
    assert "Data and pipelines are up to date." in sh(clone, "dvc", "repro")
    assert (clone / "dvc.lock").read_bytes() == before


def test_a_finished_run_is_kept_whole_with_its_identity_and_its_environment(clone):
    (name,) = [name for name in kept(clone) if "seed0" in name and "exact" in name]
    found = run.load(clone / "runs" / name)
    assert name.startswith(f"{SMALL}-exact-1-cpu-seed0-")
    assert (found.identity.seed, found.identity.numerics, found.identity.device) == (0, "exact-1", "cpu")
    assert found.identity.data["name"] == SMALL
    assert found.environment["train"]["seconds_per_epoch"] > 0
    assert found.environment["train"]["threads"] >= 1
    assert found.environment["evaluate"]["images_per_second"] > 0


def test_dvcs_own_views_show_what_the_docs_say(clone, tmp_path):
    """Line by line, but for numbers, digests, class names and the folder, which are another data set's."""
    folder = shutil.copytree(clone, tmp_path / "clone", ignore=shutil.ignore_patterns("runs"))  # DVC's run cache too
    blocks = re.findall(r"^    \$ (dvc .*)\n((?:    .*\n|\n(?=    ))+)", (ROOT / "docs/dvc.md").read_text(), re.MULTILINE)
    assert [" ".join(words.split()[1:3]) for words, _ in blocks] == ["exp run", "exp show", "exp diff", "metrics diff", "plots diff"]
    for words, documented in blocks:
        shown = {skeleton(line) for line in sh(folder, *shlex.split(words)).splitlines()}
        assert [line for line in documented.splitlines() if skeleton(line) not in shown | {""}] == [], words
    page = (folder / "dvc_plots" / "index.html").read_text()
    assert "vega" in page
    assert re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"(?!data:)", page) == []
    assert {f'"rev": "{name}"' in page for name in ("main", "other")} == {True}


def skeleton(line: str) -> str:
    """What of a line does not depend on the data set."""
    line = line.replace(SMALL, "synthetic")
    line = re.sub(r"(accuracy_per_class\.|worst class |file://)\S*", r"\1#", line)
    line = re.sub(r"-?\b[0-9a-f]{7,64}\b\N{HORIZONTAL ELLIPSIS}?|-?\d+(?:\.\d+)?", "#", line)
    return " ".join(re.sub(r"-{3,}|\|", " ", line).split())


def test_switching_a_setting_and_back_and_experiments_and_checkouts_lose_and_mix_nothing(clone):
    first = kept(clone)
    lock = (clone / "dvc.lock").read_bytes()
    sh(clone, "dvc", "exp", "run", "-q", "-n", "other", "-S", "seed=1")
    second = kept(clone)
    assert second.items() > first.items()
    assert len(set(second.values())) == len(second)
    sh(clone, "git", "checkout", "-q", ".")
    sh(clone, "dvc", "checkout", "-q")
    assert kept(clone) == second
    assert (clone / "dvc.lock").read_bytes() == lock
    assert "Data and pipelines are up to date." in sh(clone, "dvc", "repro")
    sh(clone, "dvc", "exp", "apply", "other")
    assert kept(clone) == second
    assert run.fingerprint(run.read_model(clone / "outputs")) in second.values()
    sh(clone, "git", "checkout", "-q", ".")
    sh(clone, "dvc", "checkout", "-q")


def test_a_run_restored_from_dvcs_cache_never_gets_an_environment_that_did_not_train_it(clone, tmp_path):
    other = tmp_path / "elsewhere"
    shutil.copytree(clone, other, ignore=shutil.ignore_patterns("runs", ".cache"))
    shutil.rmtree(other / "outputs")
    sh(other, "dvc", "checkout", "-q", "outputs/model.safetensors", "outputs/history.csv", "data/dataset.safetensors")
    sh(other, sys.executable, "-m", "pipeline", "evaluate")
    (name,) = kept(other)
    found = run.load(other / "runs" / name)
    assert found.environment["train"] is None
    assert found.environment["evaluate"]["threads"] >= 1


def test_evaluate_alone_keeps_nothing_with_settings_that_did_not_train_these_weights(clone, tmp_path):
    other = Path(shutil.copytree(clone, tmp_path / "other"))
    before = kept(other)
    set_params(other, train={**TRAIN, "lr": 0.005})
    done = command("evaluate", folder=other)
    assert (done.returncode, done.stderr) == (
        2,
        "error: outputs/model.safetensors: trained with other settings than params.yaml's; run `dvc repro`, which trains again\n",
    )
    assert kept(other) == before
    sh(other, "dvc", "repro", "-q")
    (name,) = kept(other).keys() - before.keys()
    found = run.load(other / "runs" / name)
    assert found.identity.train["lr"] == 0.005
    assert found.environment["train"]["threads"] >= 1


def test_weights_that_dvc_restored_are_kept_although_they_were_trained_here_on_another_device(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = kept_runs.keep(device="cpu")
    shutil.copytree(made, run.OUTPUTS)
    elsewhere = dataclasses.replace(run.load(made).identity, device="cuda")
    with pytest.raises(UserError, match="trained with other settings"):
        run.keep(run.OUTPUTS, run.RUNS, elsewhere, {"threads": 1})
    monkeypatch.setenv("DVC_STAGE", "evaluate")
    assert run.load(run.keep(run.OUTPUTS, run.RUNS, elsewhere, {"threads": 1})).environment["train"] is None


def test_a_model_of_another_run_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = kept_runs.keep()
    shutil.copytree(made, run.OUTPUTS)
    identity = run.load(made).identity
    run.write_model(run.OUTPUTS, kept_runs.weights(off=1))
    found, wanted = run.fingerprint(kept_runs.weights(off=1)), identity.fingerprint
    with pytest.raises(UserError) as refusal:
        run.keep(run.OUTPUTS, run.RUNS, identity, {})
    assert str(refusal.value) == f"outputs/model.safetensors: its fingerprint is {found[:12]}..., not {wanted[:12]}...; run `dvc repro`"


def test_exact_runs_of_other_threads_change_nothing_in_dvc_lock(clone, tmp_path):
    other = tmp_path / "threads"
    shutil.copytree(clone, other, ignore=shutil.ignore_patterns("outputs", "runs", ".cache", "cache", "data"))
    shutil.copytree(clone / "pipeline/data", other / "pipeline/data", dirs_exist_ok=True)
    lock = (other / "dvc.lock").read_bytes()
    (other / "dvc.lock").unlink()
    environment = {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"}
    sh(other, "env", *(f"{key}={value}" for key, value in environment.items()), "dvc", "repro", "-q")
    assert (other / "dvc.lock").read_bytes() == lock


@pytest.mark.cuda
def test_an_exact_run_on_cuda_changes_nothing_in_dvc_lock_but_the_device(clone, cuda, tmp_path):
    other = Path(shutil.copytree(clone, tmp_path / "cuda"))
    lock = (other / "dvc.lock").read_text()
    sh(other, "dvc", "exp", "run", "-q", "-S", "device=cuda")
    assert (other / "dvc.lock").read_text() == lock.replace("device: cpu", "device: cuda") != lock


# --- the parts of one run, without DVC -------------------------------------------------------------------------------


@pytest.fixture
def whole(clone, tmp_path) -> Path:
    """A copy of a kept run, to be damaged."""
    return Path(shutil.copytree(next((clone / "runs").glob(f"{SMALL}-*")), tmp_path / "run"))


def test_one_weight_changed_after_the_run_is_refused_with_both_fingerprints(whole):
    weights = {name: array.copy() for name, array in run.read_model(whole).items()}
    weights["fc3.bias"][0] += 1
    run.write_model(whole, weights)
    with pytest.raises(UserError, match=r"model.safetensors: its fingerprint is .{12}\.\.\., but run.json records"):
        run.load(whole)


@pytest.mark.parametrize("name", run.PARTS)
def test_a_run_without_one_of_its_parts_is_refused_by_its_name(whole, name):
    (whole / name).unlink()
    with pytest.raises(UserError, match=f"{name}: not found"):
        run.load(whole)


def test_a_part_of_another_run_is_refused(whole):
    rows = (whole / run.HISTORY).read_text().splitlines()
    (whole / run.HISTORY).write_text("\n".join([*rows[:-1], rows[-1] + "1"]) + "\n")
    with pytest.raises(UserError, match="changed after the run, or of another run"):
        run.load(whole)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (run.METRICS, '{"accuracy": NaN, "loss": 1, "accuracy_per_class": {}, "fingerprint": "", "numerics": ""}', "NaN where a finite"),
        (run.METRICS, '{"accuracy": 1}', "key 'loss' is missing"),
        (run.METRICS, "[]", "not a JSON object"),
        (run.HISTORY, "step,epoch,loss\n1,1,inf\n", "inf where a finite"),
        (run.HISTORY, "step,epoch,loss\n", "it has no rows"),
        (run.PREDICTIONS, "index,actual,predicted,confidence\n1,a,b,0.5\n", "must count from 0"),
        (run.PREDICTIONS, "", "its first line is None"),
        (run.IDENTITY, "{}", "key 'format' is missing"),
    ],
)
def test_a_damaged_part_is_refused_with_the_file_and_the_reason(whole, name, content, reason):
    (whole / name).write_text(content)
    with pytest.raises(UserError, match=f"{name}: .*{reason}"):
        run.load(whole)


def test_runs_that_differ_in_anything_that_matters_have_different_names(tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for name in run.PARTS:
        (outputs / name).write_text(name)
    shutil.copytree(outputs, tmp_path / "others")
    run.write_model(outputs, kept_runs.weights())
    run.write_model(tmp_path / "others", kept_runs.weights(off=1))
    one, other = (run.fingerprint(run.read_model(folder)) for folder in (outputs, tmp_path / "others"))
    base = {"data": {"name": "x", "digest": "1"}, "seed": 0, "numerics": "exact-1", "train": {"lr": 1}, "device": "cpu",
            "fingerprint": one, "evaluate": {"batch_size": 1}, "code": {"digest": "c", "revision": None}}  # fmt: skip
    changes = [{}, {"seed": 1}, {"numerics": "native"}, {"train": {"lr": 2}}, {"device": "cuda:1"},
               {"evaluate": {"batch_size": 2}}, {"code": {"digest": "d", "revision": None}},
               {"data": {"name": "x", "digest": "2"}}]  # fmt: skip
    names = [run.keep(outputs, tmp_path / "runs", run.Identity(**{**base, **change}), {"threads": 1}).name for change in changes]
    names.append(run.keep(outputs, tmp_path / "runs", run.Identity(**base), {"threads": 2}).name)
    names.append(run.keep(tmp_path / "others", tmp_path / "runs", run.Identity(**{**base, "fingerprint": other}), {"threads": 1}).name)
    assert len(set(names)) == len(names) == 10
    again = run.keep(outputs, tmp_path / "runs", run.Identity(**base), {"threads": 1, "images_per_second": 9}).name
    assert again == names[0]
    (outputs / run.PREDICTIONS).write_text("others")
    assert run.keep(outputs, tmp_path / "runs", run.Identity(**base), {"threads": 1}).name not in names, "another result is lost"


def test_the_fingerprint_is_sha_256_over_names_dtypes_shapes_and_bytes_and_counts_zeros_as_positive():
    import hashlib

    import numpy as np

    tensors = {"b": np.array([[1.0, -0.0]], np.float32), "a": np.array(3, np.uint8)}
    wanted = hashlib.sha256(b"a uint8 \n\x03" + b"b float32 1x2\n\x00\x00\x80\x3f\x00\x00\x00\x00").hexdigest()
    assert run.fingerprint(tensors) == wanted


def test_the_command_prints_each_runs_fingerprint_one_a_line(tmp_path):
    wanted = ""
    for name in ("one", "two"):
        run.write_model(tmp_path / name, kept_runs.weights(off=len(wanted)))
        wanted += f"{run.fingerprint(kept_runs.weights(off=len(wanted)))}  {name}\n"
    assert command("fingerprint", "one", "two", folder=tmp_path).stdout == wanted


def test_a_data_set_of_another_name_with_the_same_images_has_the_same_digest():
    one = synthetic.make()
    assert Dataset("other", one.classes, *one.tensors().values()).digest == one.digest


def test_metrics_do_not_say_more_than_they_measured(clone):
    metrics = json.loads((clone / "outputs/metrics.json").read_text())
    assert metrics["accuracy"] * 200 == round(metrics["accuracy"] * 200)
