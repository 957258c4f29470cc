"""The exact form of SGD with momentum: each product and each sum a kernel of its own, so rounded by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SNAP = 2.0**-64
"""Weights and velocities up to this become zero, so the state holds no subnormal and no negative zero."""


class SGD:
    """SGD with momentum as torch.optim.SGD defines it, on one vector of weights, float32 [P], changed in place."""

    def __init__(self, weights: Tensor, lr: float, momentum: float) -> None:
        self.weights = weights
        self.state = {"velocity": torch.zeros_like(weights)}
        """What training must keep besides the weights: float32 [P] each."""
        self._lr, self._momentum = (weights.new_tensor(value) for value in (lr, momentum))  # rounded to float32

    def step(self, gradient: Tensor) -> None:
        """One update with the gradient, float32 [P]."""
        velocity = self.state["velocity"]
        torch.add(velocity * self._momentum, gradient, out=velocity)
        velocity.copy_(F.hardshrink(velocity, SNAP))
        self.weights.copy_(F.hardshrink(self.weights - velocity * self._lr, SNAP))
