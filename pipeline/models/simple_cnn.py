"""The tutorial's SimpleCNN."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.system.errors import UserError

SMALLEST = 16
"""Pixels a side of the smallest image of which the two convolutions and poolings leave something."""


class SimpleCNN(nn.Module):
    """The tutorial's network: images [N, channels, size, size] -> logits float32 [N, classes]. The defaults are the tutorial's."""

    def __init__(self, channels: int = 3, size: int = 32, classes: int = 10) -> None:
        super().__init__()
        if size < SMALLEST:
            raise UserError(f"images of {size} x {size} are too small for SimpleCNN; it takes {SMALLEST} x {SMALLEST} and larger")
        side = ((size - 4) // 2 - 4) // 2  # 5 of 32
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """As in the tutorial, line by line."""
        x = self.pool(F.relu(self.conv1(x)))  # [N, 6, 14, 14]
        x = self.pool(F.relu(self.conv2(x)))  # [N, 16, 5, 5]
        x = x.view(-1, self.fc1.in_features)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x
