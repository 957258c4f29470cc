"""What is computed again of a kept run, and with what: all of it checked before anything is computed or written."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from pipeline import device as devices
from pipeline import evaluation, models, numerics, params, sources
from pipeline.data import dataset, synthetic
from pipeline.data.dataset import Dataset, Description
from pipeline.evaluation import Evaluation
from pipeline.models import checkpoints, of_runs
from pipeline.models.checkpoints import Checkpoint
from pipeline.models.recorded import Recording, compressed
from pipeline.numerics import Numerics
from pipeline.params import SOURCES, Evaluate, Model, Train
from pipeline.runs import kept, outputs, provenance
from pipeline.runs.kept import Run
from pipeline.runs.provenance import Provenance
from pipeline.system.errors import UserError, printable
from pipeline.system.tensors import Tensors
from pipeline.workers.rank import Worker


@dataclass(frozen=True)
class Plan:
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
    file: Path
    """That the data set is read from, if it is."""
    state: tuple[int, ...] | None
    """Of that file, before it was read."""

    @property
    def described(self) -> Provenance:
        """The training that is computed."""
        workers = self.worker.count if self.numerics.version == "native" else None
        code = sources.digest("train")
        return msgspec.structs.replace(self.run.identity.provenance, train=self.train, code=code, workers=workers)

    @property
    def besides(self) -> dict[str, object]:
        """What the training's bits depend on that `described` does not say: the network that comes with the run, or is here in its place,
        and the length of the training whose beginning it is.
        """
        network = self.described.network
        source = models.source(network, self.numerics.version) if self.recorded is None else self.run.sums[outputs.NETWORK]
        return {"computed network": source, "whole training's epochs": self.run.identity.recipe.epochs}

    def evaluated(self, weights: Tensors, data: Dataset | None = None) -> Evaluation:
        """What weights of the plan's network give on its test images, or on others."""
        settings = (self.device, self.numerics, self.evaluate, self.described.network, self.recorded)
        return evaluation.evaluate(weights, data or self.data, *settings, received=True)

    @property
    def whole(self) -> bool:
        """Whether all that the run claims is computed."""
        return self.train.epochs == self.run.identity.recipe.epochs


def of(run: Run, device_name: str, epochs: int | None, data_file: Path | None, at: Worker) -> Plan:
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
    device, chosen = numerics.prepared(device_name, run.identity.numerics, at.local_rank, at.local_count)
    if run.identity.numerics != chosen.version:
        raise UserError(f"{run.folder}: numerics {run.identity.numerics!r:.40} without a version; the run was changed by hand")
    train = msgspec.structs.replace(train, epochs=epochs or train.epochs)
    file = data_file or dataset.DATASET
    state = dataset.state(file)
    data, described = _data_set(run, data_file), run.identity.provenance
    network = of_runs.recorded_network(
        run.network, described.network, described.source, run.weights, len(data.classes), data.shape, chosen.version
    )
    if network is None:
        of_runs.check_received(described.network, data.shape, len(data.classes), run.weights)
    plan = Plan(run, train, evaluate, data, device, chosen, at, network, _start(run), file, state)
    if not plan.whole:
        _check_beginning(plan)
    return plan


def _start(run: Run) -> Checkpoint | None:
    """The weights that the run's training began with, which do not come with it."""
    wanted = run.identity.provenance.weights
    if isinstance(wanted, msgspec.UnsetType):
        return None
    path = run.identity.provenance.network.weights
    needs = f"{run.folder}: its training began with {path} (SHA-256 {wanted:.12}...), which does not come with a run"
    if not os.path.exists(path):
        raise UserError(f"{needs}; put that file there")
    start = checkpoints.start(run.identity.provenance.network)
    assert start is not None
    if start.digest != wanted:
        raise UserError(f"{needs}, and {path} here is another one; put the run's there")
    return start


def workers(run: Run) -> int:
    """How many processes train where nobody says it: one, or a native run's number, which decides its bits, up to the processors here."""
    count, processors = run.identity.workers or 1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count > processors:
        raise UserError(
            f"{run.folder} was trained by {count} workers, and here are {processors} processors; add --workers {count} to start as many"
        )
    return count


def _check_beginning(plan: Plan) -> None:
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
    dataset.check_described(data, where, wanted, run.folder)
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


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:180]}... ({len(text):,} characters)"


def announce(plan: Plan) -> None:
    """Say what is going to be computed, and what differs here though it must not matter."""
    identity = plan.run.identity
    trained = ", ".join(f"{key} {_short(str(value))}" for key, value in provenance.chosen(identity.recipe).items())
    network = [] if identity.network == Model() else [provenance.in_words(identity.network)]
    say(f"{plan.run.folder}: {', '.join([*network, identity.data.name, f'seed {identity.seed}', identity.numerics, trained])}")
    if not plan.whole:
        say(f"only its beginning is checked: the first {plan.train.epochs} of {identity.recipe.epochs} epochs")
    matter = "may give other bits of native numerics" if identity.numerics == "native" else "must not matter"
    ours = {"device": str(plan.device), **devices.describe(plan.device)}
    say(f"differs here and {matter}: {'; '.join(_differences(plan.run, ours)) or 'nothing'}")
    if plan.recorded is None and (said := models.changed(identity.provenance.network, identity.provenance.source)):
        say(said)
    if plan.recorded is not None:
        here = of_runs.differs_here(plan.run.network or b"", identity.provenance.network, plan.data, plan.run.weights, plan.numerics)
        given = plan.recorded.given()
        begun = f"{given:,} of its numbers begin as given there" if given else ""
        labels = math.ceil(len(plan.data.test_labels) * math.log2(len(plan.data.classes)) / 8)
        says = compressed((plan.run.network or b"") + msgspec.json.encode(identity.recipe))
        than = f" than these and {identity.network.weights}, with which it begins" if plan.start else ""
        knows = f"it and its settings are described in {says:,} bytes, compressed, and can know no more by heart{than}; "
        knows += f"the test images' labels are {labels:,}"
        say("; ".join(filter(None, (f"the network is the one that {outputs.NETWORK} of the run says", here, begun, knows))))


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
            said = there if isinstance(there, int) else " ".join(str(there).split())[:80]
            yield f"{key.replace('_', ' ')} ({said} there, {ours[key]} here)"


def say(text: str) -> None:
    """Print a line that may hold what came from elsewhere."""
    print(printable(text), flush=True)
