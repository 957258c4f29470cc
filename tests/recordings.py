"""Networks of seed 5 that are recorded for 32 x 32 images of ten classes, and read as one that was received."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pipeline import numerics
from pipeline.exact.initialisation import initial_values
from pipeline.models import received
from pipeline.models.recorded import Recording
from tests.steps import CPU

SHAPE, CLASSES = (3, 32, 32), 10
EXACT = numerics.select("exact", CPU)


def built(make: Callable[[], nn.Module]) -> nn.Module:
    with initial_values(5):
        return make()


def weights(network: nn.Module) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def read(content: bytes, network: nn.Module) -> Recording:
    found = received.read(content, weights(network), CLASSES, SHAPE, "network.json")
    assert found is not None
    return found
