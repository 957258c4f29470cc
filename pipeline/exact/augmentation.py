"""Flip, crop and cutout of bytes, drawn by rule for each image and epoch: the same for any batch, number of workers and device.

A draw is a 32-bit hash of the seed, the epoch, the image's number in the data set and which draw it is, computed on int64 tensors with
products below 2^63, so no device rounds and none has a generator of its own. The pixels are moved, never computed with.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Padding = Literal["zeros", "reflect"]
_WORD = 2**32 - 1
_FACTOR = 0x45D9F3B
FLIP, ROW, COLUMN, CUT_ROW, CUT_COLUMN = range(5)
"""The draws of an image."""


def mixed(x: Tensor) -> Tensor:
    """A 32-bit hash of each 32-bit number, int64: two rounds of shift, exclusive or and multiplication."""
    for _ in range(2):
        x = (x.bitwise_xor(x >> 16) * _FACTOR).bitwise_and_(_WORD)
    return x.bitwise_xor(x >> 16)


class Augmentation:
    """What is done to the training images, uint8 [B, C, H, W].

    Args:
        seed: from 0 to 2^63 - 1.
        flip: whether to mirror half of the images.
        crop: pixels that each side is padded by before a window of the image's own size is cut out anywhere; 0 for none.
        padding: what is beyond the image's edge: zeros, or its reflection (which leaves the edge itself out).
        cutout: the side, in pixels, of a square of zeros whose middle is anywhere in the image, cut off at its edges; 0 for none.
    """

    def __init__(self, seed: int, *, flip: bool = False, crop: int = 0, padding: Padding = "zeros", cutout: int = 0) -> None:
        self.seed, self.flip, self.crop, self.padding, self.cutout = seed, flip, crop, padding, cutout

    def draws(self, epoch: Tensor, numbers: Tensor) -> Tensor:
        """The 32-bit draws int64 [5, B] of the images `numbers` in the data set, int64 [B], in an epoch (from 0), int64 [1]."""
        key = mixed(torch.full_like(epoch, self.seed & _WORD))
        for word in (torch.full_like(epoch, self.seed >> 32), epoch):
            key = mixed((key + word).bitwise_and_(_WORD))
        of_images = mixed((mixed(numbers.bitwise_and(_WORD)) + key).bitwise_and_(_WORD))
        which = torch.arange(5, dtype=torch.int64, device=numbers.device).unsqueeze(1)
        return mixed((mixed(which) + of_images).bitwise_and_(_WORD))

    def __call__(self, images: Tensor, epoch: Tensor, numbers: Tensor) -> Tensor:
        """New bytes of the same shape, for the images that have these `numbers` in the data set, int64 [B], in an epoch, int64 [1]."""
        if not (self.flip or self.crop or self.cutout):
            return images
        height, width = images.shape[2:]
        drawn = self.draws(epoch, numbers)
        y, x = (torch.arange(size, device=images.device).expand(len(images), size) for size in (height, width))  # [B, H] and [B, W]
        beyond = None
        if self.flip:
            x = torch.where((drawn[FLIP] >> 31 == 1).unsqueeze(1), width - 1 - x, x)
        if self.crop:
            y, x = (at + _below(drawn[which], 2 * self.crop + 1) - self.crop for at, which in ((y, ROW), (x, COLUMN)))
            if self.padding == "reflect":
                y, x = _reflected(y, height), _reflected(x, width)
            else:
                beyond = ((y < 0) | (y >= height)).unsqueeze(2) | ((x < 0) | (x >= width)).unsqueeze(1)  # [B, H, W]
                y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
        if self.flip or self.crop:
            places = (y.unsqueeze(2) * width + x.unsqueeze(1)).flatten(1)  # [B, H W]
            images = images.flatten(2).gather(2, places.unsqueeze(1).expand(-1, images.shape[1], -1)).view(images.shape)
        if self.cutout:
            rows, columns = (self._cut(drawn[which], size) for which, size in ((CUT_ROW, height), (CUT_COLUMN, width)))
            cut = rows.unsqueeze(2) & columns.unsqueeze(1)
            beyond = cut if beyond is None else beyond | cut
        return images if beyond is None else images.masked_fill(beyond.unsqueeze(1), 0)

    def _cut(self, drawn: Tensor, size: int) -> Tensor:
        """Which of `size` rows or columns the square covers, bool [B, size]."""
        first = _below(drawn, size) - self.cutout // 2
        at = torch.arange(size, device=drawn.device)
        return (at >= first) & (at < first + self.cutout)


def _below(drawn: Tensor, limit: int) -> Tensor:
    """32-bit draws [B] as numbers from 0 to limit - 1, [B, 1]."""
    return ((drawn * limit) >> 32).unsqueeze(1)


def _reflected(at: Tensor, size: int) -> Tensor:
    at = at.abs()
    return torch.where(at >= size, 2 * (size - 1) - at, at)
