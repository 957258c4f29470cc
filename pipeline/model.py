"""The guide's SimpleCNN, and its initial weights from integers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.draws import integers


class SimpleCNN(nn.Module):
    """The guide's network: images [N, 3, 32, 32] -> logits float32 [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """As in the guide, line by line."""
        x = self.pool(F.relu(self.conv1(x)))  # [N, 6, 14, 14]
        x = self.pool(F.relu(self.conv2(x)))  # [N, 16, 5, 5]
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x


def initialise(model: nn.Module, seed: int) -> None:
    """Set every weight and bias of `model`'s layers, on the CPU, from integers drawn for its name and `seed`.

    PyTorch's default law for Conv2d and Linear, uniform on +-1/sqrt(fan_in) (torch.nn.init.kaiming_uniform_ with a=sqrt(5)),
    on 2^24 equally spaced points. PyTorch's own draws give other bits with other instruction sets; here each weight is an
    integer times one float64, rounded once to float32.
    """
    for name, layer in model.named_modules():
        own = dict(layer.named_parameters(recurse=False))
        if not own:
            continue
        weight = own["weight"]
        step = 1 / math.sqrt(weight[0].numel()) / 2**23  # math.sqrt and / are correctly rounded (IEEE 754)
        for part, parameter in own.items():
            drawn = integers(f"weights/{seed}/{name}.{part}", 2**24, parameter.numel()) - 2**23  # int64 [numel]
            with torch.no_grad():
                parameter.copy_(torch.from_numpy((drawn * step).astype("float32")).view(parameter.shape))
