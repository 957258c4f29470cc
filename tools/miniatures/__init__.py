"""Small networks of the seventeen kinds that are usually trained on CIFAR-10, with the operations of each kind; for `make networks`.

Each is written here from the idea of its paper, as people write such networks, and is as small as its operations allow. A class takes
images [N, 3, 32, 32] and gives logits [N, 10].
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tools.miniatures.mobile import EfficientNet, MobileNet, MobileNetV2, RegNet, ShuffleNetV2
from tools.miniatures.plain import VGG, GoogLeNet, LeNet, PNASNet
from tools.miniatures.residual import DPN, DenseNet, PreActResNet, ResNet, ResNeXt, SENet
from tools.miniatures.trees import DLA, SimpleDLA

MINIATURES: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind for kind in (
        LeNet, VGG, ResNet, ResNeXt, PreActResNet, SENet, DenseNet, GoogLeNet, DPN, PNASNet, MobileNet, MobileNetV2, ShuffleNetV2,
        EfficientNet, RegNet, SimpleDLA, DLA,
    )
}  # fmt: skip
"""Name -> the network's class."""
