"""What exact recipes must give, in hex, for both implementations: the pipeline and tests/reference_recipes.py.

`python -m tests.goldens_recipes` writes the files from the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipeline import numerics
from pipeline.exact.augmentation import Augmentation
from pipeline.params import Augment, Optimizer, Schedule, Train
from pipeline.training import updates
from pipeline.training.trainer import Trainer
from tests import reference_recipes
from tests.reference import fingerprint
from tests.steps import drawn_set

FOLDER = Path(__file__).parent / "golden"
TUTORIAL: dict[str, Any] = {"epochs": 3, "batch_size": 20, "lr": 0.01, "momentum": 0.9, "log_every": 1}
RECIPES = {
    "sgd with nesterov, cosine with warm-up, flip and crop, smoothing": Train(
        **TUTORIAL, optimizer=Optimizer(nesterov=True, weight_decay=5e-4), schedule=Schedule(name="cosine", warmup_epochs=1.5),
        augment=Augment(flip=True, crop=4), label_smoothing=0.1,
    ),
    "adamw, one cycle, cutout": Train(
        **TUTORIAL | {"lr": 0.001}, optimizer=Optimizer(name="adamw", weight_decay=0.05, decay_norms_and_biases=False),
        schedule=Schedule(name="one_cycle"), augment=Augment(cutout=9),
    ),
    "adam, steps with warm-up, reflected crop": Train(
        **TUTORIAL | {"lr": 0.001}, optimizer=Optimizer(name="adam", weight_decay=0.01),
        schedule=Schedule(name="steps", milestones=(1, 2), factor=0.2, warmup_epochs=1.0), augment=Augment(crop=3, padding="reflect"),
    ),
}  # fmt: skip
SCHEDULES = {
    "constant": Schedule(warmup_epochs=2), "cosine": Schedule(name="cosine", warmup_epochs=0.5),
    "steps": Schedule(name="steps", milestones=(1, 2), factor=0.3), "one_cycle": Schedule(name="one_cycle"),
}  # fmt: skip
IMAGES, STEPS, SEED = 50, 9, 3
"""Three batches an epoch, the last one of 10 images."""


class Implementation(Protocol):
    """What both can be asked."""

    def training(self, recipe: Train) -> Any:
        """What has `step`, which gives the loss, and `weights`."""

    def rates(self, train: Train, batches: int) -> np.ndarray:
        """The table, float32."""

    def augmented(self, images: np.ndarray, numbers: np.ndarray, epoch: int, settings: Augment) -> np.ndarray:
        """New bytes."""


class Reference:
    """tests/reference_recipes.py."""

    def training(self, recipe: Train) -> Any:
        data = drawn_set(IMAGES)
        return reference_recipes.Training(data.train_images, data.train_labels, SEED, recipe)

    def rates(self, train: Train, batches: int) -> np.ndarray:
        return reference_recipes.rates(train, batches)

    def augmented(self, images: np.ndarray, numbers: np.ndarray, epoch: int, settings: Augment) -> np.ndarray:
        return reference_recipes.augmented(images, numbers, SEED, epoch, settings)


class _Stepwise:
    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @property
    def weights(self) -> dict[str, np.ndarray]:
        return self.trainer.named_weights()

    def step(self) -> float:
        self.trainer.step()
        (logged,) = self.trainer.read_step_log()
        return logged.loss


class Pipeline:
    """The pipeline's, on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def training(self, recipe: Train) -> Any:
        return _Stepwise(Trainer(drawn_set(IMAGES), self.device, SEED, numerics.select("exact", self.device), recipe))

    def rates(self, train: Train, batches: int) -> np.ndarray:
        return updates.rates(train, batches)

    def augmented(self, images: np.ndarray, numbers: np.ndarray, epoch: int, settings: Augment) -> np.ndarray:
        augment = Augmentation(SEED, flip=settings.flip, crop=settings.crop, padding=settings.padding, cutout=settings.cutout)
        given = [torch.from_numpy(each).to(self.device) for each in (images, np.array([epoch]), numbers)]
        return augment(*given).cpu().numpy()


def recipes(of: Implementation) -> list[str]:
    """The loss of each step, in hex, and the weights' fingerprint; rates of schedules; fingerprints of augmented images."""
    lines = ["what,value,fingerprint"]
    for name, recipe in RECIPES.items():
        training = of.training(recipe)
        for step in range(1, STEPS + 1):
            loss = float(training.step()).hex()
            lines.append(f"{name.replace(',', ';')}: step {step},{loss},{fingerprint(training.weights)[:16]}")
    for name, schedule in SCHEDULES.items():
        table = of.rates(Train(**TUTORIAL, schedule=schedule), 7)
        lines += [f"{name}: rate {i},{float(rate).hex()}," for i, rate in enumerate(table)]
    images, numbers = drawn_set(IMAGES).train_images, np.arange(IMAGES) * 2**20
    settings = {
        "flip": Augment(flip=True),
        "crop": Augment(crop=4),
        "reflect": Augment(crop=4, padding="reflect"),
        "cutout": Augment(cutout=9),
    }
    for name, each in settings.items():
        for epoch in (0, 1):
            lines.append(f"{name}: epoch {epoch},,{fingerprint({'': of.augmented(images, numbers, epoch, each)})[:16]}")
    return lines


GOLDEN = FOLDER / "exact-3-recipes.csv"

if __name__ == "__main__":
    GOLDEN.write_text("\n".join(recipes(Reference())) + "\n")
