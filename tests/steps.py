"""A few training steps on drawn bytes, for tests of the numerics: quick, and the same everywhere."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline import device as devices
from pipeline import numerics
from pipeline.data.dataset import Dataset
from pipeline.exact.draws import random_integers
from pipeline.params import Train
from pipeline.system.tensors import fingerprint
from pipeline.training.trainer import Trainer
from pipeline.workers import ALONE, Group

CPU = torch.device("cpu")


def ints(label: str, bits: int, *shape: int) -> torch.Tensor:
    """Drawn integers of `bits` bits and a sign, the extremes among them, as float64."""
    count = math.prod(shape)
    drawn = random_integers(label, 2 ** (bits + 2), count) % (2 ** (bits + 1) + 1) - 2**bits
    drawn[:2] = (2**bits, -(2**bits))[: len(drawn)]
    return torch.from_numpy(drawn.astype(np.float64)).view(shape)


def drawn_set(images: int = 256, label: str = "tests") -> Dataset:
    """Random bytes and labels."""
    pixels = random_integers(f"{label}/images", 256, images * 3072).astype(np.uint8).reshape(-1, 3, 32, 32)
    labels = (random_integers(f"{label}/labels", 2**32, images) % 10).astype(np.uint8)
    names = tuple(f"class{i}" for i in range(10))
    return Dataset("drawn", names, pixels, labels, pixels[:64], labels[:64])


def trainer(
    name: str = "exact", *, device: torch.device = CPU, data: Dataset | None = None, batch_size: int = 64, lr: float = 0.01, seed: int = 0,
    group: Group = ALONE,
) -> Trainer:  # fmt: skip
    """A trainer on the drawn set, at the beginning of its first epoch."""
    devices.prepare(device)
    settings = Train(epochs=100, batch_size=batch_size, lr=lr, momentum=0.9, log_every=1)
    return Trainer(data or drawn_set(), device, seed, numerics.select(name, device), settings, group)


def run_steps(given: Trainer, steps: int, after: Callable[[int, float], Any] | None = None) -> None:
    """Train `steps` steps, epoch after epoch; call `after` with each step (from 1) and its loss."""
    for _ in range(steps):
        given.step()
        (logged,) = given.read_step_log()
        if after:
            after(given.steps_completed, logged.loss)


def trained_fingerprint(name: str = "exact", steps: int = 8, **arguments: Any) -> str:
    """The fingerprint of the weights after `steps` steps, all losses hashed in."""
    given = trainer(name, **arguments)
    losses: list[float] = []
    run_steps(given, steps, lambda _, loss: losses.append(loss))
    return hashlib.sha256((fingerprint(given.named_weights()) + "".join(loss.hex() for loss in losses)).encode()).hexdigest()


def network_fingerprint() -> str:
    """That of a narrow ResNet-20 after two steps on three images: a hash of losses, weights and buffers."""
    from pipeline.machine import check
    from pipeline.params import Model

    subject = check.Subject(Model(name="networks/resnet20.py:ResNet20", arguments={"width": 4}), (3, 32, 32), 10, 0, "cpu")
    return check.trained(check.built(subject), subject)[0]


if __name__ == "__main__":
    import sys

    for each in sys.argv[1:]:  # such as exact:2, which is with two threads
        name, _, threads = each.partition(":")
        if threads:
            torch.set_num_threads(int(threads))
        print(network_fingerprint() if name == "ResNet-20" else trained_fingerprint(name))
