"""Recipes a second time: NumPy alone, written from docs/exact-numerics.md, sharing no line with `pipeline.exact`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.params import Augment, Train
from tests import reference
from tests.reference import F32, Weights, snapped

# --- rates -----------------------------------------------------------------------------------------------------------


def cosine(x: float) -> float:
    """Of half turns, x from 0 to 1."""
    if x > 0.5:
        return -cosine(1 - x)
    q = (x * math.pi) * (x * math.pi)
    y = 1 / math.factorial(22) * -1
    for j in range(10, -1, -1):
        y = y * q
        y = y + (1 / math.factorial(2 * j)) * (-1 if j % 2 else 1)
    return y


def rates(train: Train, batches: int) -> np.ndarray:
    """Float32 [steps], one by one."""
    schedule, count = train.schedule, train.epochs * batches
    warm = round(schedule.warmup_epochs * batches)
    table = []
    for t in range(count):
        if schedule.name == "one_cycle":
            peak = min((warm or round(0.3 * count)) - 1, count - 2)
            low = train.lr / 25
            start, end, x = (low, train.lr, t / peak) if t <= peak else (train.lr, low / 1e4, (t - peak) / (count - 1 - peak))
            rate = end + (start - end) / 2 * (cosine(x) + 1)
        elif t < warm:
            rate = train.lr * ((t + 1) / warm)
        elif schedule.name == "cosine":
            rate = 0.0 + (train.lr - 0.0) / 2 * (cosine((t - warm) / (count - warm)) + 1)
        else:
            rate = train.lr
            for milestone in schedule.milestones:
                rate = rate * schedule.factor if t >= milestone * batches else rate
        table.append(rate)
    return np.array(table).astype(F32)


# --- updates ---------------------------------------------------------------------------------------------------------


class Optimizer:
    """Of one weight."""

    def __init__(self, train: Train, weight: np.ndarray) -> None:
        self.train, self.of = train, train.optimizer
        self.first, self.second = np.zeros_like(weight), np.zeros_like(weight)
        self.powers = [1.0, 1.0]
        self.decay = self.of.weight_decay if self.of.decay_norms_and_biases or weight.ndim > 1 else 0.0

    def step(self, w: np.ndarray, g: np.ndarray, rate: np.float32) -> np.ndarray:
        """The new weight."""
        if self.of.name == "adamw":
            w = w * F32(1 - float(rate) * float(self._decay_of_adamw()))
        elif self.decay:
            g = g + w * F32(self.decay)
        if self.of.name == "sgd":
            momentum = F32(self.train.momentum)
            self.first = snapped(self.first * momentum + g)
            direction = self.first * momentum + g if self.of.nesterov else self.first
            return snapped(w - direction * rate)
        b1, b2 = self.of.betas
        self.first = snapped(self.first * F32(b1) + g * F32(1 - b1))
        second = self.second * F32(b2) + (g * g) * F32(1 - b2)
        self.second = np.where(second <= F32(2.0**-100), F32(0), second)
        self.powers = [self.powers[0] * b1, self.powers[1] * b2]
        size = F32(float(rate) / (1 - self.powers[0]))
        below = np.sqrt(self.second) / np.sqrt(F32(1 - self.powers[1])) + F32(self.of.eps)
        return snapped(w - (self.first / below) * size)

    def _decay_of_adamw(self) -> np.float32:
        return F32(self.decay)


# --- augmentation ----------------------------------------------------------------------------------------------------


def hashed(x: int) -> int:
    """32 bits of 32 bits."""
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) % 2**32
    return x ^ (x >> 16)


def drawn(seed: int, epoch: int, number: int) -> list[int]:
    """The five draws of an image."""
    key = hashed(seed % 2**32)
    for word in (seed // 2**32, epoch):
        key = hashed((key + word) % 2**32)
    own = hashed((hashed(number % 2**32) + key) % 2**32)
    return [hashed((hashed(which) + own) % 2**32) for which in range(5)]


def augmented(images: np.ndarray, numbers: np.ndarray, seed: int, epoch: int, settings: Augment) -> np.ndarray:
    """Image by image."""
    results = []
    for image, number in zip(images, numbers.tolist(), strict=True):
        flip, row, column, cut_row, cut_column = drawn(seed, epoch, number)
        _, height, width = image.shape
        if settings.crop:
            edge, mode = settings.crop, "constant" if settings.padding == "zeros" else "reflect"
            around: Any = np.pad(image, ((0, 0), (edge, edge), (edge, edge)), mode)  # type: ignore[call-overload]
            top, left = row * (2 * edge + 1) // 2**32, column * (2 * edge + 1) // 2**32
            image = around[:, top : top + height, left : left + width]
        if settings.flip and flip >= 2**31:
            image = image[:, :, ::-1]
        if settings.cutout:
            image = image.copy()
            top, left = cut_row * height // 2**32 - settings.cutout // 2, cut_column * width // 2**32 - settings.cutout // 2
            image[:, max(top, 0) : max(top + settings.cutout, 0), max(left, 0) : max(left + settings.cutout, 0)] = 0
        results.append(image)
    return np.stack(results)


# --- label smoothing -------------------------------------------------------------------------------------------------


def tree(x: np.ndarray) -> np.ndarray:
    """Sums of the rows of x [N, C]: the second half is added to the first."""
    parts = [x[:, i] for i in range(x.shape[1])]
    while len(parts) > 1:
        half = (len(parts) + 1) // 2
        parts = [parts[i] + parts[i + half] if i + half < len(parts) else parts[i] for i in range(half)]
    return parts[0]


def loss_and_gradients(weights: Weights, images: np.ndarray, labels: np.ndarray, smoothing: float) -> tuple[np.float32, Weights]:
    """Of a whole batch."""
    logits, kept = reference.forward(weights, images)
    z, total, probability = reference.softmax(logits)
    own, shared = 1 - smoothing, smoothing / z.shape[1]
    wanted = z[np.arange(len(z)), labels] * own + tree(z) * shared
    losses = reference.log(total * 2.0**-40) - wanted
    g = ((probability - (np.eye(z.shape[1])[labels] * own + shared)) / np.float64(len(images))).astype(F32)
    return F32(reference.mean(losses)), reference.backward(weights, kept, g)


class Training(reference.Training):
    """A training of SimpleCNN by a recipe, a step at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int, train: Train) -> None:
        super().__init__(images, labels, seed, train.batch_size, train.lr, train.momentum)
        self.train, self.rates, self.count = train, rates(train, math.ceil(len(images) / train.batch_size)), 0
        self.optimizers = {name: Optimizer(train, weight) for name, weight in self.weights.items()}

    def step(self) -> np.float32:
        """One step; its loss."""
        rows = reference.order(self.seed, self.epoch, len(self.images))[self.first : self.first + self.batch_size]
        images = augmented(self.images[rows], rows, self.seed, self.epoch, self.train.augment)
        loss, gradients = loss_and_gradients(self.weights, images, self.labels[rows], self.train.label_smoothing)
        for name, gradient in gradients.items():
            self.weights[name] = self.optimizers[name].step(self.weights[name], gradient, self.rates[self.count])
        self.first, self.count = self.first + self.batch_size, self.count + 1
        if self.first >= len(self.images):
            self.epoch, self.first = self.epoch + 1, 0
        return loss
