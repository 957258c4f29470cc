"""A split of a data set on a device, from which a training or an evaluation takes its batches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.exact import arrays
from pipeline.system import paths


class Batch(NamedTuple):
    """Images and labels on the device."""

    images: Tensor  # uint8 [B, C, H, W]
    labels: Tensor  # int64 [B]


class Batches:
    """Images uint8 [N, C, H, W] and labels [N].

    Up to `paths.LARGEST_BYTES` the images move to the device, whole. More stay where they are, in the mapped file, and each batch is
    copied out of it, so that memory does not grow with the set.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, device: torch.device) -> None:
        self.resident = images.nbytes <= paths.LARGEST_BYTES
        self._array, self._device = images, device
        self._images = torch.from_numpy(images).to(device) if self.resident else None
        self._labels = torch.from_numpy(labels).to(device).long()

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, rows: Tensor) -> Batch:
        """The images and labels in `rows`, int64 [B] on the device."""
        labels = self._labels.index_select(0, rows)
        if self._images is not None:
            return Batch(self._images.index_select(0, rows), labels)
        images = torch.from_numpy(self._array[rows.cpu().numpy()]).to(self._device)
        arrays.forget(self._array)
        return Batch(images, labels)
