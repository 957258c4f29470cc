"""Small networks of layers in a row and of ways side by side: LeNet, VGG, GoogLeNet, PNASNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.miniatures.parts import CLASSES, normed, rows


class LeNet(nn.Module):
    """Convolutions without padding and three linear layers. Source: LeCun et al., Gradient-based learning, 1998."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 5), nn.Conv2d(4, 6, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(150, 20), nn.Linear(20, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Pools as functions, and a view by the number of images."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class VGG(nn.Module):
    """One long sequence of layers with ReLU in place. Source: https://arxiv.org/abs/1409.1556, with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (4, "M", 8, 8, "M", 8, "M", "M", "M"):
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers, nn.AvgPool2d(1, 1))
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """An average over windows of one pixel is among it."""
        out = self.features(x)
        return self.classifier(out.view(len(out), -1))


class Inception(nn.Module):
    """Four ways with windows of several sizes, side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def way(*layers: tuple[int, int, int]) -> nn.Sequential:
            parts: list[nn.Module] = []
            for inputs, outputs, size in layers:
                parts += [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.BatchNorm2d(outputs), nn.ReLU(True)]
            return nn.Sequential(*parts)

        self.one, self.two = way((channels, 4, 1)), way((channels, 3, 1), (3, 6, 3))
        self.three = way((channels, 2, 1), (2, 3, 3), (3, 3, 3))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *way((channels, 3, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """16 channels of any number."""
        return torch.cat([self.one(x), self.two(x), self.three(x), self.pooled(x)], 1)


class GoogLeNet(nn.Module):
    """Several windows side by side. Source: https://arxiv.org/abs/1409.4842, with batch norm and without the heads beside the main one."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(True))
        self.a, self.b, self.c = Inception(6), Inception(16), Inception(16)
        self.shrink, self.average = nn.MaxPool2d(3, stride=2, padding=1), nn.AvgPool2d(8, stride=1)
        self.linear = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """One layer shrinks twice."""
        out = self.b(self.shrink(self.a(self.before(x))))
        out = self.average(self.c(self.shrink(out)))
        return self.linear(rows(out))


class Separable(nn.Module):
    """One window a channel, of 7 or 5, beside a maximum over 3."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.wide = nn.Sequential(nn.Conv2d(inputs, outputs, 7, stride, 3, bias=False, groups=inputs), nn.BatchNorm2d(outputs))
        self.less = nn.Sequential(nn.Conv2d(inputs, outputs, 5, stride, 2, bias=False, groups=inputs), nn.BatchNorm2d(outputs))
        self.pooled, self.joined = normed(inputs, outputs), normed(2 * outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Two sums, side by side, joined by a convolution of single pixels."""
        maximum = F.max_pool2d(x, 3, stride=self.stride, padding=1)
        if self.stride == 2:
            maximum = self.pooled(maximum)
        return F.relu(self.joined(torch.cat([F.relu(self.wide(x) + maximum), F.relu(self.less(x) + maximum)], 1)))


class PNASNet(nn.Module):
    """Cells that a search found. Source: https://arxiv.org/abs/1712.00559."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = normed(3, 4, 3)
        self.cells = nn.Sequential(Separable(4, 4, 1), Separable(4, 8, 2), Separable(8, 16, 2))
        self.linear = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The last images are one window."""
        return self.linear(rows(F.avg_pool2d(self.cells(F.relu(self.stem(x))), 8)))
