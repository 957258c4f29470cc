"""Small networks of the seventeen kinds that are usually trained on CIFAR-10, with the operations of each kind; for `make networks`.

Each is written here from the idea of its paper, as people write such networks, and is as small as its operations allow. A class takes
images [N, 3, 32, 32] and gives logits [N, 10].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


def normed(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without a bias that keeps the size of images, or divides it by the stride, and batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs))


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


class Residual(nn.Module):
    """Narrow, then 3 x 3, then wide, in groups if there are several, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        width = outputs // 2
        self.first, self.second, self.third = normed(inputs, width), normed(width, width, 3, stride, groups), normed(width, outputs)
        self.shortcut = nn.Sequential() if inputs == outputs and stride == 1 else normed(inputs, outputs, 1, stride)

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
        out = F.avg_pool2d(self.blocks(F.relu(self.stem(x))), 4)
        return self.linear(out.view(out.size(0), -1))


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
        out = F.avg_pool2d(self.blocks(self.conv(x)), 4)
        return self.linear(out.view(out.size(0), -1))


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
        out = F.avg_pool2d(F.relu(self.bn3(self.dense3(out))), 4)
        return self.linear(out.view(out.size(0), -1))


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
        return self.linear(out.view(out.size(0), -1))


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
        out = F.avg_pool2d(self.blocks(F.relu(self.stem(x))), 4)
        return self.linear(out.view(out.size(0), -1))


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
        out = F.avg_pool2d(self.cells(F.relu(self.stem(x))), 8)
        return self.linear(out.view(out.size(0), -1))


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
        return self.linear(F.avg_pool2d(x, 4).view(x.size(0), -1))


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
        out = F.avg_pool2d(F.relu(self.head(self.blocks(F.relu(self.stem(x))))), 4)
        return self.linear(out.view(out.size(0), -1))


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
        out = F.avg_pool2d(F.relu(self.head(self.blocks(F.relu(self.stem(x))))), 4)
        return self.linear(out.view(out.size(0), -1))


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
        out = out.view(out.size(0), -1)
        if self.training:
            out = F.dropout(out, p=self.p)
        return self.linear(out)


class RegNetBlock(nn.Module):
    """Groups of 2 channels, then a gate, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = normed(inputs, outputs), normed(outputs, outputs, 3, stride, outputs // 2)
        self.down, self.up, self.three = nn.Conv2d(outputs, 2, 1), nn.Conv2d(2, outputs, 1), normed(outputs, outputs)
        self.shortcut = nn.Sequential() if stride == 1 and inputs == outputs else normed(inputs, outputs, 1, stride)

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
        out = F.adaptive_avg_pool2d(self.blocks(F.relu(self.stem(x))), (1, 1))
        return self.linear(out.view(out.size(0), -1))


class Basic(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.one, self.two = normed(inputs, outputs, 3, stride), normed(outputs, outputs, 3)
        self.shortcut = nn.Sequential() if stride == 1 and inputs == outputs else normed(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        return F.relu(self.two(F.relu(self.one(x))) + self.shortcut(x))


class Joined(nn.Module):
    """What several blocks gave, side by side, joined by a convolution of single pixels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.joined = normed(inputs, outputs)

    def forward(self, parts: list[Tensor]) -> Tensor:
        """A list of tensors goes in."""
        return F.relu(self.joined(torch.cat(parts, 1)))


class SimpleTree(nn.Module):
    """Two trees of the level below, or two blocks, joined."""

    def __init__(self, inputs: int, outputs: int, level: int, stride: int) -> None:
        super().__init__()
        below: Callable[[int, int, int], nn.Module] = Basic if level == 1 else lambda i, o, s: SimpleTree(i, o, level - 1, s)
        self.root = Joined(2 * outputs, outputs)
        self.left, self.right = below(inputs, outputs, stride), below(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The right tree reads what the left gave."""
        left = self.left(x)
        return self.root([left, self.right(left)])


class SimpleDLA(nn.Module):
    """Layers joined as trees, simplified. Source: https://arxiv.org/abs/1707.06484."""

    tree: Callable[..., nn.Module] = SimpleTree

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Sequential(normed(3, 4, 3), nn.ReLU(True), normed(4, 4, 3), nn.ReLU(True))
        tree = type(self).tree
        self.first, self.second, self.third = tree(4, 8, level=1, stride=1), tree(8, 8, level=2, stride=2), tree(8, 16, level=1, stride=2)
        self.linear = nn.Linear(16 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Four windows are left of each channel."""
        out = F.avg_pool2d(self.third(self.second(self.first(self.base(x)))), 4)
        return self.linear(out.view(out.size(0), -1))


class Tree(nn.Module):
    """All levels below, each reading what the last gave, and two blocks, joined; its parts are attributes by number."""

    def __init__(self, inputs: int, outputs: int, level: int, stride: int) -> None:
        super().__init__()
        self.level = level
        self.root = Joined((level + 2) * outputs if level > 1 else 2 * outputs, outputs)
        if level == 1:
            self.left, self.right = Basic(inputs, outputs, stride), Basic(outputs, outputs)
        else:
            for i in reversed(range(1, level)):
                setattr(self, f"level_{i}", Tree(inputs, outputs, i, stride))
                inputs, stride = outputs, 1
            self.before, self.left, self.right = (Basic(outputs, outputs) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Everything that was computed on the way is joined."""
        found = []
        if self.level > 1:
            for i in reversed(range(1, self.level)):
                x = getattr(self, f"level_{i}")(x)
                found.append(x)
            x = self.before(x)
            found.append(x)
        left = self.left(x)
        found += [left, self.right(left)]
        return self.root(found)


class DLA(SimpleDLA):
    """Layers joined as trees. Source: https://arxiv.org/abs/1707.06484."""

    tree = Tree


MINIATURES: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind for kind in (
        LeNet, VGG, ResNet, ResNeXt, PreActResNet, SENet, DenseNet, GoogLeNet, DPN, PNASNet, MobileNet, MobileNetV2, ShuffleNetV2,
        EfficientNet, RegNet, SimpleDLA, DLA,
    )
}  # fmt: skip
"""Name -> the network's class."""
