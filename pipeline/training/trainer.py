"""The step of a training and the state that it changes: a model and its momentum, the data, and the position in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import device as devices
from pipeline.data.batches import Batches
from pipeline.exact.draws import permutation
from pipeline.exact.initial_values import initialise
from pipeline.model import SimpleCNN
from pipeline.numerics.exact import refusals_explained
from pipeline.params import Train
from pipeline.workers import ALONE, Group

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset
    from pipeline.numerics import Numerics


class LoggedStep(NamedTuple):
    """What a step leaves to be read: the batch's mean loss, and the largest magnitude of the optimizer's state after it, or NaN."""

    loss: float
    magnitude: float


class Trainer:
    """A model, its optimizer and the data on one device, and the step that changes them.

    The trainer knows which batch comes next, so none can be left out or come twice. All state that a step reads or writes stays
    in the same tensors, and a step never looks at a value: so on CUDA it is captured once as a graph and replayed.
    """

    def __init__(self, data: Dataset, device: torch.device, seed: int, numerics: Numerics, settings: Train, group: Group = ALONE) -> None:
        self.device, self.seed, self.numerics, self.settings, self.group = device, seed, numerics, settings, group
        # 1. the device is selected; 2. the model moves to it
        self.model: nn.Module = SimpleCNN(*data.shape[:2], len(data.classes))
        with refusals_explained():
            initialise(self.model, seed)
        self.parameters = dict(self.model.named_parameters())
        self.initial = torch.cat([p.detach().flatten() for p in self.parameters.values()]).to(device)  # float32 [P]
        self.weights = self.initial.clone()
        for name, part in self._views(self.weights).items():
            self.parameters[name].data = part
        self.model.to(device)  # its buffers, where it has any
        self.optimizer = numerics.optimizer(self.weights, settings.lr, settings.momentum)
        # 3. the data moves to it, whole where it fits
        self.data = Batches(data.train_images, data.train_labels, device)
        self.order = torch.zeros(len(self.data), dtype=torch.int64, device=device)  # the epoch's order
        self.steps_completed = 0
        self._order_of: int | None = None
        self.position = torch.zeros(1, dtype=torch.int64, device=device)  # in the epoch, in images
        # what steps gave since it was last read: the loss, and the least and the largest number of each part of the optimizer's state
        self.step_log = torch.zeros(settings.log_every, 1 + 2 * len(self.optimizer.state), device=device)
        self.logged = torch.zeros(1, dtype=torch.int64, device=device)  # rows of it
        self.offsets = torch.arange(settings.batch_size, device=device)
        self._full_step: Callable[[], None] | None = None
        # that a graph holds collectives was never tried, and one cannot hold what is read from a file
        if len(self.data) >= settings.batch_size and group.count == 1 and self.data.resident:
            self._full_step = devices.as_cuda_graph(lambda: self._step(self.offsets), device, self._reset)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        parts = torch.split(flat, [p.numel() for p in self.parameters.values()])
        return {name: part.view(p.shape) for (name, p), part in zip(self.parameters.items(), parts, strict=True)}

    def _reset(self) -> None:
        """Bring all that a step changes to the beginning."""
        self.weights.copy_(self.initial)
        for state in self.optimizer.state.values():
            state.zero_()
        self.position.zero_()
        self.logged.zero_()

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the last may be smaller."""
        return math.ceil(len(self.data) / self.settings.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.steps_per_epoch * self.settings.epochs

    def step(self) -> None:
        """Train on the next batch."""
        epoch, batch = divmod(self.steps_completed, self.steps_per_epoch)
        first = batch * self.settings.batch_size
        if self._order_of != epoch:
            self.order.copy_(torch.from_numpy(permutation(f"order/{self.seed}/{epoch}", len(self.data))))
            self.position.fill_(first)
            self._order_of = epoch
        left = len(self.data) - first
        if left < self.settings.batch_size or self._full_step is None:
            self._step(self.offsets[:left])
        else:
            self._full_step()
        self.steps_completed += 1

    def _step(self, offsets: Tensor) -> None:
        share = self.group.share(len(offsets))
        rows = self.order.index_select(0, self.position + offsets[share])  # int64 [B]
        images, labels = self.data.batch(rows)
        # 4. the training loop: forward, backward, update
        loss, gradients = self.numerics.loss_and_gradients(self.model, images, labels, self.group, len(offsets))
        self.optimizer.step(torch.cat([g.flatten() for g in gradients]))
        extremes = [extreme for state in self.optimizer.state.values() for extreme in state.aminmax()]
        self.step_log.index_copy_(0, self.logged, torch.stack((loss, *extremes)).unsqueeze(0))
        self.position += len(offsets)
        self.logged += 1

    def read_step_log(self) -> list[LoggedStep]:
        """Wait for the device; what each step since the last reading gave."""
        rows = self.step_log[: int(self.logged)].cpu()
        self.logged.zero_()
        magnitudes = rows[:, 1:].abs().amax(1) if rows.shape[1] > 1 else torch.zeros(len(rows))
        return [LoggedStep(*row) for row in zip(rows[:, 0].tolist(), magnitudes.tolist(), strict=True)]

    def state(self) -> dict[str, np.ndarray]:
        """The weights, the optimizer's state and the model's buffers, for a checkpoint: whole, on whichever device."""
        buffers = {f"buffer {name}": buffer for name, buffer in self.model.named_buffers()}
        return {name: t.cpu().numpy().copy() for name, t in {"weights": self.weights, **self.optimizer.state, **buffers}.items()}

    def resume(self, step: int, state: dict[str, np.ndarray]) -> None:
        """Take up, on this device or another, the state that a trainer had after `step` steps."""
        self.weights.copy_(torch.from_numpy(state["weights"]))
        for name, tensor in self.optimizer.state.items():
            tensor.copy_(torch.from_numpy(state[name]))
        for name, buffer in self.model.named_buffers():
            buffer.copy_(torch.from_numpy(state[f"buffer {name}"]))
        self.steps_completed, self._order_of = step, None

    def follow_first(self) -> None:
        """Take up the state of worker 0, which may have resumed one: from here on all workers have the same bits."""
        step = torch.tensor(self.steps_completed, device=self.device)
        for tensor in (step, self.weights, *self.optimizer.state.values(), *self.model.buffers()):
            self.group.copy_first(tensor)
        self.steps_completed, self._order_of = int(step), None

    def named_weights(self) -> dict[str, np.ndarray]:
        """The weights and buffers by the names of the model's state_dict."""
        named = {**self._views(self.weights), **dict(self.model.named_buffers())}
        return {name: part.cpu().numpy().copy() for name, part in named.items()}
