"""Networks and single steps of training, for tests of the numerics around a model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


class Residual(nn.Module):
    """Two convolutions with batch norm beside a shortcut, which drops rows and adds channels of zeros where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, out - channels
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x):
        shortcut = x
        if self.added:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet20(nn.Module):
    """The ResNet for CIFAR-10 with 20 layers and 0.27 million weights.

    Source: He, Zhang, Ren and Sun, https://arxiv.org/abs/1512.03385, section 4.2, with option A.
    """

    def __init__(self, classes: int = 10, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        sizes = [(width, width, 1)] * 3 + [(width, 2 * width, 2)] + [(2 * width, 2 * width, 1)] * 2
        sizes += [(2 * width, 4 * width, 2)] + [(4 * width, 4 * width, 1)] * 2
        self.blocks = nn.Sequential(*(Residual(*each) for each in sizes))
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x):
        return self.fc(self.blocks(F.relu(self.bn(self.conv(x)))).mean((2, 3)))


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
