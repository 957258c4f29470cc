"""`numerics: exact`: the package of exact numerics, whose refusals become mistakes that a user can fix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from pipeline.exact import engine
from pipeline.exact.errors import Unsupported
from pipeline.exact.group import Group
from pipeline.system.errors import UserError


@contextlib.contextmanager
def refusals_explained() -> Iterator[None]:
    """Name native numerics as the other remedy wherever exact ones refuse."""
    try:
        yield
    except Unsupported as reason:
        raise UserError(f"{reason} or set numerics: native") from None


class Exact(engine.Exact):
    """Exact numerics, as `numerics.select` returns them. Raises UserError where the package raises Unsupported."""

    @refusals_explained()
    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """As the package's."""
        return super().logits(model, images)

    @refusals_explained()
    def heads(self, model: nn.Module, images: Tensor) -> list[Tensor]:
        """As the package's."""
        return super().heads(model, images)

    @refusals_explained()
    def loss_and_gradients(
        self, model: nn.Module, images: Tensor, labels: Tensor, group: Group, batch_images: int, **settings: Any
    ) -> tuple[Tensor, list[Tensor | None]]:
        """As the package's."""
        return super().loss_and_gradients(model, images, labels, group, batch_images, **settings)

    @refusals_explained()
    def scores(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the package's."""
        return super().scores(logits, labels)
