"""In what environment a stage computed. A run keeps it, but no output of DVC's holds it: equal runs have equal outputs.

A training's environment waits under `.cache/` for the evaluation that keeps the run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import msgspec

from pipeline.inputs import CACHE
from pipeline.runs.outputs import Model, read_bytes
from pipeline.system import files, schema

WAITING = CACHE / "environments"
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1, description="a whole number from 0")]
Measured = Annotated[float, msgspec.Meta(ge=0, le=1.7976931348623157e308, description="a finite number from 0")]
Text = Annotated[str, schema.text("at most 2000 characters that can be shown", rf"[^{schema.STEERS}]{{0,2000}}")]


class Facts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The environment of one stage; what is not known is None."""

    device: Text | None = None
    """As params.yaml names it."""
    hardware: Text | None = None
    """The device's own name; of workers on unlike devices all names."""
    threads: Count | None = None
    workers: Count | None = None
    """Processes that trained together."""
    cpu_capability: Text | None = None
    """The instruction set of PyTorch's kernels."""
    platform: Text | None = None
    python: Text | None = None
    torch: Text | None = None
    cuda: Text | None = None
    driver: Text | None = None
    cudnn: Count | None = None
    compute_capability: Text | None = None
    batch_size: Count | None = None
    """Of an evaluation."""
    seconds_per_epoch: Measured | None = None
    images_per_second: Measured | None = None
    peak_memory_bytes: Count | None = None


MEASURED = ("seconds_per_epoch", "images_per_second", "peak_memory_bytes")
"""The facts that are measured, not given: equal runs on one machine differ in them."""


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The environment of a run; None where a stage did not run on this machine, as when its outputs came from a remote."""

    train: Facts | None = None
    evaluate: Facts | None = None


def lasting(facts: Facts | None) -> Facts | None:
    """The facts that two equal runs on one machine share."""
    return facts and msgspec.structs.replace(facts, **dict.fromkeys(MEASURED))


def read(path: Path) -> Environment:
    """Read an environment. Raises UserError when it is missing or damaged."""
    return schema.decode(Environment, read_bytes(path), str(path))


def await_evaluation(model: Model, facts: Facts) -> None:
    """Leave the environment of the training that gave `model` for the evaluation that keeps its run."""
    files.write_json(_waiting(model), msgspec.to_builtins(facts))


def of_training(model: Model) -> Facts | None:
    """The environment in which exactly these weights were trained here, or None: never another's."""
    path = _waiting(model)
    return schema.decode(Facts, read_bytes(path), str(path)) if path.exists() else None


def _waiting(model: Model) -> Path:
    trained = hashlib.sha256(msgspec.json.encode(model.provenance, order="sorted")).hexdigest()
    return WAITING / model.fingerprint[:32] / f"{trained[:32]}.json"
