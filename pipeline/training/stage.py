"""The `train` stage: data/ -> outputs/model.safetensors and outputs/history.csv."""

from __future__ import annotations

import contextlib

import msgspec

from pipeline import device as devices
from pipeline import files, numerics
from pipeline.data import dataset
from pipeline.errors import UserError
from pipeline.inputs import CACHE, LOCK, Inputs
from pipeline.runs import environments, outputs, provenance
from pipeline.runs.environments import Facts
from pipeline.runs.outputs import MODEL, OUTPUTS
from pipeline.training import checkpoint, loop
from pipeline.training.checkpoint import UNFINISHED, Checkpoint
from pipeline.training.trainer import Trainer
from pipeline.workers import place

WORKERS = CACHE / "workers"
"""Where workers that are started here meet."""


def train(inputs: Inputs, checkpoint_seconds: float = checkpoint.SECONDS) -> None:
    """Train, and write the weights and the history; resume an unfinished training of the same.

    Where several workers train, each is here; worker 0 holds the lock, starts others if need be, and has the files.

    Raises:
        UserError: the device or the data set cannot be used, the training diverged, an input changed while it ran, or a worker failed.
        Interrupted: a signal came; the state is saved.
    """
    params = inputs.params
    at = place.here(params)
    with files.only_one(LOCK, "a stage") if at.rank == 0 else contextlib.nullcontext():
        inputs.watch(dataset.DATASET)
        with place.together(at, WORKERS) as join:
            data = dataset.load()
            device = devices.select(params.device, at.local_rank, at.local_count)
            devices.prepare(device, at.local_count)
            chosen = numerics.select(params.numerics, device)
            described = provenance.described_by(params, chosen.version, data.description, inputs.code)
            machine = devices.describe(device) if chosen.version == "native" else None
            same = provenance.flattened(described) | {"PyTorch": machine and machine["torch"]}
            unfinished = Checkpoint(UNFINISHED, {**msgspec.to_builtins(described), "machine": machine}) if at.rank == 0 else None
            with devices.failures_explained(device):
                group = join(device, same)
                trainer = Trainer(data, device, params.seed, chosen, params.train, group)
                training = loop.train(trainer, unfinished, checkpoint_seconds)
        if unfinished is None:
            return
        try:
            inputs.check_unchanged()
        except UserError:  # when it is put back, the next run has nothing left to train
            unfinished.save(checkpoint.State(trainer.steps_completed, training.history, trainer.state()))
            raise
        outputs.write_training(OUTPUTS, training.weights, training.history, described)
        model = outputs.read_model(OUTPUTS)
        here = devices.describe(device)
        facts = Facts(
            device=params.device,
            workers=group.count,
            **{**here, "hardware": "; ".join(dict.fromkeys((here["hardware"], *group.hardware)))},
            seconds_per_epoch=training.seconds_per_epoch,
            images_per_second=training.images_per_second,
            peak_memory_bytes=devices.peak_memory_bytes(device),
        )
        environments.await_evaluation(model, facts)
        unfinished.remove()
    print(f"{OUTPUTS / MODEL}: {model.fingerprint}")
    print(f"{len(training.history)} logged steps, last loss {training.history[-1].loss:.4f}, on {params.device}")
