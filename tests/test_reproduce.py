"""`reproduce`: a kept run comes out again, on other threads, instructions, workers and devices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import structs

from pipeline import params, sources
from pipeline.runs import kept, outputs, provenance
from pipeline.weights import reproduce
from tests.conftest import command
from tests.reproductions import CLASSES, WIDE, claim, content, said, slightly


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


def elsewhere(run, target, **changed):
    """A copy of a native run that says that it was made on another machine, changed by hand."""
    copy = claim(run, target, **changed)
    facts = json.loads((copy / kept.ENVIRONMENT).read_text())
    facts["evaluate"]["hardware"] = "An abacus"
    (copy / kept.ENVIRONMENT).write_text(json.dumps(facts))
    return copy


def test_native_weights_that_differ_in_bits_are_equivalent_when_they_give_the_runs_predictions_and_history(
    original, here, capsys, monkeypatch
):
    monkeypatch.setattr(reproduce, "SETTINGS", WIDE)
    assert reproduce.reproduce(elsewhere(original["native"], here / "close", weights=slightly(1e-6)))
    assert said(capsys).startswith("equivalent: the 50 % confidence interval of the difference in accuracy, ")


def always_one_class(weights):
    constant = {name: np.zeros_like(array) for name, array in weights.items()}
    constant["fc3.bias"][3] = 1
    return constant


def scores(confidence):
    return lambda rows: [structs.replace(p, confidence=confidence) if p.index == 11 else p for p in rows]


def wrong_in_another_way(rows):
    """Predictions of which one that is wrong is wrong in another way: the accuracy stays."""
    first = next(p for p in rows if p.predicted != p.actual)
    other = next(name for name in CLASSES if name not in (first.actual, first.predicted))
    return [structs.replace(p, predicted=other) if p is first else p for p in rows]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": always_one_class}, "its own weights, evaluated here, do not give what it says: test image "),
        ({"predictions": scores(0.75)}, "its own weights, evaluated here, do not give what it says: test image 11 is "),
        ({"predictions": wrong_in_another_way}, "its own weights, evaluated here, do not give what it says: test image "),
        (
            {"metrics": lambda m: m | {"loss": 0.001}},
            "its own weights, evaluated here, do not give what it says: the test loss is 0.001 ",
        ),
        (
            {"history": lambda h: [s._replace(loss=0.001) for s in h], "weights": slightly(1e-6)},
            "the loss of step 3 is 0.001 in the run, here it is 2.",
        ),
        (  # weights that are those here to the last bit have one history
            {"history": lambda h: [*h[:-1], h[-1]._replace(loss=float(np.nextafter(np.float32(h[-1].loss), np.float32(0))))]},
            "first at step ",
        ),
        ({"history": lambda h: h[:-1]}, "first in row 4 of the history: the run has no more, here is step 10 of epoch 2"),
    ],
)
@pytest.mark.parametrize("machine", [claim, elsewhere])
def test_native_evidence_that_the_runs_own_weights_and_training_do_not_give_is_different(
    changed, message, machine, original, here, capsys, monkeypatch
):
    monkeypatch.setattr(reproduce, "SETTINGS", WIDE)
    assert not reproduce.reproduce(machine(original["native"], here / "forged", **changed))
    assert said(capsys).startswith(f"different: {message}")


def test_on_the_same_machine_the_weights_of_a_native_run_must_give_its_scores_to_the_last_bit(original, here, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "SETTINGS", WIDE)
    row = outputs.read_predictions(original["native"])[11]
    near = float(np.nextafter(np.float32(row.confidence), np.float32(1)))
    assert not reproduce.reproduce(claim(original["native"], here / "here", predictions=scores(near)))
    assert "do not give what it says: test image 11 is " in said(capsys)
    assert reproduce.reproduce(elsewhere(original["native"], here / "there", predictions=scores(near)))


def test_a_native_run_whose_predictions_were_made_better_by_hand_is_different(original, here, capsys):
    assert not reproduce.reproduce(claim(original["native"], here / "forged", predictions=lambda rows: [*map(right, rows)]))
    assert "lies beyond" in said(capsys)


def test_a_native_run_with_predictions_left_out_is_different(original, here, capsys):
    assert not reproduce.reproduce(claim(original["native"], here / "forged", predictions=lambda rows: rows[:30]))
    assert said(capsys) == "different: its predictions are not of this data set's test images"


def right(row: outputs.Prediction) -> outputs.Prediction:
    """The same test image, recognised."""
    return structs.replace(row, predicted=row.actual)


def test_of_the_settings_of_a_training_those_that_are_as_usual_are_not_said():
    tutorial = {"epochs": 1, "batch_size": 2, "lr": 0.5, "momentum": 0.0, "log_every": 3}
    assert provenance.chosen(params.Train(**tutorial)) == tutorial
    recipe = params.Train(**tutorial, optimizer=params.Optimizer(name="adamw"), augment=params.Augment(flip=True), label_smoothing=0.1)
    assert provenance.chosen(recipe) == {**tutorial, "optimizer.name": "adamw", "augment.flip": True, "label_smoothing": 0.1}
