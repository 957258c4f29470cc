"""Finished runs, kept whole under `runs/`, which DVC does not know.

A kept run is one folder: the outputs, `run.json` (its identity, and the SHA-256 of those files, so that parts of two
runs are never taken for one) and `environment.json`. It appears in one rename.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.params import Device
from pipeline.runs import environments, outputs
from pipeline.runs.environments import Environment
from pipeline.runs.outputs import HISTORY, METRICS, MODEL, NETWORK, PARTS, PREDICTIONS, Metrics, Model, Prediction, Step
from pipeline.runs.provenance import Provenance
from pipeline.system import schema
from pipeline.system.errors import UserError
from pipeline.system.tensors import Tensors

RUNS = Path("runs")
IDENTITY = "run.json"
ENVIRONMENT = "environment.json"
FORMAT = 2


class Identity(Provenance, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run is. Exact runs with equal provenance must have equal bits."""

    device: Device | None
    """Where the weights were trained, as params.yaml names it; None where they came from elsewhere."""
    fingerprint: schema.Digest
    """The weights'."""
    evaluation_code: schema.Digest | None
    """The digest of the sources that evaluated; None where the evaluation came from elsewhere."""
    revision: schema.Phrase | None
    """Git's name for the commit of the sources that trained, where they are the ones that are here."""

    @property
    def provenance(self) -> Provenance:
        """What trained the weights."""
        return Provenance(**{name: getattr(self, name) for name in Provenance.__struct_fields__})


class _Document(Identity, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`run.json`."""

    format: int
    files: dict[str, schema.Digest]
    """Part -> its SHA-256."""


@dataclass(frozen=True)
class Run:
    """A kept run, read and checked: its parts belong together."""

    folder: Path
    identity: Identity
    environment: Environment
    metrics: Metrics
    history: list[Step]
    predictions: list[Prediction]
    weights: Tensors
    network: bytes | None
    """The network as data (models/recorded.py), if the run has it."""
    sums: dict[str, str]
    """Part -> the SHA-256 of the bytes that were read."""


def listed(runs: Path = RUNS) -> list[Path]:
    """Every kept run in `runs`, by name, half a run too, so that `load` refuses it; hidden folders are being written."""
    parts = (IDENTITY, *PARTS)
    return sorted(path for path in runs.glob("[!.]*") if any(os.path.exists(path / part) for part in parts))


def by_time(folders: list[Path]) -> list[Path]:
    """Kept runs in the order in which they were kept, the first one first."""

    def kept_at(folder: Path) -> tuple[int, str]:
        try:
            return (folder / IDENTITY).stat().st_mtime_ns, folder.name
        except OSError:  # half a run, which `load` refuses
            return 0, folder.name

    return sorted(folders, key=kept_at)


def load(folder: Path) -> Run:
    """Read a kept run and check that its parts belong together.

    Raises:
        UserError: a part is missing, damaged, not finite or of another run; names the file and the reason.
    """
    if not os.path.isdir(folder):  # unlike Path's, it has no name that it refuses with an error
        raise UserError(f"{folder}: not a folder; kept runs are under {RUNS}/")
    document = read_document(folder)
    identity = Identity(**{name: getattr(document, name) for name in Identity.__struct_fields__})
    if identity.workers is not None and identity.numerics != "native":
        raise UserError(
            f"{folder / IDENTITY}: 'workers' is {identity.workers}; allowed: null, for the bits of exact numerics have no such part"
        )
    outputs.refuse_from_within(folder, identity.provenance)
    environment = environments.read(folder / ENVIRONMENT)
    parts = read_parts(folder)
    return checked(folder, parts, outputs.model(folder / MODEL, parts[MODEL], parts.get(NETWORK)), identity, environment, document.files)


def unchanged(run: Run) -> bool:
    """Whether a run's folder still holds what was read of it."""
    try:
        now = load(run.folder)
    except UserError:
        return False
    return (now.identity, now.environment, now.sums) == (run.identity, run.environment, run.sums)


def read_parts(folder: Path) -> dict[str, bytes]:
    """The bytes of a run's parts, each read once: what is compared is what was hashed. Raises UserError when one is missing."""
    there = [*PARTS, NETWORK] if os.path.lexists(folder / NETWORK) else PARTS
    return {name: outputs.read_bytes(folder / name) for name in there}


def sums_of(parts: Mapping[str, bytes]) -> dict[str, str]:
    """Part -> the SHA-256 of its bytes."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


def checked(
    folder: Path, parts: Mapping[str, bytes], model: Model, identity: Identity, environment: Environment, recorded: Mapping[str, str]
) -> Run:
    """A run of these parts, whose sums are `recorded`. Raises UserError where they contradict each other."""
    metrics, history = (
        outputs.metrics(folder / METRICS, parts[METRICS]),
        outputs.history(folder / HISTORY, parts[HISTORY], identity.train is None),
    )
    predictions, sums = outputs.predictions(folder / PREDICTIONS, parts[PREDICTIONS]), sums_of(parts)
    if model.fingerprint != identity.fingerprint:
        raise UserError(
            f"{folder / MODEL}: its fingerprint is {model.fingerprint:.12}..., but {IDENTITY} records "
            f"{identity.fingerprint:.12}...; the weights were changed after the run"
        )
    if model.provenance != identity.provenance:
        raise UserError(f"{folder / IDENTITY}: claims another training than the one that {MODEL} says made it; changed after the run")
    for name in {**sums, **recorded}:  # before one part is held against another: a foreign one is named itself, not what it contradicts
        if sums.get(name) != recorded.get(name):
            raise UserError(f"{folder / name}: changed after the run, or of another run (its SHA-256 is not the one in {IDENTITY})")
    if sums[HISTORY] != model.history:
        raise UserError(f"{folder / HISTORY}: not the history of {MODEL}: changed, or of another training; {outputs.again(folder)}")
    _check_parts(folder, model, metrics, predictions)
    return Run(folder, identity, environment, metrics, history, predictions, model.weights, model.network, sums)


class _Format(msgspec.Struct):
    format: Any


def read_document(folder: Path) -> _Document:
    """`run.json` of a kept run. Raises UserError where it is missing, damaged or of another format."""
    path = folder / IDENTITY
    content = outputs.read_bytes(path)
    version = schema.decode(_Format, content, str(path)).format
    if version != FORMAT:
        raise UserError(
            f"{path}: format {version!r:.20}; this version reads format {FORMAT}: read it with the version that made it; "
            f"here {outputs.again(folder)}"
        )
    return schema.decode(_Document, content, str(path))


def _check_parts(folder: Path, model: Model, metrics: Metrics, predictions: list[Prediction]) -> None:
    """Raise UserError where the metrics and predictions of a run contradict each other, or the model."""
    if metrics.fingerprint != model.fingerprint:
        raise UserError(
            f"{folder / METRICS}: of weights with the fingerprint {metrics.fingerprint:.12}..., but those in {MODEL} have "
            f"{model.fingerprint:.12}...; {outputs.again(folder)}"
        )
    if metrics.numerics != (trained_with := model.provenance.numerics):
        raise UserError(f"{folder / METRICS}: computed with {metrics.numerics:.20}, but {MODEL} was trained with {trained_with}")
    images = Counter(p.actual for p in predictions)
    hits = Counter(p.actual for p in predictions if p.predicted == p.actual)
    counted = {"accuracy": hits.total() / len(predictions), "accuracy_per_class": {name: hits[name] / images[name] for name in images}}
    for key, value in counted.items():
        if getattr(metrics, key) != value:
            raise UserError(
                f"{folder / METRICS}: damaged: '{key}' is {getattr(metrics, key)!s:.80}, but by {PREDICTIONS} it is {value!s:.80}"
            )
    if unknown := {name for p in predictions for name in (p.actual, p.predicted)} - set(model.provenance.data.classes):
        raise UserError(f"{folder / PREDICTIONS}: the class {min(unknown)!r:.80} is none of those in {MODEL}")
