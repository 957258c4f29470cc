"""Small networks whose layers are joined as trees: DLA and its simpler kind."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.miniatures.parts import CLASSES, normed, rows, shortcut


class Basic(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.one, self.two = normed(inputs, outputs, 3, stride), normed(outputs, outputs, 3)
        self.shortcut = shortcut(inputs, outputs, stride)

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
        return self.linear(rows(F.avg_pool2d(self.third(self.second(self.first(self.base(x)))), 4)))


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
