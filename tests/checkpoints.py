"""What the tests of `import` share: a network that was trained elsewhere, as if, and its state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import mobilenet_v2

from pipeline.params import Model

MODEL = Model(name="mobilenet_v2", arguments={"width_mult": 0.25})


def network(classes: int = 7) -> nn.Module:
    torch.manual_seed(1)
    made = mobilenet_v2(num_classes=classes, width_mult=0.25)
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
    return made.eval()


def state(**changed: Callable[[torch.Tensor], torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    convert = changed.get("convert", lambda tensor: tensor)
    return OrderedDict((name, convert(tensor)) for name, tensor in network().state_dict().items())
