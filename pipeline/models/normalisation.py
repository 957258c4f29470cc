"""`model.normalize`: the first operation of a network, (images - mean) / deviation, a mean and a deviation for each channel.

Images are bytes / 255 there. Both numbers are buffers of the network: its weights hold them, and its recording has the operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.exact import arrays
from pipeline.params import Normalize
from pipeline.system.errors import UserError

BUFFERS = ("pixel_mean", "pixel_deviation")
"""Their names in a network's state."""
IMAGES = 256
"""Whose integers are added at a time."""


def put_before(network: nn.Module, channels: int, given: Normalize | bool) -> None:
    """Normalise what `network` is given, by `given` numbers, or by those that `set_numbers` or a file of weights brings.

    Raises:
        UserError: they are not for so many channels.
    """
    mean, deviation = (given.mean, given.std) if isinstance(given, Normalize) else ([0.0] * channels, [1.0] * channels)
    if not len(mean) == len(deviation) == channels:
        raise UserError(f"model.normalize has {len(mean)} means and {len(deviation)} deviations (std), and the images {channels} channels")
    network.register_buffer("pixel_mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
    network.register_buffer("pixel_deviation", torch.tensor(deviation, dtype=torch.float32).view(1, -1, 1, 1))
    network.register_forward_pre_hook(_normalised)


def _normalised(network: Any, given: tuple[Tensor, ...]) -> Tensor:
    return (given[0] - network.pixel_mean) / network.pixel_deviation  # type: ignore[no-any-return]


def set_numbers(network: nn.Module, images: np.ndarray) -> None:
    """Set the mean and the deviation to those of uint8 images [N, C, H, W].

    Raises:
        UserError: a channel is the same in all pixels.
    """
    mean, deviation = of_images(images)
    if not all(deviation):
        raise UserError(
            f"model.normalize: channel {deviation.index(0)} is the same in all pixels, so it has no deviation; leave normalize out"
        )
    for name, values in zip(BUFFERS, (mean, deviation), strict=True):
        buffer = network.get_buffer(name)
        buffer.copy_(torch.tensor(values, dtype=torch.float32).view(buffer.shape))


def of_images(images: np.ndarray) -> tuple[Sequence[float], Sequence[float]]:
    """The mean and deviation of each channel of uint8 images [N, C, H, W], of the bytes / 255: exact integers, divided once each."""
    count, channels = images[:, 0].size, images.shape[1]
    first, second = [0] * channels, [0] * channels
    for start in range(0, len(images), IMAGES):
        some = images[start : start + IMAGES].astype(np.int64)
        for channel in range(channels):
            of_channel = some[:, channel]
            first[channel] += int(of_channel.sum())
            second[channel] += int((of_channel * of_channel).sum())
        arrays.forget(images)
    mean = [total / (count * 255) for total in first]
    return mean, [math.sqrt((count * b - a * a) / (count * 255) ** 2) for a, b in zip(first, second, strict=True)]
