"""Small networks of windows a channel or a group: MobileNet and its second, ShuffleNetV2, EfficientNet, RegNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.miniatures.parts import CLASSES, normed, rows, shortcut


class MobileNet(nn.Module):
    """A window a channel, then single pixels. Source: https://arxiv.org/abs/1704.04861."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((4, 8, 1), (8, 8, 2), (8, 16, 2), (16, 16, 2))
        parts = [part for inputs, outputs, stride in sizes for part in (normed(inputs, inputs, 3, stride, inputs), normed(inputs, outputs))]
        self.parts = nn.ModuleList([normed(3, 4, 3), *parts])
        self.linear = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """ReLU after each."""
        for part in self.parts:
            x = F.relu(part(x))
        return self.linear(rows(F.avg_pool2d(x, 4)))


class Inverted(nn.Module):
    """Wide in the middle, without ReLU at the end, a shortcut with weights where channels change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, wide = stride, 4 * inputs
        self.expand, self.depth, self.project = normed(inputs, wide), normed(wide, wide, 3, stride, wide), normed(wide, outputs)
        self.shortcut = normed(inputs, outputs) if stride == 1 and inputs != outputs else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        """No shortcut where the size changes."""
        out = self.project(F.relu(self.depth(F.relu(self.expand(x)))))
        return out + self.shortcut(x) if self.stride == 1 else out


class MobileNetV2(nn.Module):
    """Inverted residuals. Source: https://arxiv.org/abs/1801.04381."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = normed(3, 4, 3), normed(8, 16)
        self.blocks = nn.Sequential(Inverted(4, 6, 1), Inverted(6, 6, 1), Inverted(6, 8, 2), Inverted(8, 8, 2))
        self.linear = nn.Linear(16 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Four windows are left of each channel."""
        return self.linear(rows(F.avg_pool2d(F.relu(self.head(self.blocks(F.relu(self.stem(x))))), 4)))


class Shuffled(nn.Module):
    """Half of the channels pass, or go another way where the size changes; then the halves are mixed."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, outputs // 2
        given = inputs if stride == 2 else inputs // 2
        self.one, self.two, self.three = normed(given, half), normed(half, half, 3, stride, half), normed(half, half)
        if stride == 2:
            self.beside = nn.Sequential(normed(inputs, inputs, 3, 2, inputs), normed(inputs, half), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Channels mixed by a view, a permutation and a reshaping."""
        if self.stride == 2:
            kept, moved = self.beside(x), x
        else:
            c = int(x.size(1) * 0.5)
            kept, moved = x[:, :c, :, :], x[:, c:, :, :]
        out = torch.cat([kept, F.relu(self.three(self.two(F.relu(self.one(moved)))))], 1)
        n, channels, height, width = out.size()
        return out.view(n, 2, channels // 2, height, width).permute(0, 2, 1, 3, 4).reshape(n, channels, height, width)


class ShuffleNetV2(nn.Module):
    """Halves of channels, mixed. Source: https://arxiv.org/abs/1807.11164."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = normed(3, 4, 1), normed(16, 16)
        self.blocks = nn.Sequential(Shuffled(4, 8, 2), Shuffled(8, 8, 1), Shuffled(8, 16, 2), Shuffled(16, 16, 1), Shuffled(16, 16, 2))
        self.linear = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The last images are one window."""
        return self.linear(rows(F.avg_pool2d(F.relu(self.head(self.blocks(F.relu(self.stem(x))))), 4)))


def swish(x: Tensor) -> Tensor:
    """Features times their sigmoid."""
    return x * x.sigmoid()


def dropped(x: Tensor, p: float) -> Tensor:
    """Stochastic depth as it is written by hand: in place, a draw an image."""
    kept = 1 - p
    mask = torch.empty([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device).bernoulli_(kept)
    x.div_(kept)
    x.mul_(mask)
    return x


class Gated(nn.Module):
    """An inverted residual with swish, gates and stochastic depth."""

    def __init__(self, inputs: int, outputs: int, expansion: int, size: int, stride: int, p: float) -> None:
        super().__init__()
        wide = expansion * inputs
        self.expansion, self.p, self.shortcut = expansion, p, stride == 1 and inputs == outputs
        self.expand, self.depth = normed(inputs, wide), normed(wide, wide, size, stride, wide)  # the first is unused without an expansion
        self.down, self.up, self.project = nn.Conv2d(wide, 2, 1), nn.Conv2d(2, wide, 1), normed(wide, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Weights that take no part where nothing is expanded."""
        out = swish(self.depth(x if self.expansion == 1 else swish(self.expand(x))))
        out = self.project(out * self.up(swish(self.down(F.adaptive_avg_pool2d(out, (1, 1))))).sigmoid())
        if self.shortcut:
            if self.training and self.p > 0:
                out = dropped(out, self.p)
            out = out + x
        return out


class EfficientNet(nn.Module):
    """Gated inverted residuals. Source: https://arxiv.org/abs/1905.11946."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.p = normed(3, 4, 3), 0.2
        sizes = ((4, 4, 1, 3, 1, 0.0), (4, 6, 3, 3, 2, 0.1), (6, 6, 3, 5, 1, 0.2), (6, 8, 3, 5, 2, 0.2))
        self.blocks = nn.Sequential(*(Gated(*each) for each in sizes))
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Dropout before the last layer, as a function."""
        out = F.adaptive_avg_pool2d(self.blocks(swish(self.stem(x))), 1)
        out = rows(out)
        if self.training:
            out = F.dropout(out, p=self.p)
        return self.linear(out)


class RegNetBlock(nn.Module):
    """Groups of 2 channels, then a gate, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = normed(inputs, outputs), normed(outputs, outputs, 3, stride, outputs // 2)
        self.down, self.up, self.three = nn.Conv2d(outputs, 2, 1), nn.Conv2d(2, outputs, 1), normed(outputs, outputs)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The sum in place."""
        out = F.relu(self.two(F.relu(self.one(x))))
        out = out * self.up(F.relu(self.down(F.adaptive_avg_pool2d(out, (1, 1))))).sigmoid()
        out = self.three(out)
        out += self.shortcut(x)
        return F.relu(out)


class RegNet(nn.Module):
    """Stages of a designed space of networks. Source: https://arxiv.org/abs/2003.13678."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = normed(3, 4, 3)
        self.blocks = nn.Sequential(RegNetBlock(4, 4, 1), RegNetBlock(4, 8, 2), RegNetBlock(8, 8, 1), RegNetBlock(8, 16, 2))
        self.linear = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """One place is left of each channel."""
        return self.linear(rows(F.adaptive_avg_pool2d(self.blocks(F.relu(self.stem(x))), (1, 1))))
