"""Kept runs: whatever DVC does to outputs/, nothing kept is lost or mixed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from pipeline import sources
from pipeline.data import synthetic
from pipeline.runs import environments, outputs
from pipeline.runs import kept as runs
from pipeline.runs.outputs import OUTPUTS
from pipeline.system import tensors
from tests import kept_runs
from tests.conftest import ROOT, command
from tests.dvc_clone import SMALL, copied, kept, sh


def test_a_second_repro_does_nothing(clone):
    before = (clone / "dvc.lock").read_bytes()
    assert "Data and pipelines are up to date." in sh(clone, "dvc", "repro")
    assert (clone / "dvc.lock").read_bytes() == before


def test_a_finished_run_is_kept_whole_with_its_identity_and_its_environment(clone):
    (name,) = [name for name in kept(clone) if "seed0" in name and "exact" in name]
    run = runs.load(clone / "runs" / name)
    assert name.startswith(f"{SMALL}-exact-3-cpu-seed0-")
    assert (run.identity.seed, run.identity.numerics, run.identity.device) == (0, "exact-3", "cpu")
    assert (run.identity.data.name, run.identity.data.classes) == (SMALL, tuple(sorted(synthetic.CLASSES)))  # a folder's order
    assert run.identity.code == sources.digest("train")
    assert run.environment.train.seconds_per_epoch > 0
    assert run.environment.train.threads >= 1
    assert run.environment.evaluate.images_per_second > 0


def test_dvcs_own_views_show_what_the_docs_say(clone, tmp_path):
    """Line by line, but for numbers, digests, class names and the folder, which are another data set's."""
    folder = copied(clone, tmp_path)
    shutil.rmtree(folder / ".dvc/cache/runs")
    blocks = re.findall(r"^    \$ (dvc .*)\n((?:    .*\n|\n(?=    ))+)", (ROOT / "docs/dvc.md").read_text(), re.MULTILINE)
    assert [" ".join(words.split()[1:3]) for words, _ in blocks] == ["exp run", "exp show", "exp diff", "metrics diff", "plots diff"]
    for words, documented in blocks:
        shown = {skeleton(line) for line in sh(folder, *shlex.split(words)).splitlines()}
        assert [line for line in documented.splitlines() if skeleton(line) not in shown | {""}] == [], words
    page = (folder / "dvc_plots" / "index.html").read_text()
    assert "vega" in page
    assert {f'"rev": "{name}"' in page for name in ("main", "other")} == {True}


def skeleton(line: str) -> str:
    """What of a line does not depend on the data set."""
    line = line.replace(SMALL, "synthetic")
    line = re.sub(r"(accuracy_per_class\.|worst class |file://)\S*", r"\1#", line)
    line = re.sub(r"-?\b[0-9a-f]{7,64}\b\N{HORIZONTAL ELLIPSIS}?|-?\d+(?:\.\d+)?", "#", line)
    return " ".join(re.sub(r"-{3,}|\|", " ", line).split())


def test_switching_a_setting_and_back_and_experiments_and_checkouts_lose_and_mix_nothing(clone, tmp_path):
    other = copied(clone, tmp_path)
    first = kept(other)
    lock = (other / "dvc.lock").read_bytes()
    sh(other, "dvc", "exp", "run", "-q", "-n", "other", "-S", "seed=1")
    second = kept(other)
    assert second.items() > first.items()
    assert len(set(second.values())) == len(second)
    sh(other, "git", "checkout", "-q", ".")
    sh(other, "dvc", "checkout", "-q")
    assert kept(other) == second
    assert (other / "dvc.lock").read_bytes() == lock
    assert "Data and pipelines are up to date." in sh(other, "dvc", "repro")
    sh(other, "dvc", "exp", "apply", "other")
    assert kept(other) == second
    assert tensors.fingerprint(outputs.read_weights(other / OUTPUTS)) in second.values()
    sh(other, "git", "checkout", "-q", ".")
    sh(other, "dvc", "checkout", "-q")


def test_a_run_restored_from_dvcs_cache_never_gets_an_environment_that_did_not_train_it(clone, tmp_path):
    other = copied(clone, tmp_path)
    for name in ("runs", ".cache", "outputs"):
        shutil.rmtree(other / name)
    sh(other, "dvc", "checkout", "-q", "outputs/model.safetensors", "outputs/history.csv", "data/dataset.safetensors")
    sh(other, sys.executable, "-m", "pipeline", "evaluate")
    (name,) = kept(other)
    run = runs.load(other / "runs" / name)
    assert (run.environment.train, run.identity.device) == (None, None)
    assert run.environment.evaluate.threads >= 1


# --- runs that DVC brings from elsewhere, or makes elsewhere ---------------------------------------------------------


@pytest.mark.parametrize("how", [["--temp"], ["--queue"]])
def test_an_experiment_that_dvc_runs_elsewhere_is_kept_in_the_project_that_started_it(how, clone, tmp_path):
    other = copied(clone, tmp_path)
    before = kept(other)
    sh(other, "dvc", "exp", "run", "-q", *how, "-S", "seed=3")
    if how == ["--queue"]:
        sh(other, "dvc", "exp", "run", "--run-all", "-j", "1")
    (name,) = kept(other).keys() - before.keys()
    assert runs.load(other / "runs" / name).identity.seed == 3
    assert command("compare", folder=other).returncode == 3


def test_a_run_that_dvc_pulls_into_another_clone_is_kept_by_compare_with_what_the_model_says(clone, tmp_path):
    other, second = copied(clone, tmp_path), tmp_path / "second"
    sh(other, "dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    sh(other, "dvc", "push", "-q")
    sh(other, "git", "commit", "-qam", "a remote")
    sh(tmp_path, "git", "clone", "-q", str(other), str(second))
    sh(second, "dvc", "repro", "-q", "--pull")
    assert not (second / "runs").exists()
    done = command("compare", folder=second)
    assert re.fullmatch(r"kept as runs/synthetic-small-exact-\d-seed0-\w{8}\nerror: a comparison needs two kept runs.*\n", done.stderr)
    (name,) = kept(second)
    run, original = runs.load(second / "runs" / name), runs.load(next((other / "runs").glob("*seed0*")))
    assert run.identity.provenance == original.identity.provenance
    assert (run.identity.device, run.identity.evaluation_code, run.environment) == (None, None, environments.Environment())
    again = command("compare", folder=second)
    assert "kept as" not in again.stderr, "it is kept once"
    original.folder.rename(second / "runs" / "original")
    compared = command("compare", "--json", folder=second)
    assert compared.returncode == 0
    assert json.loads(compared.stdout)["verdict"] == "identical"


def test_a_run_that_was_not_evaluated_yet_is_not_kept(clone, tmp_path):
    other = copied(clone, tmp_path)
    shutil.rmtree(other / "runs")
    (other / "outputs/metrics.json").unlink()
    command("compare", folder=other)
    assert not (other / "runs").exists()
    sh(other, "dvc", "checkout", "-q")
    metrics = json.loads((other / "outputs/metrics.json").read_text())
    (other / "outputs/metrics.json").unlink()
    (other / "outputs/metrics.json").write_text(json.dumps({**metrics, "fingerprint": "0" * 64}))
    command("compare", folder=other)
    assert not (other / "runs").exists()


def test_outputs_that_are_damaged_hinder_no_comparison_of_kept_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for device in ("cpu", "cuda"):
        shutil.copytree(kept_runs.keep(device=device), "outputs", dirs_exist_ok=True)
    (tmp_path / "outputs/predictions.csv").write_text("nothing")
    done = command("compare", folder=tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith("outputs/ is not kept: outputs/predictions.csv: damaged")


def test_exact_runs_of_other_threads_change_nothing_in_dvc_lock(clone, tmp_path):
    other = copied(clone, tmp_path)
    for name in ("outputs", "runs", ".cache", ".dvc/cache", "data"):
        shutil.rmtree(other / name)
    lock = (other / "dvc.lock").read_bytes()
    (other / "dvc.lock").unlink()
    environment = {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"}
    sh(other, "env", *(f"{key}={value}" for key, value in environment.items()), "dvc", "repro", "-q")
    assert (other / "dvc.lock").read_bytes() == lock


@pytest.mark.cuda
def test_an_exact_run_on_cuda_changes_nothing_in_dvc_lock_but_the_device(cuda, clone, tmp_path):
    other = Path(shutil.copytree(clone, tmp_path / "cuda"))
    lock = (other / "dvc.lock").read_text()
    sh(other, "dvc", "exp", "run", "-q", "-S", "device=cuda")
    assert (other / "dvc.lock").read_text() == lock.replace("device: cpu", "device: cuda") != lock
