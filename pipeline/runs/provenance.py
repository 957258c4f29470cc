"""What trained a model's weights. It is written into the file of the weights, so it goes wherever they go."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from pipeline.data.dataset import Description
from pipeline.params import Model, Params, Seed, Train, Workers
from pipeline.system import schema


class Imported(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights that were trained elsewhere."""

    checkpoint: schema.Digest
    """The SHA-256 of the file that held them."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that the bits of the weights depend on, and nothing that may differ between equal trainings.

    So the device is no part of it.
    """

    data: Description
    seed: Seed
    numerics: schema.Name
    """With its version: `exact-3`, or `native`."""
    train: Train | None
    """None of weights that were trained elsewhere."""
    model: Model | msgspec.UnsetType = msgspec.UNSET
    """The network; not written where it is the tutorial's, so that runs made before there were others keep their digests."""
    source: Annotated[str, schema.text("a digest or a release", r"[\w .+-]{0,100}")] | msgspec.UnsetType = msgspec.UNSET
    """What else the network's bits depend on (`models.source`); not written where that is nothing."""
    code: schema.Digest
    """The digest of the sources that trained (`sources.digest`)."""
    imported: Imported | msgspec.UnsetType = msgspec.UNSET
    weights: schema.Digest | msgspec.UnsetType = msgspec.UNSET
    """The SHA-256 of the file that `model.weights` names; not written where it names none."""
    workers: Workers | None = None
    """For native numerics how many workers trained, for their bits depend on it; else None."""

    def __post_init__(self) -> None:
        if (self.train is None) == isinstance(self.imported, msgspec.UnsetType):
            raise ValueError("weights are either of a training here ('train') or of elsewhere ('imported')")
        if bool(self.train and self.network.weights) == isinstance(self.weights, msgspec.UnsetType):
            raise ValueError("'weights' is the SHA-256 of the file that a training begins with, which 'model.weights' names: both, or none")

    @property
    def recipe(self) -> Train:
        """The settings of a training that was not elsewhere."""
        assert self.train is not None
        return self.train

    @property
    def network(self) -> Model:
        """The network that was trained."""
        return Model() if isinstance(self.model, msgspec.UnsetType) else self.model


def described_by(params: Params, numerics: str, data: Description, code: str, source: str = "", weights: str = "") -> Provenance:
    """The training that `params` describe, with this version of the numerics, on this data set, by our sources and the network's.

    `weights` is the SHA-256 of the file of weights that it begins with.
    """
    return Provenance(
        data=data, seed=params.seed, numerics=numerics, train=params.train, code=code,
        model=msgspec.UNSET if params.model == Model() else params.model, source=source or msgspec.UNSET, weights=weights or msgspec.UNSET,
        workers=params.workers if numerics == "native" else None,
    )  # fmt: skip


def differences(trained: Provenance, wanted: Provenance) -> list[str]:
    """What differs between two trainings, a phrase each; the sources apart, which may differ and give the same bits."""
    flat, others = flattened(trained), flattened(wanted)
    differing = [key for key in flat | others if key != "code" and flat.get(key) != others.get(key)]
    return [f"{key} is {abbreviated(flat.get(key))}, not {abbreviated(others.get(key))}" for key in differing]


def flattened(record: msgspec.Struct, prefix: str = "") -> dict[str, Any]:
    """All fields, those of a field under dotted names, such as `train.lr` and `train.optimizer.name`, those with defaults among them."""
    flat: dict[str, Any] = {}
    for key, value in msgspec.structs.asdict(record).items():
        if isinstance(value, msgspec.UnsetType):
            value = Model() if key == "model" else ""
        name = f"{prefix}{key}"
        flat |= flattened(value, f"{name}.") if isinstance(value, msgspec.Struct) else {name: msgspec.to_builtins(value)}
    return flat


def chosen(train: Train) -> dict[str, Any]:
    """The settings of a training that every run has, and what else is not as it is by default, those of sections under dotted names."""
    required = {field.name: getattr(train, field.name) for field in msgspec.structs.fields(train) if field.required}
    usual = flattened(Train(**required))
    return {key: value for key, value in flattened(train).items() if key in required or value != usual[key]}


def in_words(network: Model) -> str:
    """A network with its arguments, and what else is not as by default."""
    arguments = ", ".join(f"{name}={value!s:.200}" for name, value in network.arguments.items())
    called = f"{network.name}({arguments})" if arguments else network.name
    besides = [f"{key} {value!s:.200}" for key, value in flattened(network).items()
               if not key.startswith(("name", "arguments")) and value != flattened(Model()).get(key)]  # fmt: skip
    return ", ".join([called, *besides])


def abbreviated(value: object) -> str:
    """A value for a sentence: 12 digits of a digest are enough."""
    text = str(value)
    return f"{text:.12}..." if len(text) > 40 else text
