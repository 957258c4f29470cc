"""`model.normalize`: the training images' mean and deviation, exactly, as the first operation of the network."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from pipeline import models, numerics
from pipeline.models import normalisation, received, recording
from pipeline.params import Model, Normalize, Train
from pipeline.system.errors import UserError
from pipeline.training.trainer import Trainer
from tests.steps import CPU, drawn_set

MEAN, DEVIATION = (0.5, 0.25, 0.75), (0.25, 0.5, 0.125)
EXACT = numerics.select("exact", CPU)
SETTINGS = Train(epochs=1, batch_size=64, lr=0.01, momentum=0.9, log_every=1)


def test_the_mean_and_deviation_are_the_exact_ones_rounded_once(monkeypatch):
    monkeypatch.setattr(normalisation, "IMAGES", 2)
    images = drawn_set(5).train_images
    for channel, (mean, deviation) in enumerate(zip(*normalisation.of_images(images), strict=True)):
        values = [Fraction(int(value), 255) for value in images[:, channel].flatten()]
        exact = sum(values) / len(values)
        assert mean == float(exact)
        assert deviation == float(np.sqrt(float(sum(value * value for value in values) / len(values) - exact * exact)))


@pytest.mark.parametrize("name", ["exact", "native"])
def test_the_network_is_given_the_normalised_images(name):
    data, chosen = drawn_set(8), numerics.select(name, CPU)
    network = models.build(Model(normalize=Normalize(mean=MEAN, std=DEVIATION)), data.shape, 10, 0).eval()
    plain = models.build(Model(), data.shape, 10, 0).eval()
    images = torch.from_numpy(data.train_images)
    pixels = (images.float() / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(DEVIATION).view(1, 3, 1, 1)
    assert torch.equal(chosen.logits(network, images), chosen.logits(plain, pixels))


def test_a_training_normalises_by_its_own_images_and_its_recording_does_as_well():
    data, model = drawn_set(70), Model(normalize=True)
    trainer = Trainer(data, CPU, 0, EXACT, SETTINGS, network=model)
    mean, deviation = normalisation.of_images(data.train_images)
    assert trainer.model.get_buffer("pixel_mean").flatten().tolist() == np.float32(mean).tolist()
    assert trainer.model.get_buffer("pixel_deviation").flatten().tolist() == np.float32(deviation).tolist()
    weights = trainer.named_weights()
    found = received.read(recording.record(trainer.model, data.shape, EXACT, CPU), weights, 10, data.shape, "network.json")
    assert found is not None
    again = Trainer(data, CPU, 0, EXACT, SETTINGS, network=model, recorded=found)
    for each in (trainer, again):
        each.step()
    assert all(np.array_equal(a, b) for a, b in zip(trainer.named_weights().values(), again.named_weights().values(), strict=True))
    loaded = models.build(model, data.shape, 10)
    models.load(loaded, trainer.named_weights())
    assert loaded.get_buffer("pixel_mean").flatten().tolist() == np.float32(mean).tolist()


def test_numbers_for_other_channels_and_a_channel_without_a_deviation_are_one_line():
    with pytest.raises(UserError, match=r"model.normalize has 1 means and 1 deviations \(std\), and the images 3 channels"):
        models.build(Model(normalize=Normalize(mean=(0.5,), std=(0.5,))), (3, 32, 32), 10)
    images = np.zeros((4, 3, 32, 32), np.uint8)
    images[0, :2] = 1
    with pytest.raises(UserError, match=r"model\.normalize: channel 2 is the same in all pixels"):
        normalisation.set_numbers(models.build(Model(normalize=True), (3, 32, 32), 10), images)
