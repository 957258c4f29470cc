"""What is not finite: a loss or gradient stops training with the step, and no gradient hides it."""

from __future__ import annotations

import math

import pytest

from pipeline import numerics
from pipeline.params import Train
from pipeline.system.errors import UserError
from pipeline.training.loop import train
from pipeline.training.trainer import Trainer
from tests.networks import batch, step
from tests.steps import CPU, drawn_set, trainer


@pytest.mark.parametrize("name", ["exact", "native"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training_with_the_step(name, poison, monkeypatch):
    original = Trainer._step

    def poisoned(self, offsets):
        if int(self.position) == 64 * 2:
            self.model.fc3.weight.data[3, 3] = poison
        original(self, offsets)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    settings = Train(epochs=3, batch_size=64, lr=0.01, momentum=0.9, log_every=7)
    with pytest.raises(UserError, match=r"training stopped at step 3: the loss is nan; set a smaller lr than 0.01"):
        train(Trainer(drawn_set(), CPU, 0, numerics.select(name, CPU), settings))


@pytest.mark.parametrize("name", ["exact", "native"])
def test_a_gradient_that_is_not_finite_stops_training_with_the_step(name, monkeypatch):
    chosen = numerics.select(name, CPU)
    settings = Train(epochs=1, batch_size=64, lr=0.01, momentum=0.9, log_every=7)
    given = Trainer(drawn_set(), CPU, 0, chosen, settings)
    update = given.updates.step
    monkeypatch.setattr(given.updates, "step", lambda gradients, number: update([g * math.inf for g in gradients], number))
    with pytest.raises(UserError, match="training stopped at step 1: a gradient is not finite"):
        train(given)


@pytest.mark.parametrize("images", [3, 400])  # 400: sums in int64, which has no NaN
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_every_gradient_that_a_value_which_is_not_finite_reaches_is_nan(images, value):
    """An output channel's, which have a grid of their own: none is reached where ReLU gave 0 for all images."""
    given = trainer()
    given.model.fc3.bias.data[0] = value
    loss, *gradients = step(given.model, *batch(3), of=images)
    assert loss.isnan()
    assert all(g.isnan().any() for g in gradients)
    assert all(g.isnan().all() for g in gradients[-2:])
    for g in gradients:
        channels = g.flatten(1) if g.dim() > 1 else g.unsqueeze(1)
        assert (channels.isnan().all(1) | (channels == 0).all(1)).all()
