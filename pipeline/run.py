"""The files of a run: what the stages write to `outputs/`, and finished runs kept whole under `runs/`.

DVC owns `outputs/` and replaces what is in it; `runs/` is unknown to DVC. A kept run is one folder with the four
outputs, `run.json` (its identity, and the SHA-256 of the four files, so that parts of two runs are never taken for
one) and `environment.json`. It appears in one rename. No PyTorch here: `compare` and `fingerprint` answer at once.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from msgspec import structs

from pipeline import files
from pipeline.errors import UserError
from pipeline.params import Params

OUTPUTS = Path("outputs")
RUNS = Path("runs")
CACHE = Path(".cache")
"""Undeclared and ignored: downloads, unfinished training, and the environments of finished training."""
LOCK = CACHE / "stage.lock"
"""Held by `train` and by `evaluate`, so that the parts of a run are never those of two."""

MODEL = "model.safetensors"
HISTORY = "history.csv"
METRICS = "metrics.json"
PREDICTIONS = "predictions.csv"
PARTS = (MODEL, HISTORY, METRICS, PREDICTIONS)
IDENTITY = "run.json"
ENVIRONMENT = "environment.json"
FORMAT = 1
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
DEEPEST = 4
"""Lists and objects within each other in a JSON file; a run's have two."""

Tensors = Mapping[str, np.ndarray]
Row = TypeVar("Row")


class Step(NamedTuple):
    """A row of the history: the batch's mean loss, as a float32 in its shortest exact decimal form."""

    step: int
    epoch: int
    loss: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """A row of the predictions: class names, and the softmax probability of the predicted class."""

    index: int
    actual: str
    predicted: str
    confidence: float


def fingerprint(tensors: Tensors) -> str:
    """SHA-256, in hex, over the tensors sorted by name: name, dtype, shape, little-endian bytes.

    Before each tensor's bytes stands the line `name dtype AxBxC`. Zeros count as +0.0, so the sign of a zero, which no
    result depends on, does not count.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        if array.dtype.kind == "f":
            array = array + array.dtype.type(0)
        digest.update(f"{name} {array.dtype.name} {'x'.join(map(str, array.shape))}\n".encode())
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


# --- the four outputs --------------------------------------------------------------------------------------------


def write_model(folder: Path, weights: Tensors) -> None:
    """Write float32 weights; nothing in the file tells when, where or on which device they were made."""
    import safetensors.numpy

    files.write_bytes(folder / MODEL, safetensors.numpy.save({name: np.ascontiguousarray(weights[name]) for name in sorted(weights)}))


def read_model(folder: Path) -> dict[str, np.ndarray]:
    """Read a run's weights. Nothing in the file is executed. Raises UserError."""
    return read_tensors(folder / MODEL)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file. Raises UserError when it is missing or damaged."""
    import safetensors
    import safetensors.numpy

    try:
        return dict(safetensors.numpy.load(files.plain(path).read_bytes()))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro` first, or name a folder under {RUNS}/") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({error}); make it again with `dvc repro`") from None


def write_history(folder: Path, steps: Iterable[Step]) -> None:
    """Write the history; `loss` must be a float32's value."""
    _write_csv(folder / HISTORY, Step._fields, ((s.step, s.epoch, np.float32(s.loss)) for s in steps))


def write_predictions(folder: Path, predictions: Iterable[Prediction]) -> None:
    """Write the predictions; `confidence` must be a float32's value."""
    rows = ((p.index, p.actual, p.predicted, np.float32(p.confidence)) for p in predictions)
    _write_csv(folder / PREDICTIONS, Prediction.__slots__, rows)


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    files.write_text(path, text.getvalue())


def read_history(folder: Path) -> list[Step]:
    """Read the history. Raises UserError when it is missing, empty, damaged or not finite."""
    found = _read_csv(folder / HISTORY, Step._fields, lambda a, b, c: Step(int(a), int(b), _float32(c)))
    if any(later.step <= earlier.step for earlier, later in itertools.pairwise(found)):
        raise UserError(f"{folder / HISTORY}: damaged: the column 'step' must increase; run `dvc repro` again")
    return found


def read_predictions(folder: Path) -> list[Prediction]:
    """Read the predictions. Raises UserError when they are missing, empty, damaged or not finite."""
    found = _read_csv(folder / PREDICTIONS, Prediction.__slots__, lambda a, b, c, d: Prediction(int(a), b, c, _float32(d)))
    if any(p.index != i for i, p in enumerate(found)):
        raise UserError(f"{folder / PREDICTIONS}: damaged: the column 'index' must count from 0; run `dvc repro` again")
    return found


def _read_csv(path: Path, header: tuple[str, ...], row: Callable[..., Row]) -> list[Row]:
    rows = csv.reader(io.StringIO(_read_text(path)))
    try:
        if (first := next(rows, None)) != list(header):
            raise ValueError(f"its first line is {first!r:.80}, not {','.join(header)}")
        found = []
        for fields in rows:
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} fields in a row of {len(header)}")
            found.append(row(*fields))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: damaged: {error!s:.200}") from None
    if not found:
        raise UserError(f"{path}: damaged: it has no rows")
    return found


def _float32(text: str) -> float:
    value = float(text)
    if not abs(value) <= LARGEST_FLOAT32:
        raise ValueError(f"{value} where a finite float32 must be")
    return value


def _number(value: object) -> None:
    if type(value) not in (int, float) or not -1e300 < value < 1e300:  # type: ignore[operator]
        raise ValueError(f"{value!r:.40} where a finite number must be")


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read the metrics. Raises UserError when they are missing, damaged or not finite."""
    metrics = _read_json(folder / METRICS)
    try:
        for value in (metrics["accuracy"], metrics["loss"], *metrics["accuracy_per_class"].values()):
            _number(value)
        if not metrics["accuracy_per_class"]:
            raise ValueError("'accuracy_per_class' names no class")
        _text(metrics, "fingerprint", "numerics")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / METRICS}: damaged: {_reason(error)}") from None
    return metrics


def _read_text(path: Path) -> str:
    try:
        return files.plain(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: not found; this is not a whole run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path), parse_constant=_finite, parse_float=_finite)
        _shallow(content, DEEPEST)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged: not a JSON object")
    return content


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text:.40} where a finite number must be")
    return value


def _shallow(content: Any, levels: int) -> None:
    if isinstance(content, dict | list):
        if not levels:
            raise ValueError(f"nested more than {DEEPEST} deep")
        for inner in content.values() if isinstance(content, dict) else content:
            _shallow(inner, levels - 1)


def _text(content: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if not isinstance(content[key], str):
            raise ValueError(f"'{key}' is {content[key]!r:.40}, not text")


def _reason(error: Exception) -> str:
    return f"key {error} is missing" if isinstance(error, KeyError) else str(error)


# --- identity and kept runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """What made a run's weights."""

    data: dict[str, str]
    """`name` and `digest` (the fingerprint of the images and labels)."""
    seed: int
    numerics: str
    """With its version: `exact-1`, or `native`."""
    train: dict[str, Any]
    device: str
    fingerprint: str


@dataclass(frozen=True)
class Identity(Training):
    """What a run is: equal identities but for the device must give equal bits when the numerics are exact."""

    evaluate: dict[str, Any]
    code: dict[str, str | None]
    """`digest` of the sources, and Git's `revision` where there is one."""


def training_of(params: Params, numerics: str, data: dict[str, str], weights: str) -> Training:
    """The training that `params` describe, of weights with the fingerprint `weights`."""
    return Training(data, params.seed, numerics, structs.asdict(params.train), params.device, weights)


def identity_of(params: Params, numerics: str, data: dict[str, str], weights: str) -> Identity:
    """The run that `params` describe, of weights with the fingerprint `weights`."""
    code = {"digest": code_digest(), "revision": _git_revision()}
    training = training_of(params, numerics, data, weights)
    return Identity(**dataclasses.asdict(training), evaluate=structs.asdict(params.evaluate), code=code)


@functools.cache
def code_digest() -> str:
    """SHA-256, in hex, over the sources of this package."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _git_revision() -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _training_record(training: Training) -> Path:
    """Where the environment in which these weights were trained on this machine is noted."""
    made_by = {field.name: getattr(training, field.name) for field in dataclasses.fields(Training)}
    return CACHE / "environments" / training.fingerprint[:32] / f"{_hash(made_by)[:32]}.json"


def note_training(training: Training, environment: dict[str, Any]) -> None:
    """Remember the environment that trained these weights, for `keep`, whenever their evaluation follows."""
    files.write_json(_training_record(training), environment)


def keep(outputs: Path, runs: Path, identity: Identity, evaluated_in: dict[str, Any]) -> Path:
    """Keep the finished run in `outputs`, whole, under a name of its own in `runs`; return its folder.

    The training's environment is the one noted for exactly these weights; where they came from DVC's cache and were
    never trained here, it is null, never another's. A run that is kept already stays as it is; one with another result is
    another run.

    Raises:
        UserError: the model is not the identity's, or was trained here otherwise and DVC does not vouch for it.
    """
    if (found := fingerprint(read_model(outputs))) != identity.fingerprint:
        raise UserError(f"{outputs / MODEL}: its fingerprint is {found:.12}..., not {identity.fingerprint:.12}...; run `dvc repro`")
    parts = {name: (outputs / name).read_bytes() for name in PARTS}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    record = _training_record(identity)
    if not record.exists() and any(record.parent.glob("*.json")) and "DVC_STAGE" not in os.environ:
        raise UserError(f"{outputs / MODEL}: trained with other settings than params.yaml's; run `dvc repro`, which trains again")
    environment = {"train": _read_json(record) if record.exists() else None, "evaluate": evaluated_in}
    matters = {
        "device": identity.device,
        "identity": {**dataclasses.asdict(identity), "code": identity.code["digest"]},
        "environment": {stage: _lasting(facts) for stage, facts in environment.items()},
        "files": sums,
    }
    name = f"{identity.data['name']}-{identity.numerics}-{identity.device.replace(':', '')}-seed{identity.seed}-{_hash(matters)[:8]}"
    folder = runs / name
    if (folder / IDENTITY).exists():
        return folder
    if folder.exists():
        raise UserError(f"{folder}: is there, but without {IDENTITY}; move it away and run again")
    with files.publishing(folder) as part:
        for name, content in parts.items():
            files.write_bytes(part / name, content)
        files.write_json(part / ENVIRONMENT, environment)
        files.write_json(part / IDENTITY, {"format": FORMAT, **dataclasses.asdict(identity), "files": sums})
    return folder


def _lasting(facts: dict[str, Any] | None) -> dict[str, Any] | None:
    """The part of an environment that two equal runs on one machine share: no timings."""
    return facts and {key: value for key, value in facts.items() if key not in MEASURED}


MEASURED = ("seconds_per_epoch", "images_per_second", "peak_memory_bytes")
"""The keys of an environment that are measured, not given."""


@dataclass(frozen=True)
class Run:
    """A kept run, read and checked: its parts belong together."""

    folder: Path
    identity: Identity
    environment: dict[str, Any]
    metrics: dict[str, Any]
    history: list[Step]
    predictions: list[Prediction]
    weights: Tensors


def load(folder: Path) -> Run:
    """Read a kept run and check that its parts belong together.

    Raises:
        UserError: a part is missing, damaged, not finite or of another run; names the file and the reason.
    """
    if not os.path.isdir(folder):  # unlike Path's, it has no name that it refuses with an error
        raise UserError(f"{folder}: not a folder; kept runs are under {RUNS}/")
    noted = _read_json(folder / IDENTITY)
    try:
        if noted["format"] != FORMAT:
            raise UserError(f"{folder / IDENTITY}: format {noted['format']!r}; this version reads format {FORMAT}")
        identity = Identity(**{f.name: noted[f.name] for f in dataclasses.fields(Identity)})
        sums = dict(noted["files"])
        for key, kind in IDENTITY_TYPES.items():
            if type(noted[key]) is not kind:
                raise ValueError(f"'{key}' is {noted[key]!r:.40}, not a {kind.__name__}")
        _text(identity.data, "name", "digest")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / IDENTITY}: damaged: {_reason(error)}") from None
    environment = _read_environment(folder)
    weights, metrics = read_model(folder), read_metrics(folder)
    history, predictions = read_history(folder), read_predictions(folder)
    for name, array in weights.items():
        if array.dtype != np.float32:
            raise UserError(f"{folder / MODEL}: damaged: '{name}' is {array.dtype}, not float32")
        if not np.isfinite(array).all():
            raise UserError(f"{folder / MODEL}: damaged: '{name}' holds NaN or infinity")
    found = fingerprint(weights)
    for claim, path in ((identity.fingerprint, IDENTITY), (metrics["fingerprint"], METRICS)):
        if found != claim:
            raise UserError(
                f"{folder / MODEL}: its fingerprint is {found:.12}..., but {path} records {claim!s:.12}...; "
                "the weights were changed after the run"
            )
    for name in PARTS:
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sums.get(name):
            raise UserError(f"{folder / name}: changed after the run, or of another run (its SHA-256 is not the one in {IDENTITY})")
    _check_accuracy(folder, metrics, predictions)
    return Run(folder, identity, environment, metrics, history, predictions, weights)


def _check_accuracy(folder: Path, metrics: dict[str, Any], predictions: list[Prediction]) -> None:
    images = Counter(p.actual for p in predictions)
    hits = Counter(p.actual for p in predictions if p.predicted == p.actual)
    found = {"accuracy": hits.total() / len(predictions), "accuracy_per_class": {name: hits[name] / images[name] for name in images}}
    for key, value in found.items():
        if metrics[key] != value:
            raise UserError(f"{folder / METRICS}: damaged: '{key}' is {metrics[key]!s:.80}, but by {PREDICTIONS} it is {value!s:.80}")


IDENTITY_TYPES = {
    "data": dict,
    "seed": int,
    "numerics": str,
    "train": dict,
    "evaluate": dict,
    "device": str,
    "fingerprint": str,
    "code": dict,
}


def _read_environment(folder: Path) -> dict[str, Any]:
    environment = _read_json(folder / ENVIRONMENT)
    try:
        for stage in ("train", "evaluate"):
            facts = environment[stage]
            if facts is not None and type(facts) is not dict:
                raise ValueError(f"'{stage}' is {facts!r:.40}, not an object or null")
            for key in MEASURED:
                if facts and facts.get(key) is not None:
                    _number(facts[key])
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder / ENVIRONMENT}: damaged: {_reason(error)}") from None
    return environment
