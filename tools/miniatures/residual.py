"""Small networks with shortcuts: ResNet, ResNeXt, PreActResNet, SENet, DenseNet, DPN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.miniatures.parts import CLASSES, normed, rows, shortcut


class Residual(nn.Module):
    """Narrow, then 3 x 3, then wide, in groups if there are several, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        width = outputs // 2
        self.first, self.second, self.third = normed(inputs, width), normed(width, width, 3, stride, groups), normed(width, outputs)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The sum in place."""
        out = self.third(F.relu(self.second(F.relu(self.first(x)))))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    """Bottlenecks, the last images averaged in windows of 4. Source: https://arxiv.org/abs/1512.03385."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.stem = normed(3, 8, 3)
        self.blocks = nn.Sequential(*(Residual(*each, groups) for each in ((8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 16, 2), (16, 16, 2))))
        self.linear = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Averages as a function."""
        return self.linear(rows(F.avg_pool2d(self.blocks(F.relu(self.stem(x))), 4)))


class ResNeXt(ResNet):
    """Bottlenecks of two groups. Source: https://arxiv.org/abs/1611.05431."""

    def __init__(self) -> None:
        super().__init__(groups=2)


class PreActivation(nn.Module):
    """Norm and ReLU before each convolution; with `squeeze`, channels are weighed by what the whole image holds."""

    def __init__(self, inputs: int, outputs: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.squeeze = squeeze
        if squeeze:
            self.down, self.up = nn.Conv2d(outputs, outputs // 4, 1), nn.Conv2d(outputs // 4, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The shortcut begins after the first ReLU where it has weights."""
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        if self.squeeze:
            weight = F.avg_pool2d(out, int(out.size(2)))
            out = out * self.up(F.relu(self.down(weight))).sigmoid()
        return out + shortcut


class PreActResNet(nn.Module):
    """Norm and ReLU first. Source: https://arxiv.org/abs/1603.05027."""

    squeeze = False

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        sizes = ((4, 4, 1), (4, 8, 2), (8, 8, 1), (8, 8, 2))
        self.blocks = nn.Sequential(*(PreActivation(*each, self.squeeze) for each in sizes))
        self.linear = nn.Linear(4 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Four windows are left of each channel."""
        return self.linear(rows(F.avg_pool2d(self.blocks(self.conv(x)), 4)))


class SENet(PreActResNet):
    """Channels weighed by gates. Source: https://arxiv.org/abs/1709.01507."""

    squeeze = True


class Dense(nn.Module):
    """What it computes stands before what it was given."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Channels: those given and `growth` more."""
        return torch.cat([self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x)))))), x], 1)


class DenseNet(nn.Module):
    """Layers that see all before them, with transitions between. Source: https://arxiv.org/abs/1608.06993."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.dense1, self.bn1, self.narrow1 = nn.Sequential(Dense(6, 3), Dense(9, 3)), nn.BatchNorm2d(12), nn.Conv2d(12, 6, 1, bias=False)
        self.dense2, self.bn2, self.narrow2 = nn.Sequential(Dense(6, 3), Dense(9, 3)), nn.BatchNorm2d(12), nn.Conv2d(12, 6, 1, bias=False)
        self.dense3, self.bn3 = Dense(6, 3), nn.BatchNorm2d(9)
        self.linear = nn.Linear(9 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Windows of 2 after each transition."""
        out = F.avg_pool2d(self.narrow1(F.relu(self.bn1(self.dense1(self.conv(x))))), 2)
        out = F.avg_pool2d(self.narrow2(F.relu(self.bn2(self.dense2(out)))), 2)
        return self.linear(rows(F.avg_pool2d(F.relu(self.bn3(self.dense3(out))), 4)))


class DualPath(nn.Module):
    """Some channels are added to those before them, the others are put beside them."""

    def __init__(self, inputs: int, width: int, added: int, beside: int, stride: int, first: bool) -> None:
        super().__init__()
        self.added = added
        self.one, self.two, self.three = normed(inputs, width), normed(width, width, 3, stride, 2), normed(width, added + beside)
        self.shortcut = normed(inputs, added + beside, 1, stride) if first else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        """Slices of both."""
        out, x, d = self.three(F.relu(self.two(F.relu(self.one(x))))), self.shortcut(x), self.added
        return F.relu(torch.cat([x[:, :d, :, :] + out[:, :d, :, :], x[:, d:, :, :], out[:, d:, :, :]], 1))


class DPN(nn.Module):
    """Dual paths. Source: https://arxiv.org/abs/1707.01629."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = normed(3, 6, 3)
        self.blocks = nn.Sequential(DualPath(6, 4, 8, 2, 1, True), DualPath(12, 4, 8, 2, 1, False), DualPath(14, 8, 8, 4, 4, True))
        self.linear = nn.Linear(16 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Four windows are left of each of 16 channels."""
        return self.linear(rows(F.avg_pool2d(self.blocks(F.relu(self.stem(x))), 4)))
