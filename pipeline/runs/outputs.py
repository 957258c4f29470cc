"""The four files of a run, as the stages write them to `outputs/`. DVC owns that folder and replaces what is in it."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from pipeline import files, paths, schema, tensors
from pipeline.errors import UserError
from pipeline.runs.provenance import Provenance
from pipeline.tensors import Tensors

OUTPUTS = Path("outputs")
MODEL = "model.safetensors"
HISTORY = "history.csv"
METRICS = "metrics.json"
PREDICTIONS = "predictions.csv"
PARTS = (MODEL, HISTORY, METRICS, PREDICTIONS)
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

Row = TypeVar("Row")


class Step(NamedTuple):
    """A row of the history: the batch's mean loss, as a float32 in its shortest exact decimal form."""

    step: int
    epoch: int
    loss: float


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """A row of the predictions: class names, and the softmax probability of the predicted class."""

    index: int
    actual: str
    predicted: str
    confidence: float


class Metrics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The metrics of a run."""

    accuracy: float
    loss: float
    accuracy_per_class: dict[str, float]
    """Of the classes that the test images have, in the order of the labels."""
    numerics: str
    fingerprint: str
    """The weights'."""


class Model(NamedTuple):
    """A file of weights."""

    weights: dict[str, np.ndarray]
    provenance: Provenance
    history: str
    """The SHA-256 of the history that belongs to these weights."""
    fingerprint: str


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in a model's file beside the weights."""

    provenance: Provenance
    history: str


# --- the model and its history -----------------------------------------------------------------------------------


def write_training(folder: Path, weights: Tensors, history: Iterable[Step], provenance: Provenance) -> None:
    """Write a training's outputs: float32 weights that name their history and what trained them, and that history, of float32 losses."""
    rows = _csv(Step._fields, ((s.step, s.epoch, np.float32(s.loss)) for s in history))
    metadata = _Metadata(provenance, hashlib.sha256(rows).hexdigest())
    tensors.write(folder / MODEL, weights, ("training", msgspec.json.encode(metadata, order="sorted").decode()))
    files.write_bytes(folder / HISTORY, rows)


def check_weights(weights: Tensors, problem: str) -> None:
    """Raise UserError, which begins with `problem`, where weights are not such as `read_model` takes: before a training as after it."""
    for name, array in weights.items():
        if array.dtype != np.float32:
            raise UserError(f"{problem}: '{name}' is {array.dtype}, not float32")
        if not np.isfinite(array).all():
            raise UserError(f"{problem}: '{name}' holds NaN or infinity")


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """A model's weights, whatever trained them. Nothing in the file is executed. Raises UserError."""
    return _read(folder).tensors


def read_model(folder: Path) -> Model:
    """A model's weights and what trained them.

    Raises:
        UserError: the file is missing or damaged, holds what no float32 weight can be, or does not say what trained it.
    """
    content, path = _read(folder), folder / MODEL
    check_weights(content.tensors, f"{path}: damaged")
    if "training" not in content.metadata:
        raise UserError(f"{path}: does not say what trained it; run `dvc repro` with this version, which trains again")
    metadata = schema.decode(_Metadata, content.metadata["training"].encode(), str(path))
    return Model(content.tensors, metadata.provenance, metadata.history, tensors.fingerprint(content.tensors))


def _read(folder: Path) -> tensors.Content:
    path = folder / MODEL
    try:
        return tensors.read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro` first, or name a folder under runs/") from None
    except tensors.Damaged as reason:
        raise UserError(f"{path}: damaged, or not a safetensors file ({reason}); make it again with `dvc repro`") from None


def read_history(folder: Path) -> list[Step]:
    """Read the history. Raises UserError when it is missing, empty, damaged or not finite."""
    history = _read_csv(folder / HISTORY, Step._fields, lambda a, b, c: Step(int(a), int(b), _float32(c)))
    if any(later.step <= earlier.step for earlier, later in itertools.pairwise(history)):
        raise UserError(f"{folder / HISTORY}: damaged: the column 'step' must increase; run `dvc repro` again")
    return history


# --- metrics and predictions -------------------------------------------------------------------------------------


def write_evaluation(folder: Path, metrics: Metrics, predictions: Iterable[Prediction]) -> None:
    """Write an evaluation's outputs; `confidence` must be a float32's value."""
    files.write_json(folder / METRICS, msgspec.to_builtins(metrics))
    rows = ((p.index, p.actual, p.predicted, np.float32(p.confidence)) for p in predictions)
    files.write_bytes(folder / PREDICTIONS, _csv(Prediction.__struct_fields__, rows))


def read_metrics(folder: Path) -> Metrics:
    """Read the metrics. Raises UserError when they are missing, damaged or not finite."""
    metrics = schema.decode(Metrics, read_bytes(folder / METRICS), str(folder / METRICS))
    if not all(map(math.isfinite, (metrics.accuracy, metrics.loss, *metrics.accuracy_per_class.values()))):
        raise UserError(f"{folder / METRICS}: damaged: a number in it is not finite")
    if not metrics.accuracy_per_class:
        raise UserError(f"{folder / METRICS}: damaged: 'accuracy_per_class' names no class")
    return metrics


def read_predictions(folder: Path) -> list[Prediction]:
    """Read the predictions. Raises UserError when they are missing, empty, damaged or not finite."""
    predictions = _read_csv(folder / PREDICTIONS, Prediction.__struct_fields__, lambda a, b, c, d: Prediction(int(a), b, c, _float32(d)))
    if any(p.index != i for i, p in enumerate(predictions)):
        raise UserError(f"{folder / PREDICTIONS}: damaged: the column 'index' must count from 0; run `dvc repro` again")
    return predictions


# --- files ---------------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex. Raises UserError when it cannot be read."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def read_bytes(path: Path) -> bytes:
    """A part of a run. Raises UserError when it is missing or cannot be read."""
    try:
        return paths.plain(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: not found; this is not a whole run") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _csv(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def _read_csv(path: Path, header: tuple[str, ...], row: Callable[..., Row]) -> list[Row]:
    content = read_bytes(path)
    try:
        lines = csv.reader(io.StringIO(content.decode()))
        if (first := next(lines, None)) != list(header):
            raise ValueError(f"its first line is {first!r:.80}, not {','.join(header)}")
        rows = []
        for fields in lines:
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} fields in a row of {len(header)}")
            rows.append(row(*fields))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: damaged: {error!s:.200}") from None
    if not rows:
        raise UserError(f"{path}: damaged: it has no rows")
    return rows


def _float32(text: str) -> float:
    value = float(text)
    if not abs(value) <= LARGEST_FLOAT32:
        raise ValueError(f"{value} where a finite float32 must be")
    return value
