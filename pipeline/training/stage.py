"""The `train` stage: data/ -> outputs/model.safetensors and outputs/history.csv."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pipeline import device as devices
from pipeline import models, numerics
from pipeline.data import dataset
from pipeline.inputs import CACHE, LOCK, Inputs
from pipeline.models import checkpoints, recording
from pipeline.runs import environments, outputs, provenance
from pipeline.runs.environments import Facts
from pipeline.runs.outputs import MODEL, OUTPUTS
from pipeline.runs.provenance import Provenance
from pipeline.system import files
from pipeline.system.errors import UserError, printable
from pipeline.training import checkpoint, loop
from pipeline.training.checkpoint import UNFINISHED, Checkpoint
from pipeline.training.loop import Training
from pipeline.training.trainer import Trainer
from pipeline.workers import ALONE, Group, rank, session

if TYPE_CHECKING:
    import torch

    from pipeline.data.dataset import Dataset
    from pipeline.models.recorded import Recording
    from pipeline.numerics import Numerics

WORKERS = CACHE / "workers"
"""Where workers that are started here meet."""


TUTORIAL = (
    "epochs 2 and lr 0.001 are the tutorial's, which reach 16 % on a JPEG copy of CIFAR-10; "
    "a recipe takes the same network to 72 %: cp docs/examples/recipe.yaml params.yaml && dvc repro"
)
"""What is said after a training with so little. Measured: results/README.md."""


def train(inputs: Inputs, checkpoint_seconds: float = checkpoint.SECONDS) -> None:
    """Train, and write the weights and the history; resume an unfinished training of the same.

    Raises:
        UserError: the device or the data set cannot be used, the training diverged, another worker failed, or an input changed while
            it ran.
        Interrupted: a signal came; the state is saved.
    """
    inputs.refuse_unseen()
    params = inputs.params
    own = rank.here(params.workers, params.numerics)
    with files.only_one(LOCK, "a stage") if own.rank == 0 else contextlib.nullcontext():
        inputs.watch(dataset.DATASET, *([Path(params.model.weights)] if params.model.weights else []))
        with session.together(own, WORKERS) as join:
            data = dataset.load()
            device, chosen = numerics.prepared(params.device, params.numerics, own.local_rank, own.local_count)
            if own.rank == 0 and device.type == devices.CPU and own.local_count > (limit := devices.cpu_limit()):
                print(f"{own.local_count} workers share {limit} CPU(s), which is slower than workers: {limit}", file=sys.stderr, flush=True)
            source, start = models.source(params.model, chosen.version), checkpoints.start(params.model)
            described = provenance.described_by(
                params, chosen.version, data.description, inputs.code, source, start.digest if start else ""
            )
            unfinished = checkpoint_of(described, device, UNFINISHED) if own.rank == 0 else None
            pytorch = devices.describe(device)["torch"] if chosen.version == "native" else None
            with devices.failures_explained(device):
                group = join(device, {**provenance.flattened(described), "PyTorch": pytorch})
                trainer, training, network = fit(described, data, device, chosen, unfinished, checkpoint_seconds, group, start=start)
        if unfinished is None:
            return
        try:
            inputs.check_unchanged()
        except UserError:  # when it is put back, the next run has nothing left to train
            unfinished.save(checkpoint.State(trainer.steps_completed, training.history, trainer.state()))
            raise
        outputs.write_training(OUTPUTS, training.weights, training.history, described, network)
        model = outputs.read_model(OUTPUTS)
        environments.await_evaluation(model, environment(training, device, params.device, group))
        unfinished.remove()
    print(f"{OUTPUTS / MODEL}: {model.fingerprint}")
    print(f"{len(training.history)} logged steps, last loss {training.history[-1].loss:.4f}, on {params.device}")
    if params.train.epochs <= 2 and params.train.lr <= 0.001:
        print(TUTORIAL)


def checkpoint_of(described: Provenance, device: torch.device, folder: Path, secret: bytes = b"", **besides: object) -> Checkpoint:
    """Where an unfinished training is saved in `folder`: the bits of native numerics depend on the machine, those of exact do not.

    `besides` is what they depend on that `described` does not say.
    """
    machine = devices.describe(device) if described.numerics == "native" else None
    return Checkpoint(folder, {**msgspec.to_builtins(described), "machine": machine, **besides}, secret)


def fit(
    described: Provenance, data: Dataset, device: torch.device, chosen: Numerics, unfinished: Checkpoint | None,
    checkpoint_seconds: float, group: Group = ALONE, of_epochs: int | None = None, recorded: Recording | None = None,
    start: checkpoints.Checkpoint | None = None,
) -> tuple[Trainer, Training, bytes]:  # fmt: skip
    """Train as `described` to the end, from the state in `unfinished` if there is one, which the caller removes; the network as data.

    Where that is the beginning of a training of `of_epochs` epochs, its schedule is that training's. The network is `recorded`, if given,
    and begins with the weights of `start`, if given.

    Raises:
        UserError: the device failed, the training diverged, or the network became another by it.
        Interrupted: a signal came; the state is saved.
    """
    with devices.failures_explained(device):
        settings = msgspec.structs.replace(described.recipe, epochs=of_epochs or described.recipe.epochs)
        trainer = Trainer(
            data, device, described.seed, chosen, settings, group, described.recipe.epochs, described.network, recorded, start
        )
        if trainer.began and group.rank == 0:
            print(printable(trainer.began), file=sys.stderr, flush=True)
        outputs.check_weights(trainer.named_weights(), "the network cannot be kept, so it is not trained")
        with models.mistakes_explained(described.network):  # of two images there are none, or they were said before
            network = recording.record(trainer.model, data.shape, chosen, device)  # before any step: with its initial values
        training = loop.train(trainer, unfinished, checkpoint_seconds)
        if described.network.is_own and recorded is None:
            with models.mistakes_explained(described.network):
                recording.check_unchanged(network, trainer.model, described.network, data.shape, chosen, device)
        return trainer, training, network


def environment(training: Training, device: torch.device, name: str, group: Group = ALONE) -> Facts:
    """In what environment `training` was computed, on the device that is called `name` in params.yaml."""
    here = devices.describe(device)
    return Facts(
        device=name,
        workers=group.count,
        **{**here, "hardware": "; ".join(dict.fromkeys((here["hardware"], *group.hardware)))},
        seconds_per_epoch=training.seconds_per_epoch,
        images_per_second=training.images_per_second,
        peak_memory_bytes=devices.peak_memory_bytes(device),
    )
