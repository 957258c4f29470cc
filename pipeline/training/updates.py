"""How a step's gradients change the weights: the optimizer and the schedule of params.yaml, exact and native alike.

Exact numerics use the package's optimizers and its table of rates, native ones torch.optim and torch.optim.lr_scheduler.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from pipeline.exact import optimizers, schedules
from pipeline.params import Train
from pipeline.system.errors import UserError

Parameters = Mapping[str, nn.Parameter]


def warmup_steps(settings: Train, steps_per_epoch: int) -> int:
    """Steps of the warm-up."""
    return round(settings.schedule.warmup_epochs * steps_per_epoch)


def rates(settings: Train, steps_per_epoch: int, epochs: int | None = None) -> np.ndarray:
    """The learning rate of each step, float32 [steps]; of the first `epochs` alone, if given.

    Raises:
        UserError: the training is too short for its schedule.
    """
    schedule, total, warmup = settings.schedule, settings.epochs * steps_per_epoch, warmup_steps(settings, steps_per_epoch)
    t = np.arange(total if epochs is None else epochs * steps_per_epoch)
    if warmup > total:
        raise UserError(
            f"train.schedule.warmup_epochs is {schedule.warmup_epochs}, longer than the training; train.epochs is {settings.epochs}"
        )
    if schedule.name == "constant":
        return schedules.constant(settings.lr, t, warmup)
    if schedule.name == "steps":
        milestones = [epoch * steps_per_epoch for epoch in schedule.milestones]
        if milestones[0] < warmup:
            raise UserError(f"train.schedule.milestones has {schedule.milestones[0]}, which is within the warm-up; begin after it")
        return schedules.steps(settings.lr, t, milestones, schedule.factor, warmup)
    if schedule.name == "cosine":
        return schedules.cosine(settings.lr, t, total, warmup)
    try:
        return schedules.one_cycle(settings.lr, t, total, warmup)
    except ValueError as reason:
        raise UserError(f"train.schedule.name is one_cycle, but of {total} steps {warmup or 'three tenths'} rise; {reason}") from None


class Updates:
    """Weights, the optimizer's state and the position in the schedule; all that a step changes stays in the same tensors."""

    capturable: bool
    """Whether a CUDA graph can hold a step."""
    optimizer: torch.optim.Optimizer
    trained: dict[str, Tensor]
    """What the optimizer changes, by name."""

    def step(self, gradients: Iterable[Tensor | None], number: Tensor) -> None:
        """One update with the gradients of the parameters, in their order; None leaves a weight as it is.

        `number` says which step of the training this is (from 0), int64 [1].
        """
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The weights and the state, by name."""
        named = dict(self.trained)
        for name, weights in self.trained.items():
            named |= {f"{name} {key}": t for key, t in self.optimizer.state[weights].items()}
        return named

    def largest(self) -> Tensor:
        """The largest magnitude in the optimizer's state (in the weights, where it has none), or NaN: 0-dim."""
        watched = [t for of in self.trained.values() for t in self.optimizer.state[of].values() if t.shape == of.shape and t.dim()]
        return torch.stack([extreme for t in watched or self.trained.values() for extreme in t.aminmax()]).abs().amax()

    def continue_at(self, number: int) -> None:
        """Note that the next step is `number` (from 0)."""


class ExactUpdates(Updates):
    """All weights in one vector, which one optimizer of the package changes in one go; the parameters become views of it."""

    capturable = True

    def __init__(self, parameters: Parameters, settings: Train, steps_per_epoch: int, epochs: int | None = None) -> None:
        """For the steps of the first `epochs` alone, if given."""
        chosen, sizes = settings.optimizer, [p.numel() for p in parameters.values()]
        weights = torch.cat([p.detach().flatten() for p in parameters.values()])  # float32 [P]
        for parameter, part in zip(parameters.values(), torch.split(weights, sizes), strict=True):
            parameter.data = part.view(parameter.shape)
        self._rates = torch.from_numpy(rates(settings, steps_per_epoch, epochs)).to(weights.device)
        self._rate = torch.zeros((), device=weights.device)
        decay: float | Tensor = 0.0
        self._decays: list[Tensor] = []  # of each parameter, a view
        if chosen.weight_decay:
            decay = torch.full_like(weights, chosen.weight_decay)
            self._decays = list(torch.split(decay, sizes))
            for parameter, part in zip(parameters.values(), self._decays, strict=True):
                if not _decays(parameter, settings):
                    part.zero_()
        self.trained = {"weights": weights}
        common: dict[str, Any] = {"lr": self._rate, "weight_decay": decay}
        if chosen.name == "sgd":
            self.optimizer = optimizers.SGD([weights], momentum=settings.momentum, nesterov=chosen.nesterov, **common)
        else:
            kind = optimizers.Adam if chosen.name == "adam" else optimizers.AdamW
            self.optimizer = kind([weights], betas=chosen.betas, eps=chosen.eps, **common)
        self._shapes = [p.shape for p in parameters.values()]

    def step(self, gradients: Iterable[Tensor | None], number: Tensor) -> None:
        """As the base's. A zero gradient and no decay leave a weight as it is."""
        (weights,), parts = self.trained.values(), []
        for i, (gradient, shape) in enumerate(zip(gradients, self._shapes, strict=True)):
            if gradient is None and self._decays:
                self._decays[i].zero_()
            parts.append(weights.new_zeros(shape.numel()) if gradient is None else gradient.flatten())
        self._rate.copy_(self._rates.index_select(0, number).squeeze(0))
        weights.grad = torch.cat(parts)
        self.optimizer.step()


class NativeUpdates(Updates):
    """torch.optim's optimizer of the model's parameters, and torch.optim.lr_scheduler's schedule."""

    def __init__(self, parameters: Parameters, settings: Train, steps_per_epoch: int) -> None:
        chosen, plain = settings.optimizer, settings.schedule.name == "constant" and not settings.schedule.warmup_epochs
        self.trained = dict(parameters)
        self.capturable = chosen.name == "sgd" and plain
        kept = [p for p in parameters.values() if not _decays(p, settings)]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters.values() if _decays(p, settings)]},
            {"params": kept, "weight_decay": 0.0},
        ]
        common: dict[str, Any] = {"lr": settings.lr, "weight_decay": chosen.weight_decay}
        if chosen.name == "sgd":
            self.optimizer = torch.optim.SGD(groups, momentum=settings.momentum, nesterov=chosen.nesterov, **common)
        else:
            kind = torch.optim.Adam if chosen.name == "adam" else torch.optim.AdamW
            self.optimizer = kind(groups, betas=chosen.betas, eps=chosen.eps, **common)
        # made now as the first step would make it, so that it can be resumed, and captured
        for parameter in parameters.values():
            if chosen.name != "sgd":
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter),
                }  # fmt: skip
            elif settings.momentum:
                self.optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        self._scheduler = None if plain else _scheduler(self.optimizer, settings, steps_per_epoch)

    @torch.no_grad()
    def step(self, gradients: Iterable[Tensor | None], number: Tensor) -> None:
        """As the base's; the scheduler counts its steps itself."""
        for parameter, gradient in zip(self.trained.values(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        if self._scheduler:
            self._scheduler.step()

    def continue_at(self, number: int) -> None:
        """As the base's. The rates of some schedules come from those before, so the scheduler takes its steps again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the optimizer has taken no step
            while self._scheduler and self._scheduler.last_epoch < number:
                self._scheduler.step()


def _decays(parameter: Tensor, settings: Train) -> bool:
    """Whether weight decay is for this weight: biases and the weights of norms have one dimension."""
    return settings.optimizer.decay_norms_and_biases or parameter.dim() > 1


def _scheduler(optimizer: torch.optim.Optimizer, settings: Train, steps_per_epoch: int) -> lr_scheduler.LRScheduler:
    """torch.optim.lr_scheduler's own, a step a batch; `rates` has the same numbers. Raises UserError as it does."""
    schedule, total, warmup = settings.schedule, settings.epochs * steps_per_epoch, warmup_steps(settings, steps_per_epoch)
    rates(settings, steps_per_epoch, 0)  # which refuses what does not fit
    if schedule.name == "one_cycle":
        rise = warmup or round(schedules.RISE * total)
        return lr_scheduler.OneCycleLR(
            optimizer, settings.lr, total_steps=total, pct_start=min(rise, total - 1) / total, cycle_momentum=False
        )
    if schedule.name == "constant":
        after: lr_scheduler.LRScheduler = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    elif schedule.name == "steps":
        milestones = [epoch * steps_per_epoch - warmup for epoch in schedule.milestones]
        after = lr_scheduler.MultiStepLR(optimizer, milestones, schedule.factor)
    else:
        after = lr_scheduler.CosineAnnealingLR(optimizer, max(total - warmup, 1))
    if warmup < 2:  # a warm-up of one step is at the full rate
        return after
    rising = lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
    return lr_scheduler.SequentialLR(optimizer, [rising, after], [warmup])


def select(numerics: str, parameters: Parameters, settings: Train, steps_per_epoch: int, epochs: int | None = None) -> Updates:
    """The updates that `settings` describe, under these numerics (`native`, or a version of exact ones), of parameters on their device.

    For the steps of the first `epochs` alone, if given.

    Raises:
        UserError: the training is too short for its schedule.
    """
    if numerics == "native":
        return NativeUpdates(parameters, settings, steps_per_epoch)
    return ExactUpdates(parameters, settings, steps_per_epoch, epochs)
