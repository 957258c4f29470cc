"""Train and evaluate a kept run again, from what it says of itself alone, in a folder of its own, and compare."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from pipeline import device as devices
from pipeline import evaluation, files, numerics, params, sources
from pipeline.comparison import bits, verdict
from pipeline.data import dataset, synthetic
from pipeline.data.dataset import Dataset, Description
from pipeline.device import CPU
from pipeline.errors import UserError, printable
from pipeline.inputs import CACHE
from pipeline.numerics import Numerics
from pipeline.params import Compare, Evaluate, Train
from pipeline.runs import kept, outputs
from pipeline.runs.kept import Run
from pipeline.runs.outputs import Step
from pipeline.training import checkpoint, stage
from pipeline.training.loop import Diverged

REPRODUCED = CACHE / "reproduce"
"""A folder for each run that was reproduced: its unfinished training, then its outputs and, as a kept run, what was computed."""
SETTINGS = Compare(margin_points=1.0, confidence=0.95)
"""For native numerics, whose runs may be equivalent; those of a clone's params.yaml."""
BATCH = Evaluate(batch_size=1000)
"""For an evaluation whose run does not say in which batches it was made."""


def reproduce(
    folder: Path,
    device_name: str = CPU,
    epochs: int | None = None,
    data_file: Path | None = None,
    checkpoint_seconds: float = checkpoint.SECONDS,
) -> bool:
    """Train and evaluate the kept run in `folder` again, say what comes out, and return whether it is what the run claims.

    With `epochs` only the first so many are trained, and their logged losses compared. An unfinished attempt is resumed.

    Raises:
        UserError: the run, its data set or the device cannot be used here; nothing was written.
        Interrupted: a signal came; the state is saved.
    """
    run = kept.load(folder)
    settings = _settings(run, epochs)
    device = devices.select(device_name)
    devices.prepare(device)
    chosen = numerics.select(run.identity.numerics, device)
    if run.identity.numerics != chosen.version:
        raise UserError(f"{folder}: numerics {run.identity.numerics!r:.40} without a version; the run was changed by hand")
    data = _data_set(run, data_file)
    if settings.epochs < run.identity.train.epochs:
        _check_beginning(run, settings, data, chosen)
    _announce(run, settings, device)
    work = REPRODUCED / Path(os.path.realpath(folder)).name
    with files.only_one(work / "lock", "a reproduction of this run"):
        answer, reason = _answer(run, settings, data, device, chosen, work, checkpoint_seconds)
    _say(f"{answer}: {reason}")
    return answer != "different"


# --- what the run asks for -----------------------------------------------------------------------------------------


def _settings(run: Run, epochs: int | None) -> Train:
    """The run's own settings, for its first `epochs` epochs where they are given."""
    settings = params.section(Train, msgspec.to_builtins(run.identity.train), str(run.folder / kept.IDENTITY))
    if epochs is not None and not 1 <= epochs <= settings.epochs:
        raise UserError(f"--epochs {epochs}: {run.folder} has {settings.epochs}; name a number from 1 to {settings.epochs}")
    return replace(settings, epochs=epochs or settings.epochs)


def _check_beginning(run: Run, settings: Train, data: Dataset, chosen: Numerics) -> None:
    """Refuse to judge a run by a beginning that cannot tell."""
    if chosen.version == "native":
        raise UserError(
            f"--epochs {settings.epochs}: {run.folder} is native, and a beginning cannot tell whether native runs are equivalent; "
            "leave --epochs out"
        )
    steps = math.ceil(len(data.train_labels) / settings.batch_size) * settings.epochs
    if steps < settings.log_every:
        raise UserError(
            f"--epochs {settings.epochs}: {run.folder} logs every {settings.log_every} steps, and these are {steps}: there is nothing "
            "to compare; name more epochs"
        )


def _data_set(run: Run, path: Path | None) -> Dataset:
    """The data set that the run was made with: from `path`, from data/, or made here."""
    wanted = run.identity.data
    if path is None and wanted.name == "synthetic":
        data, where = synthetic.make(), "this version's synthetic set"
    else:
        place = path or dataset.DATASET
        if not os.path.exists(place):
            raise UserError(f"{_needs(run)}, and {place} is not there: {_remedy(wanted)}")
        data, where = dataset.load(place), str(place)
    if data.digest != wanted.digest:
        raise UserError(f"{_needs(run)}, but {where} is '{data.name}' ({data.digest:.12}...): {_remedy(wanted)}")
    if data.classes != wanted.classes:
        raise UserError(
            f"{run.folder} calls the classes {', '.join(wanted.classes)!r:.200}, but {where}, with the same images and labels, "
            f"{', '.join(data.classes)!r:.200}; use the data set with the run's names, if the run was not changed by hand"
        )
    return replace(data, name=wanted.name)


def _needs(run: Run) -> str:
    return f"{run.folder} needs the data set '{run.identity.data.name}' ({run.identity.data.digest:.12}...)"


def _remedy(wanted: Description) -> str:
    if wanted.name == "synthetic":
        return "use the version of the pipeline that made the run, or name a dataset.safetensors with --data"
    source = "cifar10" if wanted.name == "cifar10" else "archive"
    of = "" if source == "cifar10" else ", with the archive that the run's author used,"
    return (
        f"set data.source: {source}{of} in params.yaml and run `python -m pipeline download`, or name its dataset.safetensors with --data"
    )


def _announce(run: Run, settings: Train, device: torch.device) -> None:
    """Say what is going to be computed, and what differs here though it must not matter."""
    identity = run.identity
    trained = ", ".join(f"{key} {value}" for key, value in msgspec.to_builtins(identity.train).items())
    _say(f"{run.folder}: {identity.data.name}, seed {identity.seed}, {identity.numerics}, {trained}")
    if settings.epochs < identity.train.epochs:
        _say(f"only its beginning is checked: the first {settings.epochs} of {identity.train.epochs} epochs")
    matter = "may give other bits of native numerics" if identity.numerics == "native" else "must not matter"
    ours = {"device": str(device), **devices.describe(device)}
    _say(f"differs here and {matter}: {'; '.join(_differences(run, ours)) or 'nothing'}")


def _differences(run: Run, ours: dict[str, Any]) -> Iterable[str]:
    """A phrase for each circumstance that is another here than where the run was made."""
    for what, theirs, name in (("training", run.identity.code, "train"), ("evaluation", run.identity.evaluation_code, "evaluate")):
        if theirs is not None and theirs != (here := sources.digest(name)):
            yield f"the code of the {what} ({theirs:.12}... there, {here:.12}... here)"
    trained = run.environment.train
    if trained is None:
        yield "where it was trained is not known"
        return
    for key, there in msgspec.to_builtins(trained).items():
        if key in ours and ours[key] != there:
            yield f"{key.replace('_', ' ')} ({there} there, {ours[key]} here)"


# --- the answer ----------------------------------------------------------------------------------------------------


def _answer(
    run: Run, settings: Train, data: Dataset, device: torch.device, chosen: Numerics, work: Path, checkpoint_seconds: float
) -> tuple[verdict.Verdict, str]:
    """Compute again, in `work`; the verdict, and the reason for it."""
    described = msgspec.structs.replace(run.identity.provenance, train=settings, code=sources.digest("train"), workers=None)
    try:
        _, training, unfinished = stage.fit(described, data, device, chosen, work / CACHE / f"epochs-{settings.epochs}", checkpoint_seconds)
    except Diverged as reason:
        where, _, _ = str(reason).partition(";")  # what follows is a remedy for whoever chose the settings
        return "different", f"{where}; {run.folder} claims that it went on"
    if settings.epochs < run.identity.train.epochs:
        last = training.history[-1].step
        claimed = [row for row in run.history if row.step <= last]
        computed = [row for row in training.history if row.step % settings.log_every == 0]
        answer = _beginning(claimed, computed, settings.epochs, run.identity.train.epochs)
        unfinished.remove()
        return answer
    batches = _batches(run)
    with devices.failures_explained(device):
        evaluated = evaluation.evaluate(training.weights, data, device, chosen, batches)
    outputs.write_training(work / outputs.OUTPUTS, training.weights, training.history, described)
    outputs.write_evaluation(work / outputs.OUTPUTS, evaluated.metrics, evaluated.predictions)
    trained_in, evaluated_in = stage.environment(training, device), evaluation.environment(evaluated, device, batches)
    again = kept.load(kept.keep(work / outputs.OUTPUTS, work / kept.RUNS, evaluated_in, trained_in))
    answer = _exact(run, again) if chosen.version != "native" else _native(run, again, data, device, chosen)
    unfinished.remove()
    _say(f"computed again: fingerprint {again.identity.fingerprint}, accuracy {again.metrics.accuracy:.2%}, kept as {again.folder}")
    return answer


def _batches(run: Run) -> Evaluate:
    evaluated = run.environment.evaluate
    if evaluated is None or evaluated.batch_size is None:
        return BATCH
    return params.section(Evaluate, {"batch_size": evaluated.batch_size}, str(run.folder / kept.ENVIRONMENT))


def _beginning(claimed: list[Step], computed: list[Step], epochs: int, of: int) -> tuple[verdict.Verdict, str]:
    if apart := bits.first_step_apart(claimed, computed):
        return "different", apart
    rest = "the rest of the training, the weights, predictions and metrics were not checked"
    return "identical", f"all {len(computed):,} logged losses of the first {epochs} of {of} epochs are equal to the last bit; {rest}"


def _exact(run: Run, again: Run) -> tuple[verdict.Verdict, str]:
    if apart := bits.first_difference(run, again):
        return "different", apart
    return "identical", (
        f"all {len(run.history):,} logged losses, {len(run.weights)} tensors, {len(run.predictions):,} predictions and the metrics are "
        "equal to the last bit"
    )


def _native(run: Run, again: Run, data: Dataset, device: torch.device, chosen: Numerics) -> tuple[verdict.Verdict, str]:
    """The verdict of `compare`; and where bits differ, the run's own weights must predict what the run says, too."""
    trained = verdict.compare(run, again, SETTINGS)
    if trained.verdict != "equivalent":
        return trained.verdict, trained.reason
    with devices.failures_explained(device):
        own = evaluation.evaluate(run.weights, data, device, chosen, _batches(run))
    evaluated = verdict.compare(run, replace(run, metrics=own.metrics, predictions=own.predictions), SETTINGS)
    if evaluated.verdict == "different":
        return "different", f"its own weights, evaluated here, do not give its predictions: {evaluated.reason}"
    return "equivalent", trained.reason


def _say(text: str) -> None:
    print(printable(text), flush=True)
