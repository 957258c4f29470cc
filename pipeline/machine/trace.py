"""Where exact numerics first differ from what they must give: every tensor of two training steps, hashed, against a golden.

A fingerprint says that something differs; the trace says which operation was the first to. `python -m pipeline doctor --trace` computes
it on the device of params.yaml. It computes without the self-test of the kernels, which would refuse a device before it could be traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import device as devices
from pipeline.exact import VERSION
from pipeline.exact.draws import random_integers
from pipeline.exact.engine import Exact
from pipeline.exact.group import ALONE
from pipeline.exact.initialisation import initialise
from pipeline.exact.later import Later
from pipeline.exact.optimizers import SGD
from pipeline.exact.tape import Backward, Gradient, Tape
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.system import tensors

GOLDEN = Path(__file__).with_name(f"trace-{VERSION}.txt")
"""A line a tensor: the first 16 hexadecimal digits of its hash, and which it is."""
STEPS, IMAGES = 2, 16
LR, MOMENTUM = 0.01, 0.9

Note = Callable[[str, Tensor], None]


class NotingTape(Tape):
    """A tape that notes each tensor when it is there: an operation's output, the gradients of its inputs, those of the weights."""

    def __init__(self, note: Note, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._note, self._operation, self._count = note, "", 0

    def input(self, x: Tensor, what: str) -> Tensor:
        """Remember the operation."""
        self._operation = what
        return super().input(x, what)

    def record(
        self, y: Tensor, inputs: Sequence[Tensor], backward: Backward, shares: Tensor | None = None, axis: int | None = -1
    ) -> Tensor:
        """Note the output, computed now so that there is one, and leave to note the gradients.

        So ReLU comes before max-pooling, as in the definition; a training pools first, which gives the same bits.
        """
        if (later := Later.of(y)) is not None:
            y = later.compute()
        self._count += 1
        names = [value.name.rpartition(".")[0] for x in inputs if (value := self.value(x)) is not None and value.name]
        operation = f"{self._count} {' '.join([self._operation, *names[:1]])}"
        self._note(f"forward, {operation}, output", y)

        def noted(g: Tensor) -> Sequence[Gradient]:
            gradients = backward(g)
            for number, gradient in enumerate(gradients, 1):
                if isinstance(gradient, Tensor):
                    self._note(f"backward, {operation}, gradient of input {number}", gradient)
            return gradients

        return super().record(y, inputs, noted, shares, axis)

    def walk_back(self, gradients: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Note the loss's own gradient first."""
        for _, gradient in gradients:
            self._note("backward, loss, gradient of the logits", gradient)
        super().walk_back(gradients)

    def add_up(self) -> dict[str, Tensor | None]:
        """Note the gradients of the weights."""
        gradients = super().add_up()
        for name, gradient in gradients.items():
            if gradient is not None:
                self._note(f"backward, {name}, gradient", gradient)
        return gradients


def trace(device: torch.device) -> list[str]:
    """Train two steps on drawn bytes on a device; the lines of the golden as they are here."""
    devices.prepare(device)
    lines: list[str] = []
    model = SimpleCNN()
    initialise(model, 0)
    parameters = dict(model.named_parameters())
    sizes = [parameter.numel() for parameter in parameters.values()]
    weights = torch.cat([parameter.detach().flatten() for parameter in parameters.values()]).to(device)
    for parameter, part in zip(parameters.values(), torch.split(weights, sizes), strict=True):
        parameter.data = part.view(parameter.shape)
    pixels = random_integers("trace/images", 256, STEPS * IMAGES * 3072).astype(np.uint8)
    images = torch.from_numpy(pixels.reshape(STEPS, IMAGES, 3, 32, 32)).to(device)
    labels = torch.from_numpy(random_integers("trace/labels", 2**32, STEPS * IMAGES) % 10).to(device).view(STEPS, IMAGES)
    exact = Exact()
    optimizer = SGD([weights], LR, MOMENTUM)
    for step in range(STEPS):

        def note(which: str, tensor: Tensor, step: int = step) -> None:
            lines.append(f"{tensors.fingerprint({'': tensor.detach().cpu().numpy()})[:16]}  step {step + 1}, {which}")

        exact.tape = partial(NotingTape, note)
        loss, gradients = exact.loss_and_gradients(model, images[step], labels[step], ALONE, IMAGES)
        note("loss, mean", loss)
        weights.grad = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        optimizer.step()
        for kind, vector in {"velocity": optimizer.state[weights]["momentum_buffer"], "weights": weights}.items():
            for name, part in zip(parameters, torch.split(vector, sizes), strict=True):
                note(f"update, {name}, {kind}", part)
    return lines


def golden() -> list[str]:
    """The lines as they must be."""
    return GOLDEN.read_text(encoding="utf-8").splitlines()


def first_difference(lines: list[str], wanted: list[str]) -> str | None:
    """The first tensor that is not the golden's, with both hashes, or None."""
    for line, other in zip(lines, wanted, strict=True):
        (computed, which), (expected, _) = line.split("  ", 1), other.split("  ", 1)
        if line != other:
            return f"{which}: {computed}, but the golden has {expected}"
    return None


def show(device_name: str) -> bool:
    """Print what a trace on a device gives; whether all of it is the golden's."""
    device = devices.select(device_name)
    lines = trace(device)
    difference = first_difference(lines, golden())
    said = f"differs first: {difference}" if difference else f"all {len(lines)} tensors of two training steps are the golden's"
    print(f"on {device} {said}")
    return difference is None
