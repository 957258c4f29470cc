"""The files of a run, as the stages write them to `outputs/`. DVC owns that folder and replaces what is in it."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from pipeline.exact import arrays
from pipeline.runs.provenance import Provenance
from pipeline.system import files, paths, schema, tensors
from pipeline.system.errors import UserError, shown
from pipeline.system.tensors import Tensors

OUTPUTS = Path("outputs")
MODEL = "model.safetensors"
HISTORY = "history.csv"
METRICS = "metrics.json"
PREDICTIONS = "predictions.csv"
PARTS = (MODEL, HISTORY, METRICS, PREDICTIONS)
NETWORK = "network.json"
"""A fifth part: the network as data (models/recorded.py). Runs that were made before there was one have none."""
_MOST = {".json": schema.LARGEST_BYTES, ".csv": 2**26}
"""Bytes that are read of a part, by its kind; in CSV some five million rows, which take two GiB of memory."""
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
    numerics: schema.Name
    fingerprint: schema.Digest
    """The weights'."""


class Model(NamedTuple):
    """A file of weights."""

    weights: dict[str, np.ndarray]
    provenance: Provenance
    history: str
    """The SHA-256 of the history that belongs to these weights."""
    fingerprint: str
    network: bytes | None = None
    """The bytes of network.json, if the model names it."""


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in a model's file beside the weights."""

    provenance: Provenance
    history: schema.Digest
    network: schema.Digest | msgspec.UnsetType = msgspec.UNSET


# --- the model and its history -----------------------------------------------------------------------------------


def training_parts(weights: Tensors, history: Iterable[Step], provenance: Provenance, network: bytes | None = None) -> dict[str, bytes]:
    """A training's outputs: float32 weights that name what trained them, their history, of float32 losses, and their network as data."""
    rows = _csv(Step._fields, ((s.step, s.epoch, np.float32(s.loss)) for s in history))
    of_network = msgspec.UNSET if network is None else hashlib.sha256(network).hexdigest()
    metadata = _Metadata(provenance, hashlib.sha256(rows).hexdigest(), of_network)
    parts = {MODEL: tensors.dump(weights, ("training", msgspec.json.encode(metadata, order="sorted").decode())), HISTORY: rows}
    return parts if network is None else parts | {NETWORK: network}


def write_training(folder: Path, weights: Tensors, history: Iterable[Step], provenance: Provenance, network: bytes | None = None) -> None:
    """Write a training's outputs."""
    write(folder, training_parts(weights, history, provenance, network))


def again(folder: Path) -> str:
    """How a damaged part of a run is had again: DVC makes those of outputs/, and knows nothing of kept runs."""
    if folder == OUTPUTS:
        return "make it again with `dvc repro`"
    return f"put it back, or delete {folder}: `dvc repro` with its settings makes the run again, and `compare` keeps it"


def check_weights(weights: Tensors, problem: str) -> None:
    """Raise UserError, which begins with `problem`, where weights are not such as `read_model` takes: before a training as after it."""
    for name, array in weights.items():
        if not arrays.is_name(name):
            raise UserError(f"{problem}: {shown(name)} is called so; allowed: a name that can be shown and holds no space")
        if array.dtype not in (np.float32, np.int64):  # int64: how many batches a norm has seen
            raise UserError(f"{problem}: {shown(name)} is {array.dtype}, not float32")
        if not np.isfinite(array).all():
            raise UserError(f"{problem}: {shown(name)} holds NaN or infinity")


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """A model's weights, whatever trained them. Nothing in the file is executed. Raises UserError."""
    return _tensors(folder / MODEL, _model_bytes(folder)).tensors


def read_model(folder: Path) -> Model:
    """A model's weights and what trained them. Raises UserError as `model` does, and when the file is missing."""
    content = _model_bytes(folder)
    read = model(folder / MODEL, content, read_bytes(folder / NETWORK) if os.path.lexists(folder / NETWORK) else None)
    refuse_from_within(folder, read.provenance)
    return read


def refuse_from_within(folder: Path, provenance: Provenance) -> None:
    """Raise UserError where the source of a run's network would be looked for in the run's own folder, and started."""
    if provenance.network.is_own and Path.cwd().is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{folder}: you are in it, and a networks/ that came with it would be taken for yours; go to a folder of yours")


def model(path: Path, content: bytes | bytearray, network: bytes | None = None) -> Model:
    """The model in the bytes of a file, which is called `path` in errors, and its network in those of the file beside it.

    Raises:
        UserError: it is damaged, holds what no float32 weight can be, or does not say what trained it; the network is another's.
    """
    read = _tensors(path, content)
    check_weights(read.tensors, f"{path}: damaged")
    if read.metadata.keys() != {"training"}:
        raise UserError(f"{path}: does not say what trained it, and that alone; run `dvc repro` with this version, which trains again")
    metadata = schema.decode(_Metadata, read.metadata["training"].encode(), str(path))
    beside, named = path.parent / NETWORK, metadata.network or ""
    if network is None and named and metadata.provenance.network.is_own:
        raise UserError(f"{beside}: not found; {again(path.parent)}")  # one that its name makes needs no file beside the weights
    if network is not None and hashlib.sha256(network).hexdigest() != named:
        said = f"not the network of {MODEL}: changed" if named else f"{MODEL} says of no such file, so it was put there by hand"
        raise UserError(f"{beside}: {said}; {again(path.parent)}")
    return Model(read.tensors, metadata.provenance, metadata.history, tensors.fingerprint(read.tensors), network)


def _model_bytes(folder: Path) -> bytearray:
    try:
        return paths.read(folder / MODEL)
    except FileNotFoundError:
        raise UserError(f"{folder / MODEL}: not found; run `dvc repro` first, or name a folder under runs/") from None
    except OSError as error:
        raise UserError(f"{folder / MODEL}: cannot be read: {error.strerror}") from None


def _tensors(path: Path, content: bytes | bytearray) -> tensors.Content:
    try:
        return tensors.parse(content if isinstance(content, bytearray) else bytearray(content))
    except tensors.Damaged as reason:
        raise UserError(f"{path}: damaged, or not a safetensors file ({reason}); {again(path.parent)}") from None


def read_history(folder: Path) -> list[Step]:
    """Read the history. Raises UserError when it is missing, empty, damaged or not finite."""
    return history(folder / HISTORY, read_bytes(folder / HISTORY))


def history(path: Path, content: bytes, elsewhere: bool = False) -> list[Step]:
    """The history in the bytes of a file, which is called `path` in errors; of weights that were trained elsewhere it has no rows.

    Raises UserError as `read_history` does.
    """
    rows = _read_csv(path, content, Step._fields, lambda a, b, c: Step(_count(a), _count(b), _float32(c)), not elsewhere)
    if any(later.step <= earlier.step for earlier, later in itertools.pairwise(rows)):
        raise UserError(f"{path}: damaged: the column 'step' must increase; {again(path.parent)}")
    return rows


# --- metrics and predictions -------------------------------------------------------------------------------------


def evaluation_parts(metrics: Metrics, predictions: Iterable[Prediction]) -> dict[str, bytes]:
    """An evaluation's outputs; `confidence` must be a float32's value."""
    rows = ((p.index, p.actual, p.predicted, np.float32(p.confidence)) for p in predictions)
    return {METRICS: files.json_bytes(msgspec.to_builtins(metrics)), PREDICTIONS: _csv(Prediction.__struct_fields__, rows)}


def write_evaluation(folder: Path, metrics: Metrics, predictions: Iterable[Prediction]) -> None:
    """Write an evaluation's outputs."""
    write(folder, evaluation_parts(metrics, predictions))


def read_metrics(folder: Path) -> Metrics:
    """Read the metrics. Raises UserError when they are missing, damaged or not finite."""
    return metrics(folder / METRICS, read_bytes(folder / METRICS))


def metrics(path: Path, content: bytes) -> Metrics:
    """The metrics in the bytes of a file, which is called `path` in errors. Raises UserError as `read_metrics` does."""
    found = schema.decode(Metrics, content, str(path))
    if not all(map(math.isfinite, (found.accuracy, found.loss, *found.accuracy_per_class.values()))):
        raise UserError(f"{path}: damaged: a number in it is not finite")
    if not found.accuracy_per_class:
        raise UserError(f"{path}: damaged: 'accuracy_per_class' names no class")
    return found


def read_predictions(folder: Path) -> list[Prediction]:
    """Read the predictions. Raises UserError when they are missing, empty, damaged or not finite."""
    return predictions(folder / PREDICTIONS, read_bytes(folder / PREDICTIONS))


def predictions(path: Path, content: bytes) -> list[Prediction]:
    """The predictions in the bytes of a file, which is called `path` in errors. Raises UserError as `read_predictions` does."""
    rows = _read_csv(path, content, Prediction.__struct_fields__, lambda a, b, c, d: Prediction(_count(a), b, c, _float32(d)))
    if any(p.index != i for i, p in enumerate(rows)):
        raise UserError(f"{path}: damaged: the column 'index' must count from 0; {again(path.parent)}")
    return rows


# --- files ---------------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex. Raises UserError when it cannot be read."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def write(folder: Path, parts: Mapping[str, bytes]) -> None:
    """Write parts of a run, by their names."""
    for name, content in parts.items():
        files.write_bytes(folder / name, content)


def read_bytes(path: Path) -> bytes:
    """A part of a run. Raises UserError when it is missing, larger than its kind may be, or cannot be read."""
    try:
        return bytes(paths.read(path, _MOST.get(path.suffix, paths.LARGEST_BYTES)))
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


def _read_csv(path: Path, content: bytes, header: tuple[str, ...], row: Callable[..., Row], some: bool = True) -> list[Row]:
    try:
        lines = csv.reader(io.StringIO(content.decode()))
        if (first := next(lines, None)) != list(header):
            raise ValueError(f"its first line is {first!r:.80}, not {','.join(header)}")
        rows, written = [], []
        for fields in lines:
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} fields in a row of {len(header)}")
            rows.append(row(*fields))
            written.append(fields)
        if some and not rows:
            raise ValueError("it has no rows")
        if _csv(header, written) != content:  # another program could read other numbers
            raise ValueError("it is written otherwise than the pipeline writes: another end of a line, or quotation marks")
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: damaged: {error!s:.200}") from None
    return rows


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15 and str(int(text)) == text):
        raise ValueError(f"{shown(text)} where a whole number of at most 15 digits must be")
    return int(text)


def _float32(text: str) -> float:
    value = float(text)
    if not abs(value) <= LARGEST_FLOAT32:
        raise ValueError(f"{value} where a finite float32 must be")
    if str(np.float32(value)) != text:  # it would count as equal to a number that it is not, or another program could read another
        raise ValueError(f"{shown(text)} where the shortest form of a float32 must be")
    return value
