"""Kept runs: whatever DVC does to outputs/, nothing kept is lost or mixed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from pipeline import sources, tensors
from pipeline.data import synthetic
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.runs import environments, outputs
from pipeline.runs import kept as runs
from pipeline.runs.kept import IDENTITY
from pipeline.runs.outputs import HISTORY, METRICS, MODEL, OUTPUTS, PARTS, PREDICTIONS
from tests import archives, kept_runs
from tests.conftest import ROOT, command
from tests.settings import set_params

BIN = Path(sys.executable).parent
SMALL = "synthetic-small"
TRAIN = {"epochs": 1, "batch_size": 16, "lr": 0.05, "momentum": 0.9, "log_every": 10}


def sh(folder: Path, *words: str) -> str:
    """What a command says, run in `folder` with this environment's programs first."""
    done = attempt(folder, *words)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def attempt(folder: Path, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, with this environment's programs first."""
    return subprocess.run(words, cwd=folder, env=environment(**changed), capture_output=True, text=True)


def environment(**changed: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", **changed}


def kept(folder: Path) -> dict[str, str]:
    """Name of each kept run -> the fingerprint that its own weights have; every run must be whole."""
    return {path.name: tensors.fingerprint(runs.load(path).weights) for path in runs.listed(folder / "runs")}


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
    run = runs.load(clone / "runs" / name)
    assert name.startswith(f"{SMALL}-exact-2-cpu-seed0-")
    assert (run.identity.seed, run.identity.numerics, run.identity.device) == (0, "exact-2", "cpu")
    assert run.identity.data == replace(synthetic.make(640, 200), name=SMALL).description
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
    assert tensors.fingerprint(outputs.read_weights(clone / OUTPUTS)) in second.values()
    sh(clone, "git", "checkout", "-q", ".")
    sh(clone, "dvc", "checkout", "-q")


def copied(clone: Path, tmp_path: Path) -> Path:
    """A copy of the clone, to be changed."""
    return Path(shutil.copytree(clone, tmp_path / "copy", symlinks=True))


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


# --- weights say what trained them -----------------------------------------------------------------------------------


def test_evaluate_alone_under_other_params_is_refused_under_dvc_too_and_keeps_nothing(clone, tmp_path):
    other = copied(clone, tmp_path)
    before = kept(other)
    set_params(other, seed=7)
    said = (
        "error: outputs/model.safetensors was trained otherwise than params.yaml says: seed is 0, not 7. Run `dvc repro`, which trains "
        "again (after `dvc unfreeze train` where that stage is frozen), or put params.yaml back\n"
    )
    done = command("evaluate", folder=other)
    assert (done.returncode, done.stderr) == (2, said)
    under_dvc = attempt(other, "dvc", "repro", "-s", "evaluate")
    assert under_dvc.returncode != 0
    assert said in under_dvc.stderr
    assert kept(other) == before


def test_a_frozen_training_is_not_evaluated_under_the_params_that_it_ignored(clone, tmp_path):
    other = copied(clone, tmp_path)
    before = kept(other)
    sh(other, "dvc", "freeze", "train")
    set_params(other, train={**TRAIN, "lr": 0.005})
    done = attempt(other, "dvc", "repro")
    assert done.returncode != 0
    assert "train.lr is 0.05, not 0.005. Run `dvc repro`, which trains again (after `dvc unfreeze train`" in done.stderr
    assert kept(other) == before


def test_dvc_commit_cannot_make_old_weights_those_of_new_params(clone, tmp_path):
    other = copied(clone, tmp_path)
    before = kept(other)
    set_params(other, seed=7)
    sh(other, "dvc", "commit", "-q", "-f", "train")
    done = attempt(other, "dvc", "repro")
    assert done.returncode != 0
    assert "seed is 0, not 7" in done.stderr
    assert kept(other) == before


def test_a_history_of_another_training_is_not_kept_beside_these_weights(clone, tmp_path):
    other = copied(clone, tmp_path)
    before = kept(other)
    rows = (other / "outputs/history.csv").read_text().splitlines()
    (other / "outputs/history.csv").unlink()
    (other / "outputs/history.csv").write_text("\n".join(rows[:-1]) + "\n")
    done = command("evaluate", folder=other)
    assert done.returncode == 2
    assert done.stderr.startswith("error: outputs/history.csv: not the history of model.safetensors beside it; run `dvc repro`")
    assert kept(other) == before


@pytest.mark.parametrize(
    ("path", "change", "named"),
    [
        ("params.yaml", lambda text: text.replace("seed: 0", "seed: 1"), "params.yaml: seed"),
        ("pipeline/model.py", lambda text: text + "# another\n", "a source of train"),
        ("data/dataset.safetensors", None, "data/dataset.safetensors"),
    ],
)
def test_an_input_that_changes_while_train_runs_ends_it_before_its_outputs_and_put_back_it_ends_at_once(
    path, change, named, clone, tmp_path
):
    other = copied(clone, tmp_path)
    before = kept(other)
    set_params(other, train={**TRAIN, "lr": 0.02})  # so that DVC trains
    (other / "pause").touch()
    stages = other / "dvc.yaml"
    stages.write_text(stages.read_text().replace("python -m pipeline train", "python -m tests.pausing train --checkpoint-seconds 0"))
    process = subprocess.Popen(["dvc", "repro"], cwd=other, env=environment(PYTHONPATH=str(ROOT)), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    while not list((other / ".cache/training").glob("*.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    file = other / path
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content if change is None else change(content.decode()).encode())
    (other / "pause").unlink()
    out, said = process.communicate()
    assert process.returncode != 0
    assert f"error: {named} changed while train ran, so its outputs would not be those of what is there now" in said
    assert "kept as" not in out
    assert kept(other) == before
    if change is not None:
        file.write_bytes(content)
    again = attempt(other, "dvc", "repro", PYTHONPATH=str(ROOT))
    assert again.returncode == 0, again.stderr
    assert re.search(r"resumes at step (\d+) of \1 from", again.stderr), "nothing is left to train"
    (name,) = kept(other).keys() - before.keys()
    assert runs.load(other / "runs" / name).identity.train.lr == 0.02


def test_what_cannot_change_a_bit_neither_trains_again_nor_changes_the_digest_and_an_editors_droppings_are_no_sources(clone, tmp_path):
    other = copied(clone, tmp_path)
    before = digests(other)
    for name in ("comparison/page.py", "doctor.py", "comparison/verdict.py", "runs/kept.py", "cli.py", "errors.py"):
        path = other / "pipeline" / name
        path.write_text(path.read_text() + "# another\n")
    package = other / "pipeline"
    (package / ".#model.py").symlink_to("nobody@nowhere:0")
    for dropping in ("numerics/.grid.py.swp", "training/loop.py~", ".DS_Store", ".ipynb_checkpoints/model-checkpoint.py", "4913"):
        (package / dropping).parent.mkdir(exist_ok=True)
        (package / dropping).write_text("not Python at all: \0")
    assert digests(other) == before
    assert "Data and pipelines are up to date." in sh(other, "dvc", "repro")


@pytest.mark.parametrize("stage", sources.STAGES)
def test_every_source_of_a_stage_changes_its_digest(stage, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "PACKAGE", tmp_path / "pipeline")
    seen = {sources.digest(stage)}
    for name in sources.STAGES[stage]:
        path = tmp_path / "pipeline" / name
        path.write_bytes(path.read_bytes() + b"#")
        seen.add(sources.digest(stage))
    assert len(seen) == 1 + len(sources.STAGES[stage])


def digests(folder: Path) -> str:
    return sh(folder, sys.executable, "-c", "from pipeline import sources; print([sources.digest(stage) for stage in sources.STAGES])")


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
    assert command("compare", folder=other).returncode == 1


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


# --- the parts of one run, without DVC -------------------------------------------------------------------------------


@pytest.fixture
def whole(clone, tmp_path) -> Path:
    """A copy of a kept run, to be damaged."""
    return Path(shutil.copytree(next((clone / "runs").glob(f"{SMALL}-*")), tmp_path / "run"))


def test_one_weight_changed_after_the_run_is_refused_with_both_fingerprints(whole):
    weights = {name: array.copy() for name, array in outputs.read_weights(whole).items()}
    weights["fc3.bias"][0] += 1
    run = runs.load(whole)
    outputs.write_training(whole, weights, run.history, run.identity.provenance)
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
    with pytest.raises(UserError, match=r"run.json: format 1; this version reads format 2: make the run again with `dvc repro`"):
        runs.load(whole)


@pytest.mark.parametrize("name", PARTS)
def test_a_run_without_one_of_its_parts_is_refused_by_its_name(whole, name):
    (whole / name).unlink()
    with pytest.raises(UserError, match=f"{name}: not found"):
        runs.load(whole)


def test_a_part_of_another_run_is_refused(whole):
    rows = (whole / HISTORY).read_text().splitlines()
    (whole / HISTORY).write_text("\n".join([*rows[:-1], rows[-1] + "1"]) + "\n")
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
