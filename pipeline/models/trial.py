"""A network is tried out on images of noise before any real one, so that whatever will be refused is refused then."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.exact.masks import Draws
from pipeline.exact.threads import Exchange, together
from pipeline.models import Shape, bounds, mistakes_explained
from pipeline.params import Model
from pipeline.system.errors import UserError
from pipeline.workers import ALONE

if TYPE_CHECKING:
    from pipeline.numerics import Numerics

IMAGES = 2


def try_out(network: nn.Module, model: Model, shape: Shape, classes: int, numerics: Numerics, device: torch.device) -> None:
    """One step and one evaluation of two images of noise. Changes nothing.

    With exact numerics each image's logits must be those that it has alone; and a network of somebody's own must learn the same of both
    together as of each in a share of its own.

    Raises:
        UserError: the network does what it cannot, what the numerics refuse, gives other than a row of logits an image, or mixes images.
    """
    numbers = np.arange(IMAGES * int(np.prod(shape))) * 2654435761 % 2**32 >> 24
    images = torch.from_numpy(numbers.astype(np.uint8).reshape(IMAGES, *shape)).to(device)
    labels = torch.zeros(IMAGES, dtype=torch.int64, device=device)
    state, exact = torch.get_rng_state(), numerics.version != "native"

    def step(group: Any) -> list[Tensor]:  # ours, or the package's own
        share = group.share(IMAGES)
        draws = Draws(0, torch.zeros(1, dtype=torch.int64, device=device), share.start)
        loss, gradients = numerics.loss_and_gradients(copy.deepcopy(network), images[share], labels[share], group, IMAGES, draws=draws)
        return [loss, *(gradient for gradient in gradients if gradient is not None)]

    try:
        with mistakes_explained(model):
            _check_logits(numerics.heads(copy.deepcopy(network), images), model, classes)
            learned = step(ALONE)
            if exact and model.is_own and not all(map(_equal, learned, together(Exchange(IMAGES), step)[0])):
                raise _mixed(model, "learns something else of images together than of each in a share of its own")
            evaluated = copy.deepcopy(network).eval()
            with torch.inference_mode(), bounds.unchanged(evaluated) if exact else contextlib.nullcontext():
                logits = numerics.logits(evaluated, images)
                alone = torch.cat([numerics.logits(evaluated, image) for image in images.split(1)])
            if exact and not _equal(logits, alone):
                raise _mixed(model, "gives an image other logits alone than with another")
    finally:
        torch.set_rng_state(state)


def _check_logits(given: list[Tensor], model: Model, classes: int) -> None:
    for logits in given:
        if not isinstance(logits, Tensor) or list(logits.shape) != [IMAGES, classes]:
            gives = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"model.name {model.name} gives {gives} for {IMAGES} images, and the data has {classes} classes: "
                f"it must give [{IMAGES}, {classes}], a number for each class; mend its last layer"
            )


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def _mixed(model: Model, what: str) -> UserError:
    return UserError(
        f"model.name {model.name} {what}: it computes with how many there are (len(x), x.shape[0], x.numel()), keeps what it has seen, or "
        "is not deterministic; do without"
    )
