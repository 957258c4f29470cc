"""The `evaluate` stage: weights and test images -> metrics and predictions; the finished run is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline import device as devices
from pipeline import files, run
from pipeline.errors import UserError
from pipeline.model import SimpleCNN
from pipeline.numerics import select
from pipeline.params import Evaluate, Params, section

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset
    from pipeline.numerics import Numerics


@dataclass(frozen=True)
class Evaluation:
    """What evaluation gives."""

    metrics: dict[str, Any]
    predictions: list[run.Prediction]
    environment: dict[str, Any]


def stage(params: Params) -> None:
    """Evaluate outputs/model.safetensors on data/, write the metrics and predictions, keep the run."""
    from pipeline.data import dataset

    with files.only_one(run.LOCK, "train or evaluate"):
        weights = run.read_model(run.OUTPUTS)
        data = dataset.load()
        device = devices.select(params.device)
        devices.prepare(device)
        numerics = select(params.numerics, device)
        with devices.failures_explained(device):
            found = evaluate(weights, data, device, numerics, params.evaluate)
        files.write_json(run.OUTPUTS / run.METRICS, found.metrics)
        run.write_predictions(run.OUTPUTS, found.predictions)
        identity = run.identity_of(params, numerics.version, {"name": data.name, "digest": data.digest}, found.metrics["fingerprint"])
        kept = run.keep(run.OUTPUTS, run.RUNS, identity, found.environment)
    _report(found.metrics, data.name)
    print(f"kept as {kept}")


def evaluate_kept(folder: Path, device_name: str) -> None:
    """Evaluate a kept run on any device, change no file, and say whether the metrics are those it records.

    Raises:
        UserError: the run is damaged, was evaluated with settings that params would refuse, or data/ holds another data set than its.
    """
    from pipeline.data import dataset

    kept = run.load(folder)
    settings = section(Evaluate, kept.identity.evaluate, str(folder / run.IDENTITY))
    data = dataset.load()
    if data.digest != kept.identity.data["digest"]:
        raise UserError(f"{dataset.DATASET} holds '{data.name}' ({data.digest:.12}...), but {folder} was evaluated on "
                        f"'{kept.identity.data['name']}' ({kept.identity.data['digest']:.12}...): set data in params.yaml and run "
                        "`python -m pipeline download`")  # fmt: skip
    if len(kept.predictions) != len(data.test_labels):
        raise UserError(f"{folder / run.PREDICTIONS}: {len(kept.predictions)} predictions of the {len(data.test_labels)} test images of "
                        f"'{data.name}': damaged; make the run again with `dvc repro`")  # fmt: skip
    device = devices.select(device_name)
    devices.prepare(device)
    numerics = select(kept.identity.numerics, device)
    with devices.failures_explained(device):
        found = evaluate(kept.weights, data, device, numerics, settings)
    _report(found.metrics, data.name)
    pairs = list(zip(found.predictions, kept.predictions, strict=True))
    changed = sum(a.predicted != b.predicted for a, b in pairs)
    equal = not changed and all(np.float32(a.confidence) == np.float32(b.confidence) for a, b in pairs)  # the file has the shortest form
    same = found.metrics == kept.metrics and equal
    verdict = "identical to" if same else f"{changed} of {len(found.predictions)} predictions differ from"
    print(f"on {device_name}: {verdict} what {folder} records")


def _report(metrics: dict[str, Any], name: str) -> None:
    worst = min(metrics["accuracy_per_class"], key=metrics["accuracy_per_class"].__getitem__)
    print(f"{name}: accuracy {metrics['accuracy']:.2%}, loss {metrics['loss']:.4f}, worst class {worst} "
          f"{metrics['accuracy_per_class'][worst]:.2%}, numerics {metrics['numerics']}")  # fmt: skip
    print(f"fingerprint {metrics['fingerprint']}")


def load_weights(model: torch.nn.Module, weights: dict[str, np.ndarray] | run.Tensors) -> None:
    """Put float32 `weights` into `model`.

    Raises:
        UserError: names or shapes differ; lists the differences.
    """
    wanted = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    given = {name: tuple(array.shape) for name, array in weights.items()}
    wrong = [f"{name} is {given.get(name, 'missing')}, not {shape}" for name, shape in wanted.items() if given.get(name) != shape]
    wrong += [f"{name} is unknown" for name in given if name not in wanted]
    wrong += [f"{name} is {array.dtype}, not float32" for name, array in weights.items() if array.dtype != np.float32]
    if wrong:
        raise UserError(f"the weights are not {type(model).__name__}'s: {'; '.join(wrong)}")
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()})


def evaluate(
    weights: dict[str, np.ndarray] | run.Tensors, data: Dataset, device: torch.device, numerics: Numerics, settings: Evaluate
) -> Evaluation:
    """Loss, accuracy and predictions of SimpleCNN with `weights` on the test images.

    Raises:
        UserError: the weights are not SimpleCNN's, or give a loss that is not finite.
    """
    model = SimpleCNN()
    load_weights(model, weights)
    model.to(device).eval()
    images = torch.from_numpy(data.test_images).to(device)  # uint8 [M, 3, 32, 32]
    labels = torch.from_numpy(data.test_labels).to(device).long()  # int64 [M]
    clock = devices.Stopwatch(device)
    scores = []
    with torch.inference_mode(), clock.running():
        for some_images, some_labels in zip(*(torch.split(t, settings.batch_size) for t in (images, labels)), strict=True):
            scores.append(numerics.scores(numerics.logits(model, some_images), some_labels))
        losses, predicted, confidence = (torch.cat(parts) for parts in zip(*scores, strict=True))  # each [M]
        loss = numerics.mean(losses)
    if not np.isfinite(loss):
        raise UserError(f"the test loss is {loss}: the weights are of no use; train again with a smaller lr")
    hits = (predicted == labels).cpu().numpy()
    of_class = [hits[data.test_labels == i] for i in range(len(data.classes))]
    metrics = {
        "accuracy": int(hits.sum()) / len(hits),
        "loss": loss,
        "accuracy_per_class": {name: int(of.sum()) / len(of) for name, of in zip(data.classes, of_class, strict=True) if len(of)},
        "numerics": numerics.version,
        "fingerprint": run.fingerprint(weights),
    }
    rows = zip(data.test_labels.tolist(), predicted.tolist(), confidence.tolist(), strict=True)
    predictions = [run.Prediction(i, data.classes[a], data.classes[p], c) for i, (a, p, c) in enumerate(rows)]
    environment = {
        **devices.describe(device),
        "images_per_second": round(len(images) / clock.seconds, 1),
        "peak_memory_bytes": devices.peak_memory_bytes(device),
    }
    return Evaluation(metrics, predictions, environment)
