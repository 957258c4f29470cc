"""The network of a run: as its network.json has it, or as the source that params.yaml names makes it."""

from __future__ import annotations

import ast
import contextlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pipeline import models, params
from pipeline.device import CPU
from pipeline.models import bounds, normalisation, received, recorded, recording
from pipeline.params import PARAMS, Model
from pipeline.runs.outputs import NETWORK
from pipeline.system.errors import UserError, shown

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset
    from pipeline.models import Shape
    from pipeline.numerics import Numerics

LARGEST_ARGUMENT = 10_000
"""Of a network of one's own that a received run names: a loop of so many layers, or weights of so many rows and columns, end soon."""
MOST_MORE = 2**22
"""Numbers by which a network may be larger than weights that are said to be its own: 16 MiB."""


class Unasked(UserError):
    """A run names something of `networks/` that is not called for it."""

    def __init__(self, model: Model, why: str) -> None:
        """`why` is a phrase."""
        remedy = f"if you trust the run, put its model section into {PARAMS}"
        super().__init__(f"model.name {shown(model.name)} of the run was not made here, for {why}; {remedy}")
        self.why = why


def _why_unasked(model: Model) -> str:
    """Why what a run names of `networks/` is not called for it, as a phrase; nothing where it is, and so is what params.yaml names.

    Raises:
        UserError: there is no such file, or it has no such network.
    """
    if not model.is_own:
        return ""
    with contextlib.suppress(UserError):  # who received a run may have no settings, or none that can be read
        if params.load().model == model:
            return ""
    if any(isinstance(value, str) for value in model.arguments.values()):
        return "what it would do with texts in its arguments is not known"
    if any(not -LARGEST_ARGUMENT <= value <= LARGEST_ARGUMENT for value in model.arguments.values() if not isinstance(value, str)):
        return f"a number above {LARGEST_ARGUMENT} in its arguments may ask for any memory and time"
    path, wanted = models.file_and_class(model.name)
    with contextlib.suppress(OSError, ValueError, SyntaxError):  # which says who starts the file
        tree = ast.parse(path.read_bytes())
        if not any(isinstance(part, ast.ClassDef) and part.name == wanted for part in tree.body):
            return "no such class stands in that file, and what it would do is not known"
    if not (isinstance(made := models.of_file(model.name), type) and issubclass(made, nn.Module)):
        return "it is no class of torch.nn.Module, and what it would do is not known"
    return ""


def check_received(model: Model, shape: Shape, classes: int, weights: dict[str, np.ndarray] | Any) -> None:
    """Raise UserError where the network that a received run says is not to be made here (Unasked), or is larger than the weights beside it,
    before it does anything, or takes memory or time.
    """
    if why := _why_unasked(model):
        raise Unasked(model, why)
    numbers = sum(array.size for array in weights.values())
    for most, device in ((math.inf, "meta"), (2 * numbers + MOST_MORE, CPU)):  # a few ask for values, which are not there on meta
        try:
            with bounds.made_of_at_most(most, weights, model.name), torch.device(device):
                sizes = models.build(model, shape, classes)
        except bounds.Larger:
            raise
        except UserError:
            continue
        if (needs := sum(t.numel() for t in sizes.state_dict().values())) > numbers + MOST_MORE:
            raise UserError(f"the weights are not {model.name}'s: they are {numbers} numbers, and the run says a network of {needs}")
        return


def recorded_network(
    network: bytes | None, model: Model, source: object, weights: Mapping[str, np.ndarray], classes: int, shape: Shape, numerics: str
) -> recorded.Recording | None:
    """What a run's network.json says of its network, where that is to be computed with.

    None where the source is: the file is not there or could not be recorded; the network is not of a file of somebody's own, so that
    nothing that came with a run makes another network a resnet18; or the numerics are native, whose bits the module's own way decides,
    and the source is the one that trained.

    Raises:
        UserError: the file is damaged, or does not fit the weights; the network is said to be of a file elsewhere than in `networks/`.
    """
    if model.is_own:
        models.place(model.name)  # nothing is started, but no training here was of such a name
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
        check_received(model, shape, classes, weights)
    network = models.build(model, shape, classes) if found is None else recorded.Recorded(found)
    models.load(network, weights, model.name)
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
        check_received(model, data.shape, len(data.classes), weights)
        here = models.build(model, data.shape, len(data.classes), 0)
        if model.normalize is True:
            normalisation.set_numbers(here, data.train_images)
        with models.mistakes_explained(model):
            if recording.record(here, data.shape, numerics, torch.device(CPU)) == network:
                return ""
    except Unasked as refused:
        return f"{model.name} was not made here, for {refused.why}"
    except UserError:
        return f"{model.name} cannot be made here, so that it is that network was not checked"
    return f"{model.name} here is another network"
