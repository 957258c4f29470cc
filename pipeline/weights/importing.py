"""The `import` command: a checkpoint that was trained elsewhere -> a run that predict, export, evaluate and compare take."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import device as devices
from pipeline import evaluation, models, numerics, params, sources
from pipeline.data import dataset
from pipeline.data.dataset import Dataset, Description, Shape
from pipeline.inputs import CACHE
from pipeline.models import checkpoints, recording, trial
from pipeline.params import SIMPLE_CNN, Model
from pipeline.runs import keeping, outputs
from pipeline.runs.provenance import Imported, Provenance
from pipeline.system import files, paths, schema
from pipeline.system.errors import UserError, shown

IMPORTED = Path("imported")
"""Where a run stands that was not evaluated: there were no images."""
NOWHERE = "0" * 64
"""The digest of no data set."""
MOST_NAMES = 2**20


def import_checkpoint(
    path: Path, model: Model, names: Path | None = None, size: int | None = None, entry: str | None = None, numerics_name: str = "exact"
) -> list[str]:
    """Make a run of the weights in `path` for the network `model`; return what is to be said of it, a line each.

    With a data set in data/ it is evaluated there and kept under runs/. Without one it is for predict and export.

    Raises:
        UserError: the checkpoint cannot be read, or its weights are not the network's; nothing is written.
    """
    device, chosen = numerics.prepared(devices.CPU, numerics_name)
    data = dataset.load() if os.path.exists(dataset.DATASET) else None
    shape = _shape(model, size, data)
    for_ten = models.build(model, shape, 10)
    read = checkpoints.named(checkpoints.read(path, entry), for_ten)
    count = checkpoints.classes_of(read.weights, for_ten, 10)
    classes = _classes(names, data, count)
    network = models.build(model, shape, count)
    weights = checkpoints.fit(read.weights, network, path, model.name)
    outputs.check_weights(weights, f"{path}: cannot be kept")
    models.load(network, weights, model.name)
    trial.try_out(network, model, shape, count, chosen, device)
    fits = data is not None and data.shape == shape and len(data.classes) == count
    described = Provenance(
        data=data.description if data is not None and fits else Description(name="none", digest=NOWHERE, classes=classes, shape=shape),
        seed=0, numerics=chosen.version, train=None, model=msgspec.UNSET if model == Model() else model, code=sources.digest("train"),
        source=models.source(model, chosen.version) or msgspec.UNSET,
        imported=Imported(checkpoint=read.digest),
    )  # fmt: skip
    schema.decode(Provenance, msgspec.json.encode(described), f"{path}: cannot be kept")  # names of classes may be any text
    with models.mistakes_explained(model):
        as_data = recording.record(network, shape, chosen, device, trained=True)
    parts = outputs.training_parts(weights, [], described, as_data)
    said = [f"{path}: {len(weights)} tensors of {model.name} for {count} classes, trained elsewhere", *read.said]
    if data is None or not fits:
        target = _put(path.stem, parts)
        why = "there is no data set in data/" if data is None else f"data/ has {len(data.classes)} classes of {list(data.shape)}"
        return [*said, f"{target}: for predict and export; not evaluated, for {why}"]
    evaluated = evaluation.evaluate(weights, data, device, chosen, evaluation.BATCHES, model)
    parts |= outputs.evaluation_parts(evaluated.metrics, evaluated.predictions)
    run = keeping.made(path.parent, parts, evaluation.environment(evaluated, device, evaluation.BATCHES))
    at = keeping.put(run, parts, keeping.runs_folder())
    return [*said, f"{data.name}: accuracy {evaluated.metrics.accuracy:.2%}, loss {evaluated.metrics.loss:.4f}", f"kept as {at}"]


def _put(stem: str, parts: Mapping[str, bytes]) -> Path:
    """Put a run that was not evaluated into its folder, if it is not there yet; return that. What it is decides its name: a checkpoint
    may be imported again, with other arguments.

    Raises:
        UserError: something else stands under its name.
    """
    digest = hashlib.sha256(b"".join(hashlib.sha256(parts[name]).digest() for name in sorted(parts))).hexdigest()
    target = IMPORTED / f"{stem}-{digest[:8]}"
    with files.in_turn(Path(CACHE, "import.lock")):
        if not os.path.lexists(target):
            with files.publishing(target) as part:
                outputs.write(part, parts)
        elif not all((target / name).is_file() and paths.read(target / name) == content for name, content in parts.items()):
            raise UserError(f"{target}: is there, but is not the run of that name; move it away and import again")
    return target


def model_of(name: str, arguments: list[str], mean: str | None, std: str | None) -> Model:
    """The network that the command line names. Raises UserError: a value is not such as params.yaml takes."""
    given: dict[str, Any] = {"name": name}
    for each in arguments:
        key, equals, value = each.partition("=")
        if not equals:
            raise UserError(f"--argument {shown(each)}: not NAME=VALUE, such as width=32")
        try:
            given.setdefault("arguments", {})[key] = YAML(typ="safe").load(value)
        except YAMLError:
            raise UserError(f"--argument {shown(each)}: not a value of YAML, such as width=32") from None
    if mean is not None or std is not None:
        if mean is None or std is None:
            raise UserError("--mean and --std belong together: give both")
        try:
            given["normalize"] = {"mean": [float(x) for x in mean.split(",")], "std": [float(x) for x in std.split(",")]}
        except ValueError:
            raise UserError(f"--mean {shown(mean)} --std {shown(std)}: not numbers such as 0.485,0.456,0.406") from None
    return params.section(Model, given, "the command line")


def _shape(model: Model, size: int | None, data: Dataset | None) -> Shape:
    if data is not None and size in (None, data.shape[1]):
        return data.shape
    side = size or (32 if model.name == SIMPLE_CNN or model.is_own else 224)
    return 3, side, side


def _classes(names: Path | None, data: Dataset | None, count: int) -> tuple[str, ...]:
    if names is None:
        return data.classes if data is not None and len(data.classes) == count else tuple(f"class {number}" for number in range(count))
    try:
        lines = paths.read(names, MOST_NAMES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--classes {names}: cannot be read: {getattr(error, 'strerror', None) or error}; name a text file, a name a line"
        ) from None
    if len(lines) != count:
        raise UserError(f"--classes {names}: has {len(lines)} names, and the checkpoint {count} classes; name each, in order, a line each")
    return tuple(lines)
