"""Networks and single steps of training, for tests of the numerics around a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline import numerics
from pipeline.workers import ALONE, Group
from tests.steps import CPU, drawn_set

OWN_FILE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(3072, classes)

    def forward(self, x):
        return self.layer(x.flatten(1))
"""
"""A user's file with a small network, for images of 3 x 32 x 32."""


class Viewed(nn.Module):
    """A last layer that views its input as rows, as the tutorial's model does, but straight after a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(60, 10)

    def forward(self, x):
        return self.fc(x.view(-1, 60))


def own_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3), nn.Conv2d(8, 12, (5, 1), bias=False), Viewed(),
    )  # fmt: skip


def batch(images: int) -> tuple[Tensor, Tensor]:
    data = drawn_set(images)
    return torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels).long()


def step(
    model: nn.Module, images: Tensor, labels: Tensor, name: str = "exact", group: Group = ALONE, of: int | None = None
) -> list[Tensor]:
    """The loss and the gradients."""
    loss, gradients = numerics.select(name, CPU).loss_and_gradients(model, images, labels, group, of or len(images))
    return [loss, *gradients]


def equal(tensors: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


class Turned(torch.autograd.Function):
    """What it is given, and the gradient turned around: a way back of its own, which no form has."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return -g
