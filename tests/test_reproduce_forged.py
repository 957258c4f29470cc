"""`reproduce`: what was changed by hand does not come out again, and is named with both values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from msgspec import structs

from pipeline import device as devices
from pipeline import evaluation
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.runs import kept, outputs
from pipeline.system.errors import UserError
from pipeline.training.trainer import LoggedStep, Trainer
from pipeline.weights import reproduce
from tests.conftest import ROOT, command
from tests.reproductions import claim, in_full, loss_changed, make, said, slightly, trained_with


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


def test_a_run_of_another_network_that_calls_it_simple_cnn_is_different(here, capsys, monkeypatch):
    with monkeypatch.context() as forger:  # who changes the pipeline's own network and trains it: his network.json says what he trained
        forward = SimpleCNN.forward
        forger.setattr(SimpleCNN, "forward", lambda self, images: forward(self, images) * 2)
        run = make(here / "forger", "exact")
    capsys.readouterr()
    assert not reproduce.reproduce(run)
    assert said(capsys).startswith("different: first at step 3, row 1 of the history: ")
    assert not evaluation.evaluate_kept(run, "cpu", 16)


@pytest.mark.parametrize("numerics", ["exact", "native"])
def test_a_true_run_with_the_network_json_of_another_network_is_different(numerics, original, here, capsys):
    forged = claim(original[numerics], here / "forged", network=lambda its: its.replace(b"0.05,0.05", b"0.06,0.06"))
    assert not reproduce.reproduce(forged)
    assert said(capsys) == "different: network.json of the run is not the network that was trained here, simple_cnn"
    assert reproduce.reproduce(claim(original[numerics], here / "true", network=lambda its: its))


def test_a_network_json_that_says_that_an_exact_network_cannot_be_recorded_is_another_one(original, here, capsys):
    forged = claim(original["exact"], here / "forged", network=lambda its: b'{"format":1,"refused":"an operation without a form"}')
    assert not reproduce.reproduce(forged)
    assert said(capsys) == "different: network.json of the run is not the network that was trained here, simple_cnn"


@pytest.mark.parametrize("content", [b"this is no network \x1b[2J", None], ids=["garbage", "another network"])
def test_a_network_json_that_the_weights_do_not_name_is_refused(content, original, here):
    forged = claim(original["exact"], here / "forged", network=lambda its: None)
    its = (original["exact"] / outputs.NETWORK).read_bytes()
    (forged / outputs.NETWORK).write_bytes(content or its.replace(b".functional.relu", b".functional.silu"))
    identity = json.loads((forged / kept.IDENTITY).read_text())
    (forged / kept.IDENTITY).write_text(json.dumps(identity | {"files": kept.sums_of(kept.read_parts(forged))}))
    for judge in (reproduce.reproduce, lambda run: evaluation.evaluate_kept(run, "cpu", 16)):
        with pytest.raises(UserError, match=r"network\.json: model\.safetensors says of no such file, so it was put there by hand"):
            judge(forged)


def test_a_run_that_does_not_say_where_it_was_trained_has_the_network_json_of_here(original, here, capsys):
    for name, changed, true in (("true", (b"relu", b"relu"), True), ("forged", (b".Tensor.view", b".Tensor.reshape"), False)):
        run = claim(original["exact"], here / name, network=lambda its, changed=changed: renamed(its, *changed))
        described = json.loads((run / kept.ENVIRONMENT).read_text())
        (run / kept.ENVIRONMENT).write_text(json.dumps(described | {"train": None}))
        assert reproduce.reproduce(run) is true


def test_a_network_json_that_another_release_of_pytorch_wrote_is_held_to_the_runs_predictions(original, here, capsys, monkeypatch):
    of_here = devices.describe
    monkeypatch.setattr(devices, "describe", lambda device: of_here(device) | {"torch": "9.9"})
    same, forged = (
        claim(original["exact"], here / name, network=lambda its, changed=changed: renamed(its, *changed))
        for name, changed in (("same", (b".Tensor.view", b".Tensor.reshape")), ("forged", (b".functional.relu", b".functional.silu")))
    )
    assert reproduce.reproduce(same)
    assert said(capsys).endswith(
        "; network.json of the run, which another release of PyTorch may have written, has other operations, which give the run's "
        "predictions; what else they give was not checked"
    )
    assert not reproduce.reproduce(claim(original["exact"], here / "drawn", network=lambda its: renamed(its, b"0.05,0.05", b"0.06,0.06")))
    assert said(capsys) == "different: network.json of the run is not the network that was trained here, simple_cnn"
    assert not reproduce.reproduce(forged)
    assert said(capsys) == "different: network.json of the run is not the network that was trained here, simple_cnn"


def renamed(network: bytes, name: bytes, other: bytes) -> bytes:
    assert name in network
    return network.replace(name, other)


def test_a_training_that_diverges_where_the_run_claims_a_history_is_different(original, here, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "read_step_log", lambda self: [LoggedStep(math.inf, 1.0)] * 3)
    assert not reproduce.reproduce(original["exact"])
    assert said(capsys) == f"different: training stopped at step 1: the loss is inf; {original['exact']} claims that it went on"


def test_an_evaluation_that_gives_other_predictions_than_a_run_records_is_exit_code_3(original, here):
    (here / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    claim(original["exact"], here / "forged", predictions=lambda rows: [structs.replace(p, predicted=p.actual) for p in rows])
    done = command("evaluate", "--run", "forged", "--device", "cpu", folder=here)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.endswith("of 40 predictions differ from what forged records\n")


def test_different_is_exit_code_3(original, here):
    done = command("reproduce", str(claim(original["exact"], here / "forged", history=loss_changed(3))), folder=here)
    assert (done.returncode, done.stdout.splitlines()[-1][:28]) == (3, "different: first at step 3, ")


def of_other_order(provenance):
    """The classes in another order: the same set, with other names for most images."""
    first, second, *others = provenance.data.classes
    return structs.replace(provenance, data=structs.replace(provenance.data, classes=(second, first, *others)))


def test_evaluate_run_too_holds_a_run_to_the_order_of_the_classes_and_to_the_labels(original, here):
    copy = claim(original["exact"], here / "order", provenance=of_other_order)
    with pytest.raises(UserError, match=r"order calls the classes 'class1, class0, .*use the data set with the run's names"):
        evaluation.evaluate_kept(copy, "cpu", 7)

    def turned(predictions):
        one = next(p for p in predictions if p.actual != p.predicted)
        other = next(p for p in predictions if p.actual != p.predicted and one.predicted not in (p.actual,) and p.actual != one.actual
                     and p.predicted != one.actual and one.predicted != p.actual)  # fmt: skip
        names = {one.index: other.actual, other.index: one.actual}
        return [structs.replace(p, actual=names.get(p.index, p.actual)) for p in predictions]

    copy = claim(original["exact"], here / "labels", predictions=turned)
    with pytest.raises(UserError, match=r"predictions\.csv: not of the test images of 'drawn', whose labels are others; changed by hand"):
        evaluation.evaluate_kept(copy, "cpu", 7)
