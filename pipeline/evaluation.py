"""The `evaluate` stage: weights and test images -> metrics and predictions; the finished run is kept."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline import device as devices
from pipeline import models, numerics
from pipeline.data import dataset
from pipeline.data.batches import Batches
from pipeline.inputs import LOCK, Inputs
from pipeline.models import bounds, checkpoints, of_runs
from pipeline.models.recorded import Recording
from pipeline.params import Evaluate
from pipeline.params import Model as Network
from pipeline.runs import keeping, kept, outputs, provenance
from pipeline.runs.environments import Facts
from pipeline.runs.outputs import HISTORY, MODEL, NETWORK, OUTPUTS, PREDICTIONS, Metrics, Model, Prediction
from pipeline.system import files, tensors
from pipeline.system.errors import UserError, printable
from pipeline.system.tensors import Tensors

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset
    from pipeline.numerics import Numerics


SAME_ANSWER = 0.01
"""By how much native numerics may change a confidence, or a loss and the part that it is of 1 + loss, where other images are around."""
OTHERWISE = 1000
"""One in how many images, and one more, native numerics may predict otherwise: where two classes are nearly as likely."""
SIZES = 6
"""How many batches of drawn sizes a received network answers again, besides FEW and as many images as `predict` takes."""
TRIED = (1, 2, 3, 7)
"""Images that a received network is given at once, for the exact forms of its operations."""
FEW = [1] * 8 + [2] * 4
BATCH, BATCH_BYTES = 256, 2**23
"""Images, and their bytes, that `predict` computes at once. With exact numerics an image's bits do not depend on it."""
BATCHES = Evaluate(batch_size=1000)
"""For who evaluates without settings of his own."""


@dataclass(frozen=True)
class Evaluation:
    """What evaluation gives."""

    metrics: Metrics
    predictions: list[Prediction]
    images_per_second: float


def stage(inputs: Inputs) -> None:
    """Evaluate outputs/model.safetensors on data/, write the metrics and predictions, keep the run.

    Raises:
        UserError: the weights are not those that params.yaml describes, the device or the data set cannot be used, or an input
            changed while it ran.
    """
    inputs.refuse_unseen()
    params = inputs.params
    with files.only_one(LOCK, "a stage"):
        inputs.watch(dataset.DATASET, OUTPUTS / MODEL, OUTPUTS / HISTORY)
        model = outputs.read_model(OUTPUTS)
        data = dataset.load()
        device, chosen = numerics.prepared(params.device, params.numerics)
        source = models.source(params.model, chosen.version)
        described = provenance.described_by(
            params, chosen.version, data.description, model.provenance.code, source, checkpoints.digest(params.model)
        )
        _check_trained_as(model, described)
        with devices.failures_explained(device):
            network = of_runs.recorded_network(
                model.network, params.model, source, model.weights, len(data.classes), data.shape, chosen.version
            )
            evaluation = evaluate(model.weights, data, device, chosen, params.evaluate, params.model, network)
        inputs.check_unchanged()
        outputs.write_evaluation(OUTPUTS, evaluation.metrics, evaluation.predictions)
        folder = keeping.keep(OUTPUTS, evaluated_in=environment(evaluation, device, params.evaluate))
    _report(evaluation.metrics, data.name)
    print(f"kept as {folder}")


def environment(evaluation: Evaluation, device: torch.device, settings: Evaluate) -> Facts:
    """In what environment `evaluation` was computed."""
    return Facts(
        device=str(device),
        **devices.describe(device),
        batch_size=settings.batch_size,
        images_per_second=evaluation.images_per_second,
        peak_memory_bytes=devices.peak_memory_bytes(device),
    )


def _check_trained_as(model: Model, described: provenance.Provenance) -> None:
    """Refuse weights that params.yaml did not train, and a history that is not theirs."""
    if others := provenance.differences(model.provenance, described):
        raise UserError(
            f"{OUTPUTS / MODEL} was trained otherwise than params.yaml says: {'; '.join(others)}. Run `dvc repro`, which trains again "
            "(after `dvc unfreeze train` where that stage is frozen), or put params.yaml back"
        )
    if outputs.sha256(OUTPUTS / HISTORY) != model.history:
        raise UserError(f"{OUTPUTS / HISTORY}: not the history of {MODEL} beside it; run `dvc repro`, which makes both again")


def evaluate_kept(folder: Path, device_name: str, batch_size: int) -> bool:
    """Evaluate a kept run on any device, change no file; say and return whether predictions and metrics are those that it records.

    Raises:
        UserError: the run is damaged, or data/ holds another data set than its.
    """
    run = kept.load(folder)
    data = dataset.load()
    theirs = run.identity.data
    if data.digest != theirs.digest:
        raise UserError(f"{dataset.DATASET} holds '{data.name}' ({data.digest:.12}...), but {folder} was evaluated on "
                        f"'{theirs.name}' ({theirs.digest:.12}...): set data in params.yaml and run "
                        "`python -m pipeline download`")  # fmt: skip
    dataset.check_described(data, str(dataset.DATASET), theirs, folder)
    if len(run.predictions) != len(data.test_labels):
        raise UserError(f"{folder / PREDICTIONS}: {len(run.predictions)} predictions of the {len(data.test_labels)} test images of "
                        f"'{data.name}': damaged; {outputs.again(folder)}")  # fmt: skip
    described = run.identity.provenance
    device, chosen = numerics.prepared(device_name, run.identity.numerics)
    with devices.failures_explained(device):
        network = of_runs.recorded_network(
            run.network, described.network, described.source, run.weights, len(data.classes), data.shape, chosen.version
        )
        evaluation = evaluate(run.weights, data, device, chosen, Evaluate(batch_size=batch_size), described.network, network, received=True)
    if network is None and (said := models.changed(described.network, described.source)):
        print(said, file=sys.stderr)
    _report(evaluation.metrics, data.name)
    pairs = list(zip(evaluation.predictions, run.predictions, strict=True))
    if any(a.actual != b.actual for a, b in pairs):
        raise UserError(f"{folder / PREDICTIONS}: not of the test images of '{data.name}', whose labels are others; changed by hand")
    changed = sum(a.predicted != b.predicted for a, b in pairs)
    equal = not changed and all(np.float32(a.confidence) == np.float32(b.confidence) for a, b in pairs)  # the file has the shortest form
    same = evaluation.metrics == run.metrics and equal
    verdict = "identical to" if same else f"{changed} of {len(pairs)} predictions differ from"
    print(printable(f"on {device_name}: {verdict} what {folder} records"))
    return same


def _report(metrics: Metrics, name: str) -> None:
    worst = min(metrics.accuracy_per_class, key=metrics.accuracy_per_class.__getitem__)
    print(f"{name}: accuracy {metrics.accuracy:.2%}, loss {metrics.loss:.4f}, worst class {worst} "
          f"{metrics.accuracy_per_class[worst]:.2%}, numerics {metrics.numerics}")  # fmt: skip
    print(f"fingerprint {metrics.fingerprint}")


def at_once(shape: models.Shape) -> int:
    """How many images of such a shape `predict` computes at once."""
    return max(1, min(BATCH, BATCH_BYTES // math.prod(shape)))


def may_change(answers: int) -> int:
    """How many of so many answers of native numerics may name another class with the same weights."""
    return 1 + answers // OTHERWISE


def _check_own_answers(model: torch.nn.Module, images: np.ndarray, network: Network) -> None:
    """Raise UserError where the exact forms of a received network's operations refuse what an image's answer is made of: other images.

    Native numerics have no forms, and no batches by chance show all that a network may look for in the others.
    """
    chosen, module = numerics.select("exact", torch.device(devices.CPU)), copy.deepcopy(model).cpu()
    for count in TRIED:
        try:
            with models.mistakes_explained(network):
                chosen.logits(module, torch.from_numpy(np.resize(images[:count], (count, *images.shape[1:]))))
        except UserError as refused:
            reason, _, _ = str(refused).partition("; ")  # what follows is for the network's author
            raise UserError(f"{NETWORK}: what it answers may depend on more than the image, so it is no evidence: {reason}") from None


def _batches_by_chance(chance: np.random.Generator, labels: np.ndarray, most: int) -> list[Tensor]:
    """Some images in batches that nobody knows: FEW, `most`, SIZES others up to that, small ones as likely; neighbours; those of a class.

    `most` is the receiver's own: what is said of a run's evaluation comes with the run.
    """
    images = len(labels)
    sizes = [*FEW, most, *(int(size) for size in most ** chance.random(SIZES))]
    drawn = [chance.choice(images, min(size, images), replace=False) for size in sizes]
    neighbours = chance.integers(images) + np.arange(min(most, images))
    of_a_class = chance.permutation(np.flatnonzero(labels == chance.choice(labels)))[:most]
    return [torch.from_numpy(each) for each in (*drawn, neighbours % images, of_a_class)]


def evaluate(
    weights: Tensors,
    data: Dataset,
    device: torch.device,
    chosen: Numerics,
    settings: Evaluate,
    network: Network = Network(),  # noqa: B008
    recorded: Recording | None = None,
    received: bool = False,
) -> Evaluation:
    """Loss, accuracy and predictions of the network with `weights` on the test images; of the one that was recorded, if given.

    A network that was received could tell the test images by their places or by how many there are: so they are taken in an order that
    nobody knows before, no more at once than `predict` takes, and some of them again in batches of sizes that nobody knows. With exact
    numerics that must give the same bits; with native ones, which are taken both as the run had them and so, the same within SAME_ANSWER.

    Raises:
        UserError: the weights are not the network's, or give a loss that is not finite; an answer depends on other images than its own.
    """
    model = of_runs.build(recorded, network, len(data.classes), data.shape, weights)
    model.to(device).eval()
    batches = Batches(data.test_images, data.test_labels, device)
    clock = devices.Stopwatch(device)

    def scored(some: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images, labels = batches.batch(some)
        with models.mistakes_explained(network):
            return chosen.scores(chosen.logits(model, images), labels)

    if received and recorded is not None and chosen.version == "native":
        _check_own_answers(model, data.test_images, network)
    chance = np.random.default_rng()
    every, by_chance = torch.arange(len(batches)), torch.from_numpy(chance.permutation(len(batches)))
    exact, own_size = chosen.version != "native", min(settings.batch_size, at_once(data.shape))
    with torch.inference_mode(), bounds.unchanged(model) if exact or received else contextlib.nullcontext():
        with clock.running():
            scores: list[Tensor] = []
            taken = by_chance.split(own_size) if received and exact else every.split(settings.batch_size)
            for some in (each.to(device) for each in taken):
                parts = scored(some)
                # to one place, for small tensors that stay among large ones that are freed let the heap grow with each batch
                scores = scores or [part.new_empty(len(batches)) for part in parts]
                for whole, part in zip(scores, parts, strict=True):
                    whole[some] = part
            losses, predicted, confidence = scores  # each [M]
            loss = chosen.mean(losses)
        if (no_class := confidence.isnan()).any():
            raise UserError(f"test image {int(no_class.nonzero()[0])}: the network gives it scores that are not finite, so no class: "
                            "the weights are of no use; train again with a smaller lr")  # fmt: skip
        if not np.isfinite(loss):
            raise UserError(f"the test loss is {loss}: the weights are of no use; train again with a smaller lr")
        if received:
            drawn = _batches_by_chance(chance, data.test_labels, at_once(data.shape))
            for again in (drawn,) if exact else (by_chance.split(own_size), drawn):
                changed = 0
                for some in again:
                    others, other, confident = scored(some.to(device))
                    apart = ((others - losses[some]).abs() / (1 + losses[some])).maximum((confident - confidence[some]).abs())
                    if (differs := ~(apart <= (0.0 if exact else SAME_ANSWER))).any():
                        raise UserError(f"test image {int(some[differs.cpu()][0])}: its answer is another one among other images, so those "
                                        "of the network are no evidence")  # fmt: skip
                    changed += int((other != predicted[some]).sum())
                answered = sum(map(len, again))
                if changed > (0 if exact else may_change(answered)):
                    raise UserError(f"{changed} of {answered} answers name another class among other images, so those of the network are "
                                    "no evidence")  # fmt: skip
    hits = predicted.cpu().numpy() == data.test_labels
    of_class = [hits[data.test_labels == i] for i in range(len(data.classes))]
    metrics = Metrics(
        accuracy=int(hits.sum()) / len(hits),
        loss=loss,
        accuracy_per_class={name: int(of.sum()) / len(of) for name, of in zip(data.classes, of_class, strict=True) if len(of)},
        numerics=chosen.version,
        fingerprint=tensors.fingerprint(weights),
    )
    rows = zip(data.test_labels.tolist(), predicted.tolist(), confidence.tolist(), strict=True)
    predictions = [Prediction(i, data.classes[a], data.classes[p], c) for i, (a, p, c) in enumerate(rows)]
    return Evaluation(metrics, predictions, round(len(batches) / clock.seconds, 1))
