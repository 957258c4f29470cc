"""A network of your own: copy this file, change it, and set `model.name: networks/my_net.py:Net` in params.yaml."""

import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """A small residual network: images [N, channels, H, W] -> logits [N, classes]."""

    def __init__(self, classes: int, channels: int = 3, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm_down = nn.BatchNorm2d(2 * width)
        self.conv = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.norm_conv = nn.BatchNorm2d(2 * width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """A stem, a step down, a residual, and the mean of all places."""
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.norm_down(self.down(x)))
        x = F.relu(x + self.norm_conv(self.conv(x)))
        return self.head(self.dropout(x.mean((2, 3))))
