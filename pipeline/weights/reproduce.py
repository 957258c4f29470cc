"""Train and evaluate a kept run again, from what it says of itself alone, in a folder of its own, and compare."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pipeline import device as devices
from pipeline import evaluation
from pipeline.comparison import bits, verdict, wording
from pipeline.comparison.report import AGREEING, Verdict
from pipeline.data import dataset
from pipeline.device import CPU
from pipeline.inputs import CACHE
from pipeline.models import of_runs, received
from pipeline.params import Compare
from pipeline.runs import keeping, kept, outputs, provenance
from pipeline.runs.kept import Run
from pipeline.runs.outputs import Prediction, Step
from pipeline.system import files, private
from pipeline.system.errors import UserError
from pipeline.training import checkpoint, stage
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import Diverged, Training
from pipeline.weights import native_evidence, plans
from pipeline.weights.plans import Plan, say
from pipeline.workers import Group, rank, session

REPRODUCED = CACHE / "reproduce"
"""A folder for each run that was reproduced: its unfinished training, then its outputs and, as a kept run, what was computed."""
SETTINGS = Compare(margin_points=1.0, confidence=0.95)
"""For native numerics, whose runs may be equivalent; those of a clone's params.yaml."""


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
    count = workers or plans.workers(run)
    options = {"device": device_name, "epochs": epochs, "data": data_file, "workers": count}
    command = ["reproduce", str(folder), *(f"--{name}={value}" for name, value in options.items() if value is not None)]
    at = rank.here(count, run.identity.numerics, tuple(command))
    plan = plans.of(run, device_name, epochs, data_file, at)
    work = REPRODUCED / Path(os.path.realpath(folder)).name
    for each in (REPRODUCED, work, work / CACHE, work / kept.RUNS):  # this command makes folders alone; a run may have been unpacked here
        if each.is_symlink():
            raise UserError(f"{each}: is a link, and what is computed would be written where it leads; delete it")
    if at.rank:
        _train(plan, work, checkpoint_seconds)
        return True  # worker 0 compares
    plans.announce(plan)
    with files.only_one(work / "lock", "a reproduction of this run"):
        answer, reason = _answer(plan, work, checkpoint_seconds)
    say(f"{answer}: {reason}")
    return answer in AGREEING


def _answer(plan: Plan, work: Path, checkpoint_seconds: float) -> tuple[Verdict, str]:
    """Compute again, in `work`; the verdict, and the reason for it."""
    run, device, chosen, described = plan.run, plan.device, plan.numerics, plan.described
    try:
        training, network, unfinished, group = _train(plan, work, checkpoint_seconds)
    except Diverged as reason:
        where, _, _ = str(reason).partition(";")  # what follows is a remedy for whoever chose the settings
        return "different", f"{where}; {run.folder} claims that it went on"
    if plan.whole:
        with devices.failures_explained(device):
            evaluated = plan.evaluated(training.weights)
        parts = outputs.training_parts(training.weights, training.history, described, run.network)
        parts |= outputs.evaluation_parts(evaluated.metrics, evaluated.predictions)
        trained_in = stage.environment(training, device, str(device), group)
        evaluated_in = evaluation.environment(evaluated, device, plan.evaluate)
        again = keeping.made(work, parts, evaluated_in, trained_in)  # of the bytes in memory: no name leads to what is compared
        answer = _native(plan, again) if chosen.version == "native" else _exact(run, again)
        at = keeping.put(again, parts, work / kept.RUNS)
        say(f"computed again: fingerprint {again.identity.fingerprint}, accuracy {again.metrics.accuracy:.2%}, kept as {at}")
    else:
        answer = _beginning(plan, training.history)
    if answer[0] in AGREEING and of_runs.is_another(run.network, network, chosen.version):
        if _network_differs(plan, network):
            answer = "different", f"{outputs.NETWORK} of the run is not the network that was trained here, {described.network.name}"
        else:
            answer = answer[0], (f"{answer[1]}; {outputs.NETWORK} of the run, which another release of PyTorch may have written, has other "
                                 "operations, which give the run's predictions; what else they give was not checked")  # fmt: skip
    if not kept.unchanged(run):
        raise UserError(f"{run.folder}: was changed while it was computed again; of what it was before the answer is {answer[0]!r}")
    if dataset.state(plan.file) != plan.state:
        raise UserError(f"{plan.file}: was changed while {run.folder} was computed again with it; run it again")
    unfinished.remove()
    return answer


def _network_differs(plan: Plan, trained: bytes) -> bool:
    """Whether a network.json that is not the one here says another network: another release of PyTorch may write the same otherwise."""
    run, data = plan.run, plan.data
    there = run.environment.train
    if there is None or there.torch == devices.describe(plan.device)["torch"]:
        return True
    claimed, here = (
        received.read(each or b"", run.weights, len(data.classes), data.shape, outputs.NETWORK) for each in (run.network, trained)
    )
    if claimed is None or (here is not None and here.held != claimed.held):  # no release names a network's weights, or draws them
        return True
    with devices.failures_explained(plan.device):
        given = replace(plan, recorded=claimed).evaluated(run.weights).predictions

    def shown(predictions: Iterable[Prediction]) -> list[tuple[str, np.float32 | None]]:
        return [(p.predicted, None if plan.numerics.version == "native" else np.float32(p.confidence)) for p in predictions]

    return shown(given) != shown(run.predictions)


def _train(plan: Plan, work: Path, checkpoint_seconds: float) -> tuple[Training, bytes, Checkpoint, Group]:
    """Train as planned, with the other workers, what is returned as data too; only worker 0 saves an unfinished training."""
    device, described = plan.device, plan.described
    folder = work / CACHE / f"epochs-{plan.train.epochs}"
    unfinished = stage.checkpoint_of(described, device, folder, private.secret(), **plan.besides)
    own = unfinished if plan.worker.rank == 0 else None
    with session.together(plan.worker, work / "workers") as join, devices.failures_explained(device):
        group = join(device, provenance.flattened(described) | plan.besides)
        epochs = plan.run.identity.recipe.epochs
        _, training, network = stage.fit(
            described, plan.data, device, plan.numerics, own, checkpoint_seconds, group, epochs, plan.recorded, plan.start
        )
    return training, network, unfinished, group


def _beginning(plan: Plan, history: list[Step]) -> tuple[Verdict, str]:
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


def _native(plan: Plan, again: Run) -> tuple[Verdict, str]:
    """The verdict of `compare`; and where bits differ, the training must give the run's history, and its weights its evaluation."""
    run = plan.run

    if [p.actual for p in run.predictions] != [p.actual for p in again.predictions]:
        return "different", "its predictions are not of this data set's test images"
    trained, reason = _compared(run, again)
    if trained != "equivalent":
        return trained, reason
    same = run.identity.fingerprint == again.identity.fingerprint  # weights that are these to the bit have one history
    if apart := (bits.first_step_apart if same else native_evidence.history_apart)(run.history, again.history):
        return "different", apart
    with devices.failures_explained(plan.device):
        apart = native_evidence.evaluation_apart(run, again, plan.data, partial(plan.evaluated, run.weights))
    return ("different", f"its own weights, evaluated here, do not give what it says: {apart}") if apart else ("equivalent", reason)


def _compared(run: Run, other: Run) -> tuple[Verdict, str]:
    """What `compare` says of two runs."""
    report = verdict.report([run, other], SETTINGS)
    return report.verdict, wording.reason(report.pairs[0], report)
