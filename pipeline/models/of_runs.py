"""The network of a run: as its network.json has it, or as the source that params.yaml names makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from pipeline import models
from pipeline.device import CPU
from pipeline.models import normalisation, received, recorded, recording
from pipeline.params import Model
from pipeline.runs.outputs import NETWORK
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset
    from pipeline.models import Shape
    from pipeline.numerics import Numerics


def recorded_network(
    network: bytes | None, model: Model, source: object, weights: Mapping[str, np.ndarray], classes: int, shape: Shape, numerics: str
) -> recorded.Recording | None:
    """What a run's network.json says of its network, where that is to be computed with.

    None where the source is: the file is not there or could not be recorded; the network is not of a file of somebody's own, so that
    nothing that came with a run makes another network a resnet18; or the numerics are native, whose bits the module's own way decides,
    and the source is the one that trained.

    Raises:
        UserError: the file is damaged, or does not fit the weights.
    """
    found = None if network is None else received.read(network, weights, classes, shape, NETWORK)
    if found is None or not model.is_own:
        return None
    if numerics != "native":
        return found
    try:
        return None if models.source(model, numerics) == ("" if not isinstance(source, str) else source) else found
    except UserError:
        return found


def build(found: recorded.Recording | None, model: Model, classes: int, shape: Shape, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """The network with a run's weights, as it was recorded or as its source makes it."""
    if found is None:
        return models.with_weights(model, shape, classes, weights)
    models.load(network := recorded.Recorded(found), weights, model.name)
    return network


def is_another(claimed: bytes | None, trained: bytes, numerics: str) -> bool:
    """Whether the network.json that came with a run says another network than the one that was trained.

    One that says why there is none says nothing of a native run, and is another of an exact one, whose operations can be recorded.
    """
    if claimed is not None and received.is_refusal(claimed):
        return numerics != "native" and not received.is_refusal(trained)
    return claimed is not None and claimed != trained


def differs_here(network: bytes, model: Model, data: Dataset, weights: Mapping[str, np.ndarray], numerics: Numerics) -> str:
    """A phrase where the source that is here makes another network for a data set than a run's network.json; else nothing."""
    try:
        if why := models.unasked(model):
            return f"{model.name} was not made here, for {why}"
        models.check_received(model, data.shape, len(data.classes), weights)
        here = models.build(model, data.shape, len(data.classes), 0)
        if model.normalize is True:
            normalisation.set_numbers(here, data.train_images)
        with models.mistakes_explained(model):
            if recording.record(here, data.shape, numerics, torch.device(CPU)) == network:
                return ""
    except UserError:
        return f"{model.name} cannot be made here, so that it is that network was not checked"
    return f"{model.name} here is another network"
