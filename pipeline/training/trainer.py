"""The step of a training and the state that it changes: a model and its momentum, the data, and the position in it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from pipeline import device as devices
from pipeline import models
from pipeline.data.batches import Batches
from pipeline.exact.augmentation import Augmentation
from pipeline.exact.draws import permutation
from pipeline.exact.masks import Draws
from pipeline.models import checkpoints, normalisation, trial
from pipeline.models.checkpoints import Checkpoint
from pipeline.models.recorded import Recorded, Recording
from pipeline.params import Model, Train
from pipeline.system.errors import UserError
from pipeline.training import updates
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

    def __init__(
        self, data: Dataset, device: torch.device, seed: int, numerics: Numerics, settings: Train, group: Group = ALONE,
        epochs: int | None = None, network: Model = Model(), recorded: Recording | None = None,  # noqa: B008 - frozen
        start: Checkpoint | None = None,
    ) -> None:  # fmt: skip
        """Of a training of `settings.epochs` epochs, which its schedule is for, only the first `epochs` are trained, where given.

        A network that was recorded is trained as the recording has it; one that has a start begins with those weights.
        """
        self.epochs = settings.epochs if epochs is None else epochs
        self.device, self.seed, self.numerics, self.settings, self.group = device, seed, numerics, settings, group
        # 1. the device is selected; 2. the model moves to it
        self.model = models.build(network, data.shape, len(data.classes), seed) if recorded is None else Recorded(recorded, seed)
        self.network = network
        if network.normalize is True and recorded is None:
            normalisation.set_numbers(self.model, data.train_images)
        self.began = ""
        if start is not None:
            self.began = checkpoints.begin(self.model, start, network, len(data.classes))
        self.model.to(device)
        if network != Model():
            if recorded is None and numerics.version != "native":
                trial.check_made_alike(network, data.shape, len(data.classes))
            last = len(data.train_labels) % settings.batch_size or settings.batch_size  # images of an epoch's last batch
            trial.try_out(self.model, network, data.shape, len(data.classes), numerics, device, min(last, trial.IMAGES))
        # 3. the data moves to it, whole where it fits
        self.data = Batches(data.train_images, data.train_labels, device)
        rows = max(len(self.data), 2 * settings.batch_size)  # enough for the two steps that prove a CUDA graph, as in step_log
        self.order = torch.arange(rows, device=device).remainder_(max(1, len(self.data)))  # int64; the epoch's order, in its first N
        if settings.augment.padding == "reflect" and settings.augment.crop >= min(data.shape[1:]):
            raise UserError(
                f"train.augment.crop is {settings.augment.crop}, and images of {data.shape[1]} pixels a side reflect at most "
                f"{data.shape[1] - 1}; set a smaller crop, or padding: zeros"
            )
        self.augmentation = Augmentation(seed, **structs.asdict(settings.augment))
        self.updates = updates.select(numerics.version, dict(self.model.named_parameters()), settings, self.steps_per_epoch, self.epochs)
        self.steps_completed = 0
        self._order_of: int | None = None
        # where the training is, for the device: the epoch, the step (both from 0), and the first image of the batch in the epoch
        self.epoch, self.step_number, self.position = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(3))
        # what steps gave since it was last read: the loss, and the largest magnitude of the optimizer's state
        self.step_log = torch.zeros(max(2, settings.log_every), len(LoggedStep._fields), device=device)
        self.logged = torch.zeros(1, dtype=torch.int64, device=device)  # rows of it
        self.offsets = torch.arange(settings.batch_size, device=device)
        self._full_step: Callable[[], None] | None = None
        # that a graph holds collectives was never tried, one cannot hold what is read from a file, and its proof takes two steps
        graphic = group.count == 1 and self.data.resident and self.updates.capturable and self.total_steps > 1
        if len(self.data) >= settings.batch_size and graphic:
            counters = [self.position, self.step_number, self.step_log, self.logged]
            changed = [*self.updates.tensors().values(), *self.model.buffers(), *counters]
            self._full_step = devices.as_cuda_graph(lambda: self._step(self.offsets), device, changed)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the last may be smaller."""
        return math.ceil(len(self.data) / self.settings.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps until the training ends."""
        return self.steps_per_epoch * self.epochs

    def step(self) -> None:
        """Train on the next batch."""
        epoch, batch = divmod(self.steps_completed, self.steps_per_epoch)
        first = batch * self.settings.batch_size
        if self._order_of != epoch:
            self.order[: len(self.data)].copy_(torch.from_numpy(permutation(f"order/{self.seed}/{epoch}", len(self.data))))
            self.position.fill_(first)
            self.epoch.fill_(epoch)
            self.step_number.fill_(self.steps_completed)
            self._order_of = epoch
        if self.numerics.version == "native":  # what a network draws itself, as dropout does: the same again, resumed too
            drawn = hashlib.sha256(f"draws/{self.seed}/{self.steps_completed}/{self.group.rank}".encode()).digest()
            torch.manual_seed(int.from_bytes(drawn[:8], "little", signed=True))
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
        images = self.augmentation(images, self.epoch, rows)
        with models.mistakes_explained(self.network):
            loss, gradients = self.numerics.loss_and_gradients(
                self.model, images, labels, self.group, len(offsets),
                draws=Draws(self.seed, self.step_number, share.start), label_smoothing=self.settings.label_smoothing,
                auxiliary=self.network.auxiliary,
            )  # fmt: skip
        self.updates.step(gradients, self.step_number)
        self.step_log.index_copy_(0, self.logged, torch.stack((loss, self.updates.largest())).unsqueeze(0))
        self.position += len(offsets)
        self.step_number += 1
        self.logged += 1

    def read_step_log(self) -> list[LoggedStep]:
        """Wait for the device; what each step since the last reading gave."""
        rows = self.step_log[: int(self.logged)].cpu()
        self.logged.zero_()
        return [LoggedStep(*row) for row in rows.tolist()]

    def _state(self) -> dict[str, Tensor]:
        return {**self.updates.tensors(), **{f"buffer {name}": buffer for name, buffer in self.model.named_buffers()}}

    def state(self) -> dict[str, np.ndarray]:
        """The weights, the optimizer's state and the model's buffers, for a checkpoint: whole, on whichever device."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self._state().items()}

    @torch.no_grad()
    def resume(self, step: int, state: dict[str, np.ndarray]) -> None:
        """Take up, on this device or another, the state that a trainer had after `step` steps."""
        for name, tensor in self._state().items():
            tensor.copy_(torch.from_numpy(state[name]))
        self._continue_at(step)

    @torch.no_grad()
    def follow_first(self) -> None:
        """Take up the state of worker 0, which may have resumed one: from here on all workers have the same bits."""
        step = torch.tensor(self.steps_completed, device=self.device)
        for tensor in (step, *self._state().values()):
            self.group.copy_first(tensor)
        self._continue_at(int(step))

    def _continue_at(self, step: int) -> None:
        self.steps_completed, self._order_of = step, None
        self.updates.continue_at(step)

    def named_weights(self) -> dict[str, np.ndarray]:
        """The weights and buffers by the names of the model's state_dict."""
        return {name: part.cpu().numpy().copy() for name, part in self.model.state_dict().items()}
