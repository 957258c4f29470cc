"""Weights from anywhere: read without executing anything, refused with what is wrong, the same on every device."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import device as devices
from pipeline import models, numerics, params
from pipeline.evaluation import evaluate, evaluate_kept
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.params import Evaluate
from pipeline.runs import environments, keeping, kept, outputs, provenance
from pipeline.runs.environments import Facts
from pipeline.runs.kept import RUNS
from pipeline.runs.outputs import MODEL, OUTPUTS, Step
from pipeline.system import tensors
from pipeline.system.errors import UserError
from tests import kept_runs
from tests.conftest import ROOT, command
from tests.steps import CPU, drawn_set, trainer


class Malicious:
    """A pickle of it runs a command when it is loaded."""

    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture(params=["a pickle", "a file of torch.save"])
def malicious(request, tmp_path, monkeypatch) -> Path:
    """A workspace whose weights are such a pickle, in outputs/ and in a run from elsewhere."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    drawn_set(64).save()
    if request.param == "a pickle":
        Path("weights").write_bytes(pickle.dumps(Malicious()))
        pickle.loads(Path("weights").read_bytes())
    else:
        torch.save({"conv1.weight": Malicious()}, "weights")
        torch.load("weights", weights_only=False)
    Path("executed").unlink()  # so it works
    kept_runs.keep().rename(RUNS / "theirs")
    shutil.copytree(RUNS / "theirs", OUTPUTS)
    for folder in (OUTPUTS, RUNS / "theirs"):
        shutil.copy("weights", folder / MODEL)
    return tmp_path


@pytest.mark.fault(20)
def test_malicious_weights_are_refused_in_one_line_and_nothing_in_them_is_executed(malicious):
    theirs = "runs/theirs"
    for words in (["evaluate"], ["fingerprint"], ["fingerprint", theirs], ["compare", theirs, "outputs"], ["evaluate", "--run", theirs]):
        done = command(*words, folder=malicious)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "model.safetensors: damaged, or not a safetensors file" in done.stderr
    assert not (malicious / "executed").exists()


WHOLE = safetensors.numpy.save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.float32)})


@pytest.mark.fault(20)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, len(WHOLE)))
def test_damaged_weights_are_read_or_refused_and_never_end_in_a_traceback(tmp_path_factory, changes, length):
    content = bytearray(WHOLE)
    for at, value in changes:
        content[at] = value
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / MODEL).write_bytes(content[: length or None])
    try:
        weights = outputs.read_weights(folder)
    except UserError as reason:
        assert "\n" not in str(reason)  # noqa: PT017 - either is right
        return
    with pytest.raises(UserError, match="the weights are not SimpleCNN's"):
        models.load(SimpleCNN(), weights)


@pytest.mark.fault(20)
@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}},
        [],
    ],
)
def test_a_header_that_lies_is_refused(header, tmp_path):
    text = json.dumps(header).encode()
    (tmp_path / MODEL).write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(UserError, match=r"damaged, or not a safetensors file|the weights are not"):
        models.load(SimpleCNN(), outputs.read_weights(tmp_path))


@pytest.fixture(scope="module")
def weights():
    return trainer().named_weights()


@pytest.mark.fault(22)
def test_weights_with_wrong_names_shapes_or_types_are_refused_with_every_difference(weights):
    changed = {**weights, "conv1.weight": np.zeros((6, 1, 5, 5), np.float32), "extra": np.zeros(1, np.float32)}
    changed["fc1.bias"] = changed["fc1.bias"].astype(np.float64)
    del changed["fc3.bias"]
    with pytest.raises(UserError) as refusal:
        models.load(SimpleCNN(), changed)
    shown = f"{weights['conv1.weight'].shape}"
    assert str(refusal.value) == (
        f"the weights are not SimpleCNN's: conv1.weight is (6, 1, 5, 5), not {shown}; fc3.bias is missing, not (10,); "
        "'extra' is unknown; fc1.bias is float64, not float32"
    )


@pytest.mark.fault(22)
def test_the_command_lists_the_differences_and_ends_with_2(weights, tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    data = drawn_set(64)
    data.save(tmp_path / "data" / "dataset.safetensors")
    described = provenance.described_by(params.load(tmp_path / "params.yaml"), "exact-3", data.description, "c" * 64)
    lacking = {name: array for name, array in weights.items() if name != "fc2.bias"}
    outputs.write_training(tmp_path / OUTPUTS, lacking, [Step(1, 1, 2.25)], described)
    done = command("evaluate", folder=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: the weights are not simple_cnn's: fc2.bias is missing, not (84,)\n")


@pytest.mark.fault(21)
def test_a_file_of_weights_says_nothing_of_the_device_that_made_it(weights, tmp_path):
    outputs.write_training(tmp_path, weights, [Step(1, 1, 2.25)], kept_runs.provenance())
    content = (tmp_path / MODEL).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert not re.search("cpu|cuda|device|AMD|Intel", header.pop("__metadata__")["training"])
    assert set(header) == set(weights)
    assert all(set(entry) == {"dtype", "shape", "data_offsets"} for entry in header.values())
    assert {entry["dtype"] for entry in header.values()} == {"F32"}


@pytest.fixture
def made_on_cuda(weights, tmp_path, monkeypatch) -> Path:
    """A kept run that was trained on CUDA, in a workspace with its data set."""
    monkeypatch.chdir(tmp_path)
    data = drawn_set(64)
    data.save()
    evaluation = evaluate(weights, data, CPU, numerics.select("exact", CPU), Evaluate(batch_size=20))
    outputs.write_training(OUTPUTS, weights, [Step(1, 1, 2.25)], kept_runs.provenance(data=data.description, numerics="exact-3"))
    outputs.write_evaluation(OUTPUTS, evaluation.metrics, evaluation.predictions)
    environments.await_evaluation(outputs.read_model(OUTPUTS), Facts(device="cuda:0", hardware="NVIDIA"))
    return keeping.keep(evaluated_in=Facts(device="cuda:0", hardware="NVIDIA"))


@pytest.mark.fault(21)
def test_a_run_that_was_made_on_cuda_is_evaluated_on_a_cpu(made_on_cuda, capsys):
    evaluate_kept(made_on_cuda, "cpu", 20)
    assert capsys.readouterr().out.splitlines()[-1] == f"on cpu: identical to what {made_on_cuda} records"


@pytest.mark.fault(29)
def test_a_run_with_predictions_of_fewer_images_than_the_data_set_has_is_not_evaluated(made_on_cuda):
    run = kept.load(made_on_cuda)
    all_right = [kept_runs.replaced(p, {"predicted": p.actual}) for p in run.predictions[:-1]]
    accuracies = {"accuracy": 1.0, "accuracy_per_class": dict.fromkeys(run.metrics.accuracy_per_class, 1.0)}
    outputs.write_evaluation(OUTPUTS, kept_runs.replaced(run.metrics, accuracies), all_right)
    shorter = keeping.keep(evaluated_in=Facts(hardware="another"))
    with pytest.raises(UserError, match=r"predictions\.csv: 63 predictions of the 64 test images of 'drawn': damaged"):
        evaluate_kept(shorter, "cpu", 20)


@pytest.mark.cuda
@pytest.mark.fault(21)
@pytest.mark.parametrize("cuda_first", [True, False])
def test_weights_saved_on_one_device_are_evaluated_on_the_other_with_the_same_metrics(cuda_first, cuda, tmp_path):
    first, second = (cuda, CPU) if cuda_first else (CPU, cuda)
    trained = trainer(device=first)
    trained.step()
    tensors.write(tmp_path / MODEL, trained.named_weights())
    data = drawn_set(64)
    evaluations = []
    for device in (first, second):
        devices.prepare(device)
        evaluations.append(
            evaluate(outputs.read_weights(tmp_path), data, device, numerics.select("exact", device), Evaluate(batch_size=20))
        )
    assert evaluations[0].metrics == evaluations[1].metrics
    assert evaluations[0].predictions == evaluations[1].predictions


@pytest.mark.parametrize("name", ["exact", "native"])
def test_no_tensor_of_a_batch_outlives_the_next_so_the_heap_does_not_grow_with_the_test_images(name, monkeypatch):
    chosen, left, alive = numerics.select(name, CPU), [], []
    scores = chosen.scores

    def watched(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left.append(sum(tensor() is not None for tensor in alive))
        given = scores(logits, labels)
        alive.extend(map(weakref.ref, given))
        return given

    monkeypatch.setattr(chosen, "scores", watched)
    weights = {key: value.numpy() for key, value in SimpleCNN().state_dict().items()}
    evaluate(weights, drawn_set(40), CPU, chosen, Evaluate(batch_size=2))
    assert left == [0] + [3] * (len(left) - 1) != [0]
