"""What trained a model's weights. It is written into the file of the weights, so it goes wherever they go."""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline import schema
from pipeline.data.dataset import Description
from pipeline.params import Params, Seed, Train, Workers


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that the bits of the weights depend on, and nothing that may differ between equal trainings.

    So the device is no part of it.
    """

    data: Description
    seed: Seed
    numerics: schema.Name
    """With its version: `exact-3`, or `native`."""
    train: Train
    code: schema.Digest
    """The digest of the sources that trained (`sources.digest`)."""
    workers: Workers | None = None
    """For native numerics how many workers trained, for their bits depend on it; else None."""


def described_by(params: Params, numerics: str, data: Description, code: str) -> Provenance:
    """The training that `params` describe, with this version of the numerics, on this data set, by these sources."""
    workers = params.workers if numerics == "native" else None
    return Provenance(data=data, seed=params.seed, numerics=numerics, train=params.train, code=code, workers=workers)


def differences(trained: Provenance, wanted: Provenance) -> list[str]:
    """What differs between two trainings, a phrase each; the sources apart, which may differ and give the same bits."""
    flat, others = flattened(trained), flattened(wanted)
    differing = [key for key in flat if key != "code" and flat[key] != others[key]]
    return [f"{key} is {abbreviated(flat[key])}, not {abbreviated(others[key])}" for key in differing]


def flattened(record: msgspec.Struct, prefix: str = "") -> dict[str, Any]:
    """All fields, those of a field under dotted names, such as `train.lr` and `train.optimizer.name`, those with defaults among them."""
    flat: dict[str, Any] = {}
    for key, value in msgspec.structs.asdict(record).items():
        name = f"{prefix}{key}"
        flat |= flattened(value, f"{name}.") if isinstance(value, msgspec.Struct) else {name: msgspec.to_builtins(value)}
    return flat


def abbreviated(value: object) -> str:
    """A value for a sentence: 12 digits of a digest are enough."""
    text = str(value)
    return f"{text:.12}..." if len(text) > 40 else text
