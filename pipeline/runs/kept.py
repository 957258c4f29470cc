"""Finished runs, kept whole under `runs/`, which DVC does not know.

A kept run is one folder: the outputs, `run.json` (its identity, and the SHA-256 of those files, so that parts of two
runs are never taken for one) and `environment.json`. It appears in one rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline import sources
from pipeline.inputs import CACHE
from pipeline.params import Device
from pipeline.runs import environments, outputs
from pipeline.runs.environments import Environment, Facts
from pipeline.runs.outputs import HISTORY, METRICS, MODEL, NETWORK, OUTPUTS, PARTS, PREDICTIONS, Metrics, Model, Prediction, Step
from pipeline.runs.provenance import Provenance
from pipeline.system import files, revision, schema
from pipeline.system.errors import UserError, printable
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


# --- keeping -------------------------------------------------------------------------------------------------------


def keep(folder: Path = OUTPUTS, runs: Path | None = None, evaluated_in: Facts | None = None, trained_in: Facts | None = None) -> Path:
    """Keep the finished run in `folder`, whole, under a name of its own in `runs`; return its folder.

    Everything that is claimed of the training comes from the model itself. A run that is kept already stays as it is; one with
    another result is another run. Without `evaluated_in` a run with the same files counts as kept already. Without `trained_in` the
    environment of the training is the one that waits for it.

    Raises:
        UserError: the parts do not belong together.
    """
    runs = runs or runs_folder()
    parts = read_parts(folder)
    run = made(folder, parts, evaluated_in, trained_in)
    if evaluated_in is None and (kept := _with_files(runs, run.sums)):
        return kept
    return put(run, parts, runs)


def made(folder: Path, parts: Mapping[str, bytes], evaluated_in: Facts | None, trained_in: Facts | None = None) -> Run:
    """The run whose parts, which `folder` names in errors, were computed here. Arguments and errors are those of `keep`."""
    model = outputs.model(folder / MODEL, parts[MODEL], parts.get(NETWORK))
    environment = Environment(train=trained_in or environments.of_training(model), evaluate=evaluated_in)
    return _run(folder, parts, model, _identity(model, environment), environment, _sums(parts))


def put(run: Run, parts: Mapping[str, bytes], runs: Path) -> Path:
    """Put a run with these parts under `runs`; return its folder. What stands there under its name is read, never trusted.

    Raises:
        UserError: another run stands under its name.
    """
    digest = _digest(run)
    for digits in (8, 16, 64):  # 8 can be made to collide
        target = runs / _name(run, digest[:digits])
        with files.in_turn(runs.parent / CACHE / "keep.lock"):
            if not os.path.lexists(target):
                with files.publishing(target) as part:
                    outputs.write(part, parts)
                    files.write_json(part / ENVIRONMENT, msgspec.to_builtins(run.environment))
                    files.write_json(part / IDENTITY, {"format": FORMAT, **msgspec.to_builtins(run.identity), "files": run.sums})
                return target
        with contextlib.suppress(UserError):
            if _digest(load(target)) == digest:
                return target
    raise UserError(f"{target}: is there, but is not the run of that name; move it away and run again")


def keep_unkept(folder: Path = OUTPUTS) -> Path | None:
    """Keep the run in `folder` if it is finished and not kept yet; return its new folder, or None.

    Where DVC brought the files from a cache or a remote, no stage ran here that would have kept them. What cannot be kept is said
    on standard error: the runs that are kept can be compared all the same.
    """
    if not all((folder / name).exists() for name in PARTS):
        return None
    before = listed(runs_folder())
    try:
        if outputs.read_metrics(folder).fingerprint != outputs.read_model(folder).fingerprint:
            return None  # the evaluation is still to come
        target = keep(folder)
    except UserError as reason:
        print(f"{folder}/ is not kept: {printable(str(reason))}", file=sys.stderr)
        return None
    return None if target in before else target


def runs_folder() -> Path:
    """Where finished runs go: `runs/` here, or that of the project that started a DVC experiment elsewhere (`--temp`, `--queue`)."""
    started_by = os.environ.get("DVC_ROOT")
    if not started_by:
        return RUNS
    here, experiments = Path.cwd(), Path(started_by).resolve() / ".dvc" / "tmp" / "exps"
    copy = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)
    if experiments not in copy.parents:
        return RUNS
    return Path(started_by) / here.relative_to(copy) / RUNS


def _identity(model: Model, environment: Environment) -> Identity:
    here = sources.digest("train") == model.provenance.code
    return Identity(
        **{name: getattr(model.provenance, name) for name in Provenance.__struct_fields__},
        device=environment.train.device if environment.train else None,
        fingerprint=model.fingerprint,
        evaluation_code=sources.digest("evaluate") if environment.evaluate else None,
        revision=revision.describe(sources.PACKAGE) if here else None,
    )


def _digest(run: Run) -> str:
    """What tells a run from all others: equal runs on one machine share it."""
    matters: list[Any] = [msgspec.structs.replace(run.identity, revision=None), run.sums]
    matters += [environments.lasting(facts) for facts in (run.environment.train, run.environment.evaluate)]
    return hashlib.sha256(msgspec.json.encode(matters, order="sorted")).hexdigest()


def _name(run: Run, digits: str) -> str:
    """A folder's name for a run. Its words are held to what a name may be, wherever they come from."""
    identity = run.identity
    words = [identity.data.name, identity.numerics, (identity.device or "").replace(":", ""), f"seed{identity.seed}", digits]
    return re.sub(r"[^A-Za-z0-9._-]|^\.", "_", "-".join(filter(None, words)))


def _with_files(runs: Path, sums: dict[str, str]) -> Path | None:
    for folder in listed(runs):
        try:
            if _document(folder).files == sums and _sums(read_parts(folder)) == sums:
                return folder
        except UserError:
            continue  # whoever reads that run is told
    return None


# --- reading -------------------------------------------------------------------------------------------------------


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
    document = _document(folder)
    identity = Identity(**{name: getattr(document, name) for name in Identity.__struct_fields__})
    if identity.workers is not None and identity.numerics != "native":
        raise UserError(
            f"{folder / IDENTITY}: 'workers' is {identity.workers}; allowed: null, for the bits of exact numerics have no such part"
        )
    outputs.refuse_from_within(folder, identity.provenance)
    environment = environments.read(folder / ENVIRONMENT)
    parts = read_parts(folder)
    return _run(folder, parts, outputs.model(folder / MODEL, parts[MODEL], parts.get(NETWORK)), identity, environment, document.files)


def unchanged(run: Run) -> bool:
    """Whether a run's folder still holds what was read of it."""
    try:
        return _sums(read_parts(run.folder)) == run.sums
    except UserError:
        return False


def read_parts(folder: Path) -> dict[str, bytes]:
    """The bytes of a run's parts, each read once: what is compared is what was hashed. Raises UserError when one is missing."""
    there = [*PARTS, NETWORK] if os.path.lexists(folder / NETWORK) else PARTS
    return {name: outputs.read_bytes(folder / name) for name in there}


def _sums(parts: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


def _run(
    folder: Path, parts: Mapping[str, bytes], model: Model, identity: Identity, environment: Environment, recorded: Mapping[str, str]
) -> Run:
    """A run of these parts, whose sums are `recorded`. Raises UserError where they contradict each other."""
    metrics, history = (
        outputs.metrics(folder / METRICS, parts[METRICS]),
        outputs.history(folder / HISTORY, parts[HISTORY], identity.train is None),
    )
    predictions, sums = outputs.predictions(folder / PREDICTIONS, parts[PREDICTIONS]), _sums(parts)
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


def _document(folder: Path) -> _Document:
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
