"""The ResNet for small pictures with 20 layers and 0.27 million weights."""

import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions with batch norm beside a shortcut, which drops rows and adds channels of zeros where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, out - channels
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, channels, H, W] -> [N, out, H / stride, W / stride]."""
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

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, channels, H, W] -> logits [N, classes]."""
        return self.fc(self.blocks(F.relu(self.bn(self.conv(x)))).mean((2, 3)))
