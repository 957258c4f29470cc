"""Train and evaluate a kept run again, from what it says of itself alone, in a folder of its own, and compare."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from pipeline import device as devices
from pipeline import evaluation, files, models, native_evidence, numerics, params, private, sources
from pipeline.comparison import bits, verdict, wording
from pipeline.comparison.report import AGREEING, Verdict
from pipeline.data import dataset, synthetic
from pipeline.data.dataset import Dataset, Description
from pipeline.device import CPU
from pipeline.errors import UserError, printable
from pipeline.inputs import CACHE
from pipeline.models import checkpoints, of_runs, recorded
from pipeline.models.checkpoints import Checkpoint
from pipeline.models.recorded import Recording
from pipeline.numerics import Numerics
from pipeline.params import SOURCES, Compare, Evaluate, Train
from pipeline.runs import kept, outputs, provenance
from pipeline.runs.kept import Run
from pipeline.runs.outputs import Prediction, Step
from pipeline.runs.provenance import Provenance
from pipeline.training import checkpoint, stage
from pipeline.training.loop import Diverged, Training
from pipeline.workers import Group, rank, session
from pipeline.workers.rank import Worker

REPRODUCED = CACHE / "reproduce"
"""A folder for each run that was reproduced: its unfinished training, then its outputs and, as a kept run, what was computed."""
SETTINGS = Compare(margin_points=1.0, confidence=0.95)
"""For native numerics, whose runs may be equivalent; those of a clone's params.yaml."""


@dataclass(frozen=True)
class _Plan:
    """What is computed again, and with what."""

    run: Run
    train: Train
    """The run's own settings, but for the epochs where only its beginning is checked."""
    evaluate: Evaluate
    data: Dataset
    device: torch.device
    numerics: Numerics
    worker: Worker
    """This process among the workers."""
    recorded: Recording | None
    """The run's network as data; None where it is made from its source."""
    start: Checkpoint | None
    """The weights that it begins with; None where they are drawn."""

    @property
    def described(self) -> Provenance:
        """The training that is computed."""
        workers = self.worker.count if self.numerics.version == "native" else None
        code = sources.digest("train")
        return msgspec.structs.replace(self.run.identity.provenance, train=self.train, code=code, workers=workers)

    @property
    def whole(self) -> bool:
        """Whether all that the run claims is computed."""
        return self.train.epochs == self.run.identity.recipe.epochs


def reproduce(
    folder: Path,
    device_name: str = CPU,
    epochs: int | None = None,
    data_file: Path | None = None,
    checkpoint_seconds: float = checkpoint.SECONDS,
    workers: int | None = None,
) -> bool:
    """Train and evaluate the kept run in `folder` again, say what comes out, and return whether it is what the run claims.

    With `epochs` only the first so many are trained, and their logged losses compared. An unfinished attempt is resumed. As many
    workers train as are asked for, or as a native run had, whose bits depend on them, else one.

    Raises:
        UserError: the run, its data set or the device cannot be used here; nothing was written.
        Interrupted: a signal came; the state is saved.
    """
    run = kept.load(folder)
    count = workers or _workers(run)
    options = {"device": device_name, "epochs": epochs, "data": data_file, "workers": count}
    command = ["reproduce", str(folder), *(f"--{name}={value}" for name, value in options.items() if value is not None)]
    at = rank.here(count, run.identity.numerics, tuple(command))
    plan = _plan(run, device_name, epochs, data_file, at)
    work = REPRODUCED / Path(os.path.realpath(folder)).name
    if at.rank:
        _train(plan, work, checkpoint_seconds)
        return True  # worker 0 compares
    _announce(plan)
    with files.only_one(work / "lock", "a reproduction of this run"):
        answer, reason = _answer(plan, work, checkpoint_seconds)
    _say(f"{answer}: {reason}")
    return answer in AGREEING


# --- what the run asks for -----------------------------------------------------------------------------------------


def _plan(run: Run, device_name: str, epochs: int | None, data_file: Path | None, at: Worker) -> _Plan:
    """Everything that is needed, checked before anything is computed or written."""
    train = run.identity.train
    if train is None:
        raise UserError(f"{run.folder}: its weights were trained elsewhere and imported, so nothing here can train them again; "
                        "`evaluate --run` checks its predictions")  # fmt: skip
    if epochs is not None and not 1 <= epochs <= train.epochs:
        raise UserError(f"--epochs {epochs}: {run.folder} has {train.epochs}; name a number from 1 to {train.epochs}")
    evaluate, evaluated = evaluation.BATCHES, run.environment.evaluate
    if evaluated and evaluated.batch_size is not None:
        evaluate = params.section(Evaluate, {"batch_size": evaluated.batch_size}, str(run.folder / kept.ENVIRONMENT))
    device = devices.select(device_name, at.local_rank, at.local_count)
    devices.prepare(device, at.local_count)
    chosen = numerics.select(run.identity.numerics, device)
    if run.identity.numerics != chosen.version:
        raise UserError(f"{run.folder}: numerics {run.identity.numerics!r:.40} without a version; the run was changed by hand")
    train = msgspec.structs.replace(train, epochs=epochs or train.epochs)
    data, described = _data_set(run, data_file), run.identity.provenance
    network = of_runs.recorded_network(
        run.network, described.network, described.source, run.weights, len(data.classes), data.shape, chosen.version
    )
    if network is None:
        models.refuse_larger(described.network, data.shape, len(data.classes), run.weights)
    plan = _Plan(run, train, evaluate, data, device, chosen, at, network, _start(run))
    if not plan.whole:
        _check_beginning(plan)
    return plan


def _start(run: Run) -> Checkpoint | None:
    """The weights that the run's training began with, which do not come with it."""
    wanted = run.identity.provenance.weights
    if isinstance(wanted, msgspec.UnsetType):
        return None
    path = run.identity.provenance.network.weights
    needs = f"{run.folder}: its training began with {path or 'a file'} (SHA-256 {wanted:.12}...), which does not come with a run"
    if not os.path.exists(path):
        raise UserError(f"{needs}; put that file there")
    start = checkpoints.start(run.identity.provenance.network)
    if start is None or start.digest != wanted:
        raise UserError(f"{needs}, and {path} here is another one; put the run's there")
    return start


def _workers(run: Run) -> int:
    """How many processes train where nobody says it: one, or a native run's number, which decides its bits, up to the processors here."""
    count, processors = run.identity.workers or 1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count > processors:
        raise UserError(
            f"{run.folder} was trained by {count} workers, and here are {processors} processors; add --workers {count} to start as many"
        )
    return count


def _check_beginning(plan: _Plan) -> None:
    """Refuse to judge a run by a beginning that cannot tell."""
    train, folder = plan.train, plan.run.folder
    if plan.numerics.version == "native":
        raise UserError(
            f"--epochs {train.epochs}: {folder} is native, and a beginning cannot tell whether native runs are equivalent; "
            "leave --epochs out"
        )
    steps = math.ceil(len(plan.data.train_labels) / train.batch_size) * train.epochs
    if steps < train.log_every:
        raise UserError(
            f"--epochs {train.epochs}: {folder} logs every {train.log_every} steps, and these are {steps}: there is nothing to compare; "
            "name more epochs"
        )


def _data_set(run: Run, path: Path | None) -> Dataset:
    """The data set that the run was made with: from `path`, from data/, or made here."""
    wanted = run.identity.data
    if path is None and wanted.name == "synthetic":
        data, where = synthetic.make(), "this version's synthetic set"
    else:
        file = path or dataset.DATASET
        if not os.path.exists(file):
            raise UserError(f"{_needs(run)}, and {file} is not there: {_remedy(wanted)}")
        data, where = dataset.load(file), str(file)
    if data.digest != wanted.digest:
        raise UserError(f"{_needs(run)}, but {where} is '{data.name}' ({data.digest:.12}...): {_remedy(wanted)}")
    if data.classes != wanted.classes:
        raise UserError(
            f"{run.folder} calls the classes {', '.join(wanted.classes)!r:.200}, but {where}, with the same images and labels, "
            f"{', '.join(data.classes)!r:.200}; use the data set with the run's names, if the run was not changed by hand"
        )
    dataset.check_shape(data, wanted, run.folder)
    return replace(data, name=wanted.name)


def _needs(run: Run) -> str:
    return f"{run.folder} needs the data set '{run.identity.data.name}' ({run.identity.data.digest:.12}...)"


def _remedy(wanted: Description) -> str:
    if wanted.name == "synthetic":
        return "use the version of the pipeline that made the run, or name a dataset.safetensors with --data"
    if wanted.name.startswith("synthetic-"):
        return "set data.source: synthetic and what its name says in params.yaml and run `python -m pipeline download`"
    source = wanted.name if wanted.name in SOURCES.__args__ else "folder"  # type: ignore[attr-defined]
    of = ", with the folder that the run's author used," if source == "folder" else ""
    return (
        f"set data.source: {source}{of} in params.yaml and run `python -m pipeline download`, or name its dataset.safetensors with --data"
    )


def _announce(plan: _Plan) -> None:
    """Say what is going to be computed, and what differs here though it must not matter."""
    identity = plan.run.identity
    trained = ", ".join(f"{key} {value!s:.200}" for key, value in provenance.chosen(identity.recipe).items())
    _say(f"{plan.run.folder}: {identity.data.name}, seed {identity.seed}, {identity.numerics}, {trained}")
    if not plan.whole:
        _say(f"only its beginning is checked: the first {plan.train.epochs} of {identity.recipe.epochs} epochs")
    matter = "may give other bits of native numerics" if identity.numerics == "native" else "must not matter"
    ours = {"device": str(plan.device), **devices.describe(plan.device)}
    _say(f"differs here and {matter}: {'; '.join(_differences(plan.run, ours)) or 'nothing'}")
    if plan.recorded is None and (said := models.changed(identity.provenance.network, identity.provenance.source)):
        _say(said)
    if plan.recorded is not None:
        here = of_runs.differs_here(plan.run.network or b"", identity.provenance.network, plan.data, plan.run.weights, plan.numerics)
        given = sum(len(numbers) for held in plan.recorded.held.values() for rule, numbers in held.initial if rule == "values")
        begun = f"{given:,} of its numbers begin as given there" if given else ""
        _say("; ".join(filter(None, (f"the network is the one that {outputs.NETWORK} of the run says", here, begun))))


def _differences(run: Run, ours: dict[str, Any]) -> Iterable[str]:
    """A phrase for each circumstance that is another here than where the run was made."""
    for what, theirs, name in (("training", run.identity.code, "train"), ("evaluation", run.identity.evaluation_code, "evaluate")):
        if theirs is not None and theirs != (here := sources.digest(name)):
            yield f"the code of the {what} ({theirs:.12}... there, {here:.12}... here)"
    network, wanted = run.identity.provenance.network, run.identity.source
    there = "" if isinstance(wanted, msgspec.UnsetType) else wanted
    if run.network is None and (here := models.source(network, run.identity.numerics)) != there:
        yield f"the source of {network.name} ({there or 'none'} there, {here or 'none'} here)"
    trained = run.environment.train
    if trained is None:
        yield "where it was trained is not known"
        return
    for key, there in msgspec.to_builtins(trained).items():
        if key in ours and ours[key] != there:
            yield f"{key.replace('_', ' ')} ({there} there, {ours[key]} here)"


# --- the answer ----------------------------------------------------------------------------------------------------


def _answer(plan: _Plan, work: Path, checkpoint_seconds: float) -> tuple[Verdict, str]:
    """Compute again, in `work`; the verdict, and the reason for it."""
    run, data, device, chosen, described = plan.run, plan.data, plan.device, plan.numerics, plan.described
    try:
        training, network, unfinished, group = _train(plan, work, checkpoint_seconds)
    except Diverged as reason:
        where, _, _ = str(reason).partition(";")  # what follows is a remedy for whoever chose the settings
        return "different", f"{where}; {run.folder} claims that it went on"
    if plan.whole:
        with devices.failures_explained(device):
            evaluated = evaluation.evaluate(training.weights, data, device, chosen, plan.evaluate, plan.described.network, plan.recorded)
        parts = outputs.training_parts(training.weights, training.history, described, run.network)
        parts |= outputs.evaluation_parts(evaluated.metrics, evaluated.predictions)
        trained_in = stage.environment(training, device, str(device), group)
        evaluated_in = evaluation.environment(evaluated, device, plan.evaluate)
        again = kept.made(work, parts, evaluated_in, trained_in)  # of the bytes in memory: no name leads to what is compared
        answer = _native(plan, again) if chosen.version == "native" else _exact(run, again)
        at = kept.put(again, parts, work / kept.RUNS)
        _say(f"computed again: fingerprint {again.identity.fingerprint}, accuracy {again.metrics.accuracy:.2%}, kept as {at}")
    else:
        answer = _beginning(plan, training.history)
    if answer[0] in AGREEING and of_runs.is_another(run.network, network):
        if _network_differs(plan, network):
            answer = "different", f"{outputs.NETWORK} of the run is not the network that was trained here, {described.network.name}"
        else:
            answer = answer[0], (f"{answer[1]}; {outputs.NETWORK} of the run, which another release of PyTorch may have written, has other "
                                 "operations, which give the run's predictions; what else they give was not checked")  # fmt: skip
    if not kept.unchanged(run):
        raise UserError(f"{run.folder}: was changed while it was computed again; of what it was before the answer is {answer[0]!r}")
    unfinished.remove()
    return answer


def _network_differs(plan: _Plan, trained: bytes) -> bool:
    """Whether a network.json that is not the one here says another network: another release of PyTorch may write the same otherwise."""
    run, data = plan.run, plan.data
    if run.environment.train is not None and run.environment.train.torch == devices.describe(plan.device)["torch"]:
        return True
    network = plan.described.network
    claimed, here = (
        recorded.read(each or b"", run.weights, len(data.classes), data.shape, outputs.NETWORK) for each in (run.network, trained)
    )
    if claimed is None or (here is not None and here.held != claimed.held):  # no release names a network's weights, or draws them
        return True
    with devices.failures_explained(plan.device):
        given = evaluation.evaluate(run.weights, data, plan.device, plan.numerics, plan.evaluate, network, claimed).predictions

    def shown(predictions: Iterable[Prediction]) -> list[tuple[str, np.float32 | None]]:
        return [(p.predicted, None if plan.numerics.version == "native" else np.float32(p.confidence)) for p in predictions]

    return shown(given) != shown(run.predictions)


def _train(plan: _Plan, work: Path, checkpoint_seconds: float) -> tuple[Training, bytes, checkpoint.Checkpoint, Group]:
    """Train as planned, with the other workers, what is returned as data too; only worker 0 saves an unfinished training."""
    device, described = plan.device, plan.described
    unfinished = stage.checkpoint_of(described, device, work / CACHE / f"epochs-{plan.train.epochs}", private.secret())
    own = unfinished if plan.worker.rank == 0 else None
    with session.together(plan.worker, work / "workers") as join, devices.failures_explained(device):
        group = join(device, provenance.flattened(described))
        epochs = plan.run.identity.recipe.epochs
        _, training, network = stage.fit(
            described, plan.data, device, plan.numerics, own, checkpoint_seconds, group, epochs, plan.recorded, plan.start
        )
    return training, network, unfinished, group


def _beginning(plan: _Plan, history: list[Step]) -> tuple[Verdict, str]:
    claimed = [row for row in plan.run.history if row.step <= history[-1].step]
    computed = [row for row in history if row.step % plan.train.log_every == 0]  # the last step of a whole training is always logged
    if apart := bits.first_step_apart(claimed, computed):
        return "different", apart
    return "identical", (
        f"all {len(computed):,} logged losses of the first {plan.train.epochs} of {plan.run.identity.recipe.epochs} epochs are equal to "
        "the last bit; the rest of the training, the weights, predictions and metrics were not checked"
    )


def _exact(run: Run, again: Run) -> tuple[Verdict, str]:
    if apart := bits.first_difference(run, again):
        return "different", apart
    return "identical", (
        f"all {len(run.history):,} logged losses, {len(run.weights)} tensors, {len(run.predictions):,} predictions and the metrics are "
        f"{bits.to_the_last_bit(bits.zeros_apart(run, again))}"
    )


def _native(plan: _Plan, again: Run) -> tuple[Verdict, str]:
    """The verdict of `compare`; and where bits differ, the training must give the run's history, and its weights its evaluation."""
    run = plan.run

    def evaluated(data: Dataset) -> evaluation.Evaluation:
        return evaluation.evaluate(run.weights, data, plan.device, plan.numerics, plan.evaluate, plan.described.network, plan.recorded)

    if [p.actual for p in run.predictions] != [p.actual for p in again.predictions]:
        return "different", "its predictions are not of this data set's test images"
    trained, reason = _compared(run, again)
    if trained != "equivalent":
        return trained, reason
    if apart := native_evidence.history_apart(run.history, again.history):
        return "different", apart
    with devices.failures_explained(plan.device):
        apart = native_evidence.evaluation_apart(run, again, plan.data, evaluated)
    return ("different", f"its own weights, evaluated here, do not give what it says: {apart}") if apart else ("equivalent", reason)


def _compared(run: Run, other: Run) -> tuple[Verdict, str]:
    """What `compare` says of two runs."""
    report = verdict.report([run, other], SETTINGS)
    return report.verdict, wording.reason(report.pairs[0], report)


def _say(text: str) -> None:
    print(printable(text), flush=True)
