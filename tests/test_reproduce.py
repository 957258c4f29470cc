"""`reproduce`: a kept run comes out again on other threads and instructions, killed or not; what was changed by hand does not."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from msgspec import structs

from pipeline import evaluation, inputs, reproduce, sources
from pipeline.data import dataset, synthetic
from pipeline.data.dataset import Dataset
from pipeline.draws import permutation
from pipeline.errors import Interrupted, UserError
from pipeline.params import Compare
from pipeline.runs import kept, outputs
from pipeline.training import stage
from pipeline.training.trainer import LoggedStep, Trainer
from tests.conftest import ROOT, command
from tests.settings import set_params

CLASSES = tuple(f"class{i}" for i in range(10))
SETTINGS = {"epochs": 2, "batch_size": 16, "lr": 0.05, "momentum": 0.9, "log_every": 3}
"""On 72 images: five batches an epoch, rows of the history after steps 3, 6, 9 and 10."""


WIDE = Compare(margin_points=2.0, confidence=0.5)
"""On 40 images no interval lies within a point."""


def small_set(images: int = 72, classes: tuple[str, ...] = CLASSES) -> Dataset:
    """Drawn bytes and labels."""
    pixels = (permutation("reproduce/images", images * 3072) % 256).astype(np.uint8).reshape(-1, 3, 32, 32)
    labels = (np.arange(images) % 10).astype(np.uint8)
    return Dataset("drawn", classes, pixels, labels, pixels[:40], labels[:40])


def make(folder: Path, numerics: str) -> Path:
    """Run the stages `train` and `evaluate` in `folder`, on the small set; the kept run's folder."""
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, numerics=numerics, train=SETTINGS, evaluate={"batch_size": 16})
    with contextlib.chdir(folder):
        small_set().save()
        stage.train(inputs.read("train"))
        evaluation.stage(inputs.read("evaluate"))
        (run,) = kept.listed()
    return folder / run


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("made") / name, name) for name in ("exact", "native")}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with nothing in it but the data set: no params.yaml, no Git, no DVC."""
    monkeypatch.chdir(tmp_path)
    small_set().save()
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on standard output."""
    return capsys.readouterr().out.splitlines()[-1]


def claim(run: Path, target: Path, **changed: Callable) -> Path:
    """A forger's copy of a run: `history`, `weights`, `predictions`, `metrics` and `identity` changed, and all hashes made to fit."""

    def change(what, value):
        return changed.get(what, lambda same: same)(value)

    target.mkdir()
    model = outputs.read_model(run)
    provenance = change("provenance", model.provenance)
    outputs.write_training(target, change("weights", model.weights), change("history", outputs.read_history(run)), provenance)
    predictions = change("predictions", outputs.read_predictions(run))
    hits = [(p.actual, p.actual == p.predicted) for p in predictions]
    of_class = {name: [hit for actual, hit in hits if actual == name] for name in dict(hits)}
    written = outputs.read_model(target)
    metrics = {
        "accuracy": sum(hit for _, hit in hits) / len(hits),
        "loss": outputs.read_metrics(run).loss,
        "accuracy_per_class": {name: sum(of) / len(of) for name, of in of_class.items()},
        "numerics": provenance.numerics,
        "fingerprint": written.fingerprint,
    }
    outputs.write_evaluation(target, outputs.Metrics(**change("metrics", metrics)), predictions)
    described = json.loads(msgspec.json.encode(provenance))
    identity = json.loads((run / kept.IDENTITY).read_text()) | described | {"fingerprint": written.fingerprint}
    identity["files"] = {name: outputs.sha256(target / name) for name in outputs.PARTS}
    (target / kept.IDENTITY).write_text(json.dumps(change("identity", identity)))
    (target / kept.ENVIRONMENT).write_bytes((run / kept.ENVIRONMENT).read_bytes())
    return target


def trained_with(**train: float) -> Callable:
    """Change a provenance's settings of the training."""
    return lambda provenance: structs.replace(provenance, train=structs.replace(provenance.train, **train))


# --- what is true ---------------------------------------------------------------------------------------------------


def test_an_exact_run_is_identical_and_needs_no_params_yaml(original, here, capsys):
    assert reproduce.reproduce(original["exact"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "identical: all 4 logged losses, 10 tensors, 40 predictions and the metrics are equal to the last bit"
    assert outputs.read_model(original["exact"]).fingerprint in lines[-2]


def test_the_settings_are_the_runs_whatever_params_yaml_says(original, here, capsys):
    Path("params.yaml").write_text("seed: [not, params]")
    assert reproduce.reproduce(original["exact"])
    assert said(capsys).startswith("identical: ")


def test_a_run_made_with_one_thread_is_identical_with_three_and_the_oldest_instructions(original, here):
    done = command("reproduce", str(original["exact"]), folder=here, OMP_NUM_THREADS="3", ATEN_CPU_CAPABILITY="default")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("identical: ")


def test_a_run_of_one_process_is_identical_when_three_workers_train_it_again(original, here):
    done = command("reproduce", str(original["exact"]), "--workers", "3", folder=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("identical: ")
    (again,) = kept.listed(here / reproduce.REPRODUCED / original["exact"].name / kept.RUNS)
    assert kept.load(again).environment.train.workers == 3


@pytest.mark.cuda
def test_a_run_made_on_a_cpu_is_identical_on_cuda(original, here, capsys, cuda):
    assert reproduce.reproduce(original["exact"], str(cuda))
    assert said(capsys).startswith("identical: ")


def test_other_code_pytorch_and_hardware_are_said_and_do_not_matter(original, here, capsys):
    copy = claim(
        original["exact"],
        here / "copy",
        provenance=lambda p: structs.replace(p, code="a" * 64),
        identity=lambda identity: identity | {"evaluation_code": "b" * 64},
    )
    facts = json.loads((copy / kept.ENVIRONMENT).read_text())
    facts["train"] |= {"torch": "1.0", "hardware": "An abacus"}
    (copy / kept.ENVIRONMENT).write_text(json.dumps(facts))
    assert reproduce.reproduce(copy)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("identical: ")
    for words in ("the code of the training (aaaaaaaaaaaa... there", "the code of the evaluation (bbbbbbbbbbbb... there"):
        assert words in lines[1]
    for words in (f"torch (1.0 there, {torch.__version__} here)", "hardware (An abacus there, "):
        assert words in lines[1]


def test_where_a_run_was_trained_may_be_unknown(original, here, capsys):
    copy = claim(original["exact"], here / "copy")
    facts = json.loads((copy / kept.ENVIRONMENT).read_text())
    (copy / kept.ENVIRONMENT).write_text(json.dumps({"evaluate": facts["evaluate"]}))
    assert reproduce.reproduce(copy)
    assert "where it was trained is not known" in capsys.readouterr().out


def test_a_reproduction_writes_in_its_own_folder_alone(original, here):
    for name in ("outputs", "runs"):
        (here / name).mkdir()
        (here / name / "mine").write_text("mine")
    (here / "dvc.lock").write_text("mine")
    before, of_run = content(here), content(original["exact"])
    assert reproduce.reproduce(original["exact"])
    after = content(here)
    own = f"{reproduce.REPRODUCED / original['exact'].name}/"
    assert {name for name in after if not name.startswith(own)} == set(before)
    assert {name: after[name] for name in before} == before
    assert content(original["exact"]) == of_run


def test_what_was_computed_is_a_kept_run_that_can_be_compared(original, here):
    assert reproduce.reproduce(original["exact"])
    (folder,) = kept.listed(reproduce.REPRODUCED / original["exact"].name / "runs")
    again, run = kept.load(folder), kept.load(original["exact"])
    assert again.identity.fingerprint == run.identity.fingerprint
    assert again.identity.code == sources.digest("train")
    assert again.environment.train.seconds_per_epoch > 0


def test_a_second_check_computes_again_and_leaves_no_unfinished_training(original, here, capsys):
    for _ in range(2):
        assert reproduce.reproduce(original["exact"], checkpoint_seconds=0)
        read = capsys.readouterr()
        assert "resumes" not in read.err
        assert "train: 10/10 steps" in read.err
        assert [path for path in Path(".cache").rglob("*.safetensors") if "epochs-" in str(path)] == []


def test_a_native_run_is_identical_on_its_own_machine_with_its_own_threads(original, here, capsys):
    assert reproduce.reproduce(original["native"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "identical: weights, logged losses, predictions and metrics are equal to the last bit"
    assert lines[1] == "differs here and may give other bits of native numerics: nothing"


def slightly(amount: float, name: str = "conv1.weight") -> Callable:
    """Change one weight a little."""

    def change(weights):
        changed = {key: array.copy() for key, array in weights.items()}
        changed[name].reshape(-1)[7] += np.float32(amount)
        return changed

    return change


def test_native_weights_that_differ_in_bits_are_equivalent_when_the_predictions_are(original, here, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "SETTINGS", WIDE)
    assert reproduce.reproduce(claim(original["native"], here / "close", weights=slightly(1e-6)))
    assert said(capsys).startswith("equivalent: the 50 % confidence interval of the difference in accuracy, ")


def test_native_weights_that_do_not_give_the_runs_predictions_are_different(original, here, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "SETTINGS", WIDE)
    predicted = [p.predicted for p in outputs.read_predictions(original["native"])]

    def always_the_rarest(weights):
        constant = {name: np.zeros_like(array) for name, array in weights.items()}
        constant["fc3.bias"][min(range(10), key=lambda i: predicted.count(CLASSES[i]))] = 1
        return constant

    assert not reproduce.reproduce(claim(original["native"], here / "forged", weights=always_the_rarest))
    assert said(capsys).startswith("different: its own weights, evaluated here, do not give its predictions: ")


def test_a_native_run_whose_predictions_were_made_better_by_hand_is_different(original, here, capsys):
    assert not reproduce.reproduce(claim(original["native"], here / "forged", predictions=lambda rows: [*map(right, rows)]))
    assert "does not lie within" in said(capsys)


def test_a_native_run_with_predictions_left_out_is_different(original, here, capsys):
    assert not reproduce.reproduce(claim(original["native"], here / "forged", predictions=lambda rows: rows[:30]))
    assert said(capsys) == "different: its predictions are not of this data set's test images"


def right(row: outputs.Prediction) -> outputs.Prediction:
    """The same test image, recognised."""
    return structs.replace(row, predicted=row.actual)


# --- what is not ----------------------------------------------------------------------------------------------------


def loss_changed(step: int) -> Callable:
    """Change the logged loss of a step by its last bit."""
    return lambda history: [
        s._replace(loss=float(np.nextafter(np.float32(s.loss), np.float32(9)))) if s.step == step else s for s in history
    ]


def in_full(value: np.float32) -> str:
    return f"{value!s} ({float(value).hex()})"


@pytest.mark.parametrize(("step", "row"), [(3, 1), (6, 2), (10, 4)])
def test_a_logged_loss_changed_by_hand_is_named_with_both_values_in_full(step, row, original, here, capsys):
    assert not reproduce.reproduce(claim(original["exact"], here / "forged", history=loss_changed(step)))
    loss = next(np.float32(s.loss) for s in outputs.read_history(original["exact"]) if s.step == step)
    wrong = np.nextafter(loss, np.float32(9))
    assert said(capsys) == (
        f"different: first at step {step}, row {row} of the history: the run's loss is {in_full(wrong)}, here it is {in_full(loss)}"
    )


def test_the_first_of_several_changed_steps_is_named_though_the_weights_differ_too(original, here, capsys):
    forged = claim(original["exact"], here / "forged", history=lambda h: loss_changed(9)(loss_changed(6)(h)), weights=slightly(0.5))
    assert not reproduce.reproduce(forged)
    assert said(capsys).startswith("different: first at step 6, row 2 of the history: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda history: history[:-1], "row 4 of the history: the run has no more, here is step 10 of epoch 2"),
        (lambda history: history[:1] + history[2:], "row 2 of the history: the run has step 9 of epoch 2, here is step 6 of epoch 2"),
        (
            lambda history: [*history, history[-1]._replace(step=11)],
            "row 5 of the history: the run has step 11 of epoch 2, here is no more",
        ),
        (
            lambda history: [s._replace(epoch=1) for s in history],
            "row 2 of the history: the run has step 6 of epoch 1, here is step 6 of epoch 2",
        ),
    ],
)
def test_a_history_with_other_rows_is_different(change, message, original, here, capsys):
    assert not reproduce.reproduce(claim(original["exact"], here / "forged", history=change))
    assert said(capsys) == f"different: first in {message}"


def test_a_weight_changed_by_hand_under_the_true_history_is_named_with_its_place(original, here, capsys):
    weights = outputs.read_model(original["exact"]).weights
    value = weights["fc1.weight"].reshape(-1)[7]
    wrong = value + np.float32(0.125)
    assert not reproduce.reproduce(claim(original["exact"], here / "forged", weights=slightly(0.125, "fc1.weight")))
    assert said(capsys) == (
        "different: all logged losses are equal, but the weights are not, first in fc1.weight: 1 of "
        f"{weights['fc1.weight'].size:,} differ; at [0, 7] the run has {in_full(wrong)}, "
        f"here is {in_full(value)}"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "fc3.bias"}, "the run's 'fc3.bias' is missing, here it is [10]"),
        (lambda w: w | {"extra": np.zeros(3, np.float32)}, "the run's 'extra' is [3], here it is missing"),
        (lambda w: w | {"fc3.bias": np.zeros((5, 2), np.float32)}, "the run's 'fc3.bias' is [5, 2], here it is [10]"),
    ],
)
def test_weights_of_another_form_are_different(change, message, original, here, capsys):
    assert not reproduce.reproduce(claim(original["exact"], here / "forged", weights=change))
    assert said(capsys) == f"different: all logged losses are equal, but {message}"


def test_a_prediction_changed_by_hand_is_named(original, here, capsys):
    def change(predictions):
        return [structs.replace(p, confidence=0.75) if p.index == 11 else p for p in predictions]

    row = outputs.read_predictions(original["exact"])[11]
    assert not reproduce.reproduce(claim(original["exact"], here / "forged", predictions=change))
    confidence = np.float32(row.confidence)
    assert said(capsys) == (
        "different: the weights are equal, but the predictions are not, first for test image 11: "
        f"{row.actual} taken for {row.predicted} with 0.75 (0x1.8000000000000p-1), "
        f"here {row.actual} taken for {row.predicted} with {in_full(confidence)}"
    )


def test_predictions_left_out_are_different(original, here, capsys):
    assert not reproduce.reproduce(claim(original["exact"], here / "forged", predictions=lambda rows: rows[:30]))
    assert said(capsys) == "different: the weights are equal, but the run has 30 predictions, here are 40"


def test_a_metric_changed_by_hand_is_named(original, here, capsys):
    loss = outputs.read_metrics(original["exact"]).loss
    assert not reproduce.reproduce(claim(original["exact"], here / "forged", metrics=lambda m: m | {"loss": 0.5}))
    assert said(capsys) == f"different: the weights and predictions are equal, but loss is 0.5 in the run, here {loss!r}"


@pytest.mark.parametrize("train", [{"lr": 0.04}, {"momentum": 0.5}, {"batch_size": 15}])
def test_settings_changed_by_hand_are_different_from_the_first_step_that_they_change(train, original, here, capsys):
    assert not reproduce.reproduce(claim(original["exact"], here / "forged", provenance=trained_with(**train)))
    assert said(capsys).startswith("different: first at step 3, row 1 of the history: ")


def test_a_seed_changed_by_hand_is_different_from_the_first_step_on(original, here, capsys):
    forged = claim(original["exact"], here / "forged", provenance=lambda p: structs.replace(p, seed=1))
    assert not reproduce.reproduce(forged)
    assert said(capsys).startswith("different: first at step 3, row 1 of the history: ")


def test_a_training_that_diverges_where_the_run_claims_a_history_is_different(original, here, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "read_step_log", lambda self: [LoggedStep(math.inf, 1.0)] * 3)
    assert not reproduce.reproduce(original["exact"])
    assert said(capsys) == f"different: training stopped at step 1: the loss is inf; {original['exact']} claims that it went on"


def test_different_is_exit_code_1(original, here):
    done = command("reproduce", str(claim(original["exact"], here / "forged", history=loss_changed(3))), folder=here)
    assert (done.returncode, done.stdout.splitlines()[-1][:28]) == (1, "different: first at step 3, ")


# --- a beginning ----------------------------------------------------------------------------------------------------


def test_a_beginning_is_checked_against_the_rows_of_its_epochs_and_says_so(original, here, capsys):
    assert reproduce.reproduce(original["exact"], epochs=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "only its beginning is checked: the first 1 of 2 epochs"
    assert lines[-1] == (
        "identical: all 1 logged losses of the first 1 of 2 epochs are equal to the last bit; "
        "the rest of the training, the weights, predictions and metrics were not checked"
    )
    assert not list(reproduce.REPRODUCED.rglob("*.csv"))


def test_a_beginning_finds_what_was_changed_in_it_and_not_what_was_changed_after_it(original, here, capsys):
    assert not reproduce.reproduce(claim(original["exact"], here / "early", history=loss_changed(3)), epochs=1)
    assert said(capsys).startswith("different: first at step 3, row 1 of the history: ")
    assert reproduce.reproduce(claim(original["exact"], here / "late", history=loss_changed(6)), epochs=1)


def test_rows_left_out_of_a_beginning_are_different(original, here, capsys):
    assert not reproduce.reproduce(claim(original["exact"], here / "forged", history=lambda h: h[1:]), epochs=1)
    assert said(capsys) == "different: first in row 1 of the history: the run has no more, here is step 3 of epoch 1"


def test_all_epochs_are_the_whole_run(original, here, capsys):
    assert reproduce.reproduce(original["exact"], epochs=2)
    assert "40 predictions" in said(capsys)


def test_a_beginning_leaves_the_unfinished_training_of_the_whole_run_alone(original, here, capsys):
    stopped_at(7, original["exact"])
    assert reproduce.reproduce(original["exact"], epochs=1)
    capsys.readouterr()
    assert reproduce.reproduce(original["exact"])
    assert "resumes at step 7 of 10" in capsys.readouterr().err


# --- killed ---------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pipeline import cli, evaluation
from pipeline.runs import kept
from pipeline.training.trainer import LoggedStep, Trainer

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def die_at_step_8(self, step=Trainer.step):
    if self.steps_completed == 7:
        die()
    step(self)

match sys.argv.pop(1):
    case "training": Trainer.step = die_at_step_8
    case "evaluation": evaluation.evaluate = die
    case "keeping": kept.keep = die
cli.main()
"""


@pytest.mark.parametrize(
    ("where", "resumed", "true"), [("training", 6, True), ("training", 6, False), ("evaluation", 10, True), ("keeping", 10, False)]
)
def test_killed_and_started_again_the_answer_is_the_same(where, resumed, true, original, here):
    run, code, answer = original["exact"], 0, "identical: all 4 logged losses, "
    if not true:
        run, code, answer = claim(run, here / "forged", history=loss_changed(9)), 1, "different: first at step 9, row 3 of the history: "
    words = ["reproduce", str(run), "--checkpoint-seconds", "0"]
    project = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED, where, *words], cwd=here, capture_output=True, text=True, env=project)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = command(*words, folder=here)
    assert f"resumes at step {resumed} of 10" in done.stderr
    assert (done.returncode, done.stdout.splitlines()[-1][: len(answer)]) == (code, answer)


def stopped_at(step: int, run: Path) -> None:
    """A reproduction that SIGTERM ends after a step."""
    take, before = Trainer.step, signal.getsignal(signal.SIGTERM)

    def stopping(self):
        take(self)
        if self.steps_completed == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "step", stopping)
        with pytest.raises(Interrupted, match=f"at step {step} of 10; the state is saved"):
            reproduce.reproduce(run)
    signal.signal(signal.SIGTERM, before)


def test_stopped_by_a_signal_the_next_one_resumes_at_that_step(original, here, capsys):
    stopped_at(7, original["exact"])
    assert reproduce.reproduce(original["exact"])
    read = capsys.readouterr()
    assert "resumes at step 7 of 10" in read.err
    assert read.out.splitlines()[-1].startswith("identical: ")


def test_two_runs_of_one_name_do_not_take_each_others_unfinished_training(original, here, capsys):
    stopped_at(7, original["exact"])
    other = claim(original["exact"], here / original["exact"].name, provenance=trained_with(lr=0.04))
    assert not reproduce.reproduce(other)
    assert "of another training (train): not used" in capsys.readouterr().err


def test_of_two_reproductions_of_one_run_at_once_the_second_is_refused(original, here, monkeypatch):
    fit = stage.fit

    def meanwhile(*arguments):
        with pytest.raises(UserError, match="a reproduction of this run is already running in this folder"):
            reproduce.reproduce(original["exact"])
        return fit(*arguments)

    monkeypatch.setattr(stage, "fit", meanwhile)
    assert reproduce.reproduce(original["exact"])


# --- the data set ---------------------------------------------------------------------------------------------------


def refused(message: str, run: Path, *arguments, **named) -> None:
    """A reproduction is refused in one line, and nothing is written."""
    before = content(Path())
    with pytest.raises(UserError) as error:
        reproduce.reproduce(run, *arguments, **named)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert content(Path()) == before


def called(name: str) -> Callable:
    """Change the name of a provenance's data set."""
    return lambda p: structs.replace(p, data=structs.replace(p.data, name=name))


def test_a_data_set_elsewhere_is_named_with_data(original, here, capsys):
    dataset.DATASET.rename("moved.safetensors")
    assert reproduce.reproduce(original["exact"], data_file=Path("moved.safetensors"))
    assert said(capsys).startswith("identical: ")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("drawn", "set data.source: archive, with the archive that the run's author used, in params.yaml and run"),
        ("cifar10", "set data.source: cifar10 in params.yaml and run `python -m pipeline download`, or name its dataset.safetensors with"),
    ],
)
def test_without_the_data_set_the_user_is_told_where_to_get_it_or_how_to_name_it(name, remedy, original, here):
    run = claim(original["exact"], here / "copy", provenance=called(name))
    digest = small_set().digest[:12]
    dataset.DATASET.unlink()
    refused(f"copy needs the data set '{name}' ({digest}...), and data/dataset.safetensors is not there: {remedy}", run)
    refused("and nowhere is not there: ", run, data_file=Path("nowhere"))


def test_another_data_set_is_refused_with_both_digests(original, here):
    other = small_set(73)
    other.save()
    wanted = (
        f"needs the data set 'drawn' ({small_set().digest[:12]}...), but data/dataset.safetensors is 'drawn' ({other.digest[:12]}...): "
    )
    refused(wanted, original["exact"])
    other.save(Path("other"))
    small_set().save()
    refused(f"but other is 'drawn' ({other.digest[:12]}...): ", original["exact"], data_file=Path("other"))


def test_a_damaged_data_set_is_refused(original, here):
    dataset.DATASET.write_bytes(b"no safetensors")
    refused("data/dataset.safetensors: damaged (", original["exact"])


def test_other_class_names_are_refused(original, here):
    small_set(classes=("cat", *CLASSES[1:])).save()
    refused("with the same images and labels, 'cat, class1, ", original["exact"])


def test_the_name_of_a_data_set_does_not_matter(original, here, capsys):
    copy = claim(original["exact"], here / "copy", provenance=called("another-name"))
    assert reproduce.reproduce(copy)
    assert said(capsys).startswith("identical: ")


def test_the_synthetic_set_is_made_whatever_is_in_data(original, here, monkeypatch, capsys):
    monkeypatch.setattr(synthetic, "make", lambda: dataclasses.replace(small_set(), name="synthetic"))
    copy = claim(original["exact"], here / "copy", provenance=called("synthetic"))
    small_set(73).save()
    assert reproduce.reproduce(copy)
    monkeypatch.setattr(synthetic, "make", lambda: dataclasses.replace(small_set(73), name="synthetic"))
    refused("but this version's synthetic set is 'synthetic' (", copy)
    small_set().save(Path("theirs"))
    assert reproduce.reproduce(copy, data_file=Path("theirs"))


# --- bad input ------------------------------------------------------------------------------------------------------


def test_what_is_no_run_of_this_format_is_refused(original, here):
    refused("nowhere: not a folder", here / "nowhere")
    old = claim(original["exact"], here / "old", identity=lambda identity: identity | {"format": 1})
    refused("run.json: format 1; this version reads format 2", old)
    (old / outputs.METRICS).unlink()
    refused("run.json: format 1", old)


def test_a_damaged_run_is_refused(original, here):
    copy = claim(original["exact"], here / "copy")
    (copy / outputs.HISTORY).write_text((copy / outputs.HISTORY).read_text().replace("\n3,", "\n4,"))
    refused("history.csv: changed after the run, or of another run", copy)


@pytest.mark.parametrize(
    ("numerics", "message"),
    [
        ("exact-0", "numerics 'exact-0': this version of the pipeline has "),
        ("exact", "numerics 'exact' without a version"),
        ("fast", "numerics 'fast': "),
    ],
)
def test_another_version_of_the_numerics_is_refused(numerics, message, original, here):
    run = claim(original["exact"], here / "copy", provenance=lambda p: structs.replace(p, numerics=numerics))
    refused(message, run)


def test_a_batch_size_that_no_evaluation_can_have_is_refused(original, here):
    copy = claim(original["exact"], here / "copy")
    facts = json.loads((copy / kept.ENVIRONMENT).read_text())
    facts["evaluate"]["batch_size"] = 0
    (copy / kept.ENVIRONMENT).write_text(json.dumps(facts))
    refused("environment.json: 'evaluate.batch_size' is 0; allowed: ", copy)


@pytest.mark.parametrize("epochs", [-1, 0, 3])
def test_a_beginning_that_the_run_has_not_is_refused(epochs, original, here):
    refused(f"--epochs {epochs}: {original['exact']} has 2; name a number from 1 to 2", original["exact"], epochs=epochs)


def test_a_beginning_in_which_nothing_was_logged_is_refused(original, here):
    run = claim(original["exact"], here / "copy", provenance=trained_with(log_every=6))
    refused("logs every 6 steps, and these are 5: there is nothing to compare", run, epochs=1)


def test_a_beginning_of_a_native_run_is_refused(original, here):
    refused("a beginning cannot tell whether native runs are equivalent", original["native"], epochs=1)


def test_an_absent_device_is_refused(original, here):
    refused("device 'gpu': not a device", original["exact"], "gpu")


def test_a_folder_that_may_not_be_written_is_one_line_and_nothing_is_written(original, here, monkeypatch):
    def read_only(self, *_, **__):
        raise PermissionError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    refused("cannot write .cache: Read-only file system", original["exact"])


def test_a_mistake_is_one_line_and_exit_code_2(original, here):
    dataset.DATASET.unlink()
    done = command("reproduce", str(original["exact"]), folder=here)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith(f"error: {original['exact']} needs the data set 'drawn' (")
    assert not (here / ".cache").exists()


def test_what_a_run_says_of_itself_cannot_steer_the_terminal(original, here, capsys):
    copy = claim(original["exact"], here / "copy", provenance=called("\x1b[2Jdrawn"))
    assert reproduce.reproduce(copy)
    assert "\x1b" not in capsys.readouterr().out
