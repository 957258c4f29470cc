"""The stages' real outputs are consistent: what one file says, the others and the data bear out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipeline import device as devices
from pipeline import numerics, params
from pipeline.data import dataset
from pipeline.evaluation import evaluate
from pipeline.machine import records
from pipeline.machine.demo import FINGERPRINT, SETTINGS
from pipeline.runs import outputs as parts
from pipeline.runs.outputs import METRICS, MODEL, NETWORK, OUTPUTS, PARTS
from pipeline.system import tensors
from tests.conftest import ROOT, command


@pytest.fixture(scope="module")
def workspace(demo):
    return demo[0]


@pytest.fixture(scope="module")
def outputs(workspace):
    return workspace / OUTPUTS


@pytest.fixture(scope="module")
def data(workspace):
    return dataset.load(workspace / dataset.DATASET)


def test_accuracy_and_per_class_accuracy_are_those_of_the_predictions(outputs):
    metrics, predictions = parts.read_metrics(outputs), parts.read_predictions(outputs)
    hits = np.array([p.actual == p.predicted for p in predictions])
    actual = np.array([p.actual for p in predictions])
    assert metrics.accuracy == hits.mean()
    assert metrics.accuracy_per_class == {name: hits[actual == name].mean() for name in metrics.accuracy_per_class}


def test_the_column_actual_is_the_test_labels(outputs, data):
    assert [p.actual for p in parts.read_predictions(outputs)] == [data.classes[label] for label in data.test_labels]


def test_the_history_has_the_schedules_length(outputs, data):
    settings = SETTINGS["train"]
    steps = -(-len(data.train_labels) // settings["batch_size"]) * settings["epochs"]
    logged = [row.step for row in parts.read_history(outputs)]
    assert logged == [*range(settings["log_every"], steps, settings["log_every"]), steps]


def predictions_again(workspace, data, device):
    settings = params.load(workspace / "params.yaml")
    chosen = numerics.select(settings.numerics, device)
    return evaluate(parts.read_weights(workspace / OUTPUTS), data, device, chosen, settings.evaluate)


def assert_recomputed(workspace, data, device):
    again, outputs = predictions_again(workspace, data, device), workspace / OUTPUTS
    assert again.metrics == parts.read_metrics(outputs)
    assert [(p.predicted, np.float32(p.confidence)) for p in again.predictions] == [
        (p.predicted, np.float32(p.confidence)) for p in parts.read_predictions(outputs)
    ]


def test_predictions_and_metrics_recomputed_from_the_model_equal_the_files(workspace, data):
    assert_recomputed(workspace, data, torch.device("cpu"))


@pytest.mark.cuda
def test_predictions_and_metrics_recomputed_on_cuda_equal_the_files(cuda, workspace, data):
    devices.prepare(cuda)
    assert_recomputed(workspace, data, cuda)


def test_the_fingerprint_in_the_metrics_is_the_models_and_the_commands_and_the_readmes(workspace, outputs):
    of_weights = tensors.fingerprint(parts.read_weights(outputs))
    assert parts.read_metrics(outputs).fingerprint == of_weights == FINGERPRINT
    assert command("fingerprint", folder=workspace).stdout == f"{of_weights}  outputs\n"
    assert of_weights in (ROOT / "README.md").read_text()


def test_the_demo_learns_between_60_and_98_percent_of_the_synthetic_set(outputs):
    assert 0.60 < parts.read_metrics(outputs).accuracy < 0.98


def test_the_demo_says_at_its_start_what_it_will_do_and_about_how_long_that_takes(demo):
    folder, said, _ = demo
    others = sum(line.startswith(f"  {FINGERPRINT}  ") for line in said.splitlines()) - 1
    assert said.startswith(
        f"In {folder}/ this makes a synthetic set, trains the tutorial's SimpleCNN on it for 3 epochs and evaluates it.\n"
        f"Then it trains in {others} other ways, and evaluates in other batches: all must give the same bits.\n"
        "It takes about three minutes on two CPU cores, 110 MB of disk, and no network.\n\n"
    )


def test_the_demo_prints_the_same_fingerprint_for_every_way_to_train_and_the_same_digest_for_every_way_to_evaluate(demo):
    trained, evaluated = (
        [line.split("  ") for line in part.splitlines() if line.startswith("  ")] for part in demo[1].split("The same evaluation")
    )
    assert [fields[2] for fields in trained][:4:3] == ["the stages", "set to the oldest instructions"]
    assert {fields[1] for fields in trained} == {FINGERPRINT}
    assert [fields[2] for fields in evaluated] == ["in batches of 1000", "in batches of 7"]
    assert len({fields[1] for fields in evaluated}) == 1
    assert "every fingerprint is the one in the README" in demo[1]


def test_the_demo_leaves_a_record_of_the_machine_with_what_it_gave(demo):
    record = records.read(demo[0] / records.RECORD)
    assert f"send it in a pull request as results/machines/{record.slug()}.json\n" in demo[1]
    assert {outcome.fingerprint for outcome in record.outcomes} == {record.expected} == {FINGERPRINT}
    limit, oldest = devices.cpu_limit(), records.OLDEST_INSTRUCTIONS
    assert [(o.threads, o.settings) for o in record.outcomes[1:5]] == [(limit, {}), (1, {}), (limit, oldest), (1, {})]
    assert [o.workers for o in record.outcomes[:5]] == [1, 1, 1, 1, 2]
    assert [o.evaluation_batch for o in record.outcomes if o.evaluation] == [1000, 7]


def test_the_demo_leaves_the_projects_own_outputs_and_runs_and_dvc_lock_alone(demo):
    assert demo[2] == {}


def test_nothing_in_an_output_tells_the_host_or_the_device(outputs):
    assert list(json.loads((outputs / METRICS).read_text())) == ["accuracy", "loss", "accuracy_per_class", "numerics", "fingerprint"]
    (metadata,) = tensors.read(outputs / MODEL).metadata.values()
    described = json.loads(metadata)
    assert set(described) == {"provenance", "history", "network"}
    assert set(described["provenance"]) == {"code", "data", "numerics", "seed", "train", "workers"}
    assert set(described["provenance"]["data"]) == {"classes", "digest", "name", "shape"}


def test_a_repeated_run_in_another_folder_gives_equal_files(workspace, tmp_path):
    (tmp_path / "params.yaml").write_bytes((workspace / "params.yaml").read_bytes())
    for stage in ("download", "train", "evaluate"):
        done = command(stage, folder=tmp_path, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
    for name in [dataset.DATASET, *(OUTPUTS / part for part in (*PARTS, NETWORK))]:
        assert (tmp_path / name).read_bytes() == (workspace / name).read_bytes(), name


def test_a_kept_run_is_evaluated_on_any_device_and_says_whether_the_metrics_are_the_same(workspace):
    (kept,) = (workspace / "runs").iterdir()
    before = sorted(p.read_bytes() for p in kept.iterdir())
    done = command("evaluate", "--run", f"runs/{kept.name}", "--device", "cpu", folder=workspace)
    assert done.stdout.splitlines()[-1] == f"on cpu: identical to what runs/{kept.name} records"
    assert sorted(p.read_bytes() for p in kept.iterdir()) == before
