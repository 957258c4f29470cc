"""What several of the small networks have in common, as people write it."""

from __future__ import annotations

from torch import Tensor, nn

CLASSES = 10


def normed(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without a bias that keeps the size of images, or divides it by the stride, and batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Nothing, or where the shape changes a convolution of single pixels."""
    return nn.Sequential() if stride == 1 and inputs == outputs else normed(inputs, outputs, 1, stride)


def rows(x: Tensor) -> Tensor:
    """Features [N, ...] as one row an image."""
    return x.view(x.size(0), -1)
