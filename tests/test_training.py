"""The train stage: the tutorial's loop, its history, its order; resuming is in test_resume.py."""

from __future__ import annotations

import numpy as np
import pytest
import torchvision
from PIL import Image
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset

from pipeline import numerics
from pipeline.exact.draws import permutation, random_integers
from pipeline.exact.initialisation import initialise
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.params import Train
from pipeline.training import loop
from pipeline.training.loop import Training
from pipeline.training.trainer import Trainer
from tests.steps import CPU, drawn_set, run_steps, trained_fingerprint, trainer

SETTINGS = Train(epochs=2, batch_size=64, lr=0.01, momentum=0.9, log_every=3)


def train(images: int, name: str, settings: Train = SETTINGS) -> Training:
    return loop.train(Trainer(drawn_set(images), CPU, 0, numerics.select(name, CPU), settings))


class TutorialSet(Dataset):
    """Images as torchvision's CIFAR10 gives them: PIL, through ToTensor."""

    def __init__(self, data):
        self.images, self.labels = data.train_images.transpose(0, 2, 3, 1), data.train_labels
        self.transform = torchvision.transforms.ToTensor()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


def test_the_tutorials_loop_with_a_dataloader_gives_the_same_losses_to_float32_rounding():
    data = drawn_set(200)
    model = SimpleCNN()
    initialise(model, 0)
    criterion, optimizer = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    tutorials = []
    for epoch in range(2):
        for inputs, labels in DataLoader(TutorialSet(data), batch_size=64, sampler=permutation(f"order/0/{epoch}", 200).tolist()):
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            tutorials.append(loss.item())
    ours = []
    run_steps(trainer("native", data=data), 8, lambda _, loss: ours.append(loss))
    assert ours == pytest.approx(tutorials, rel=1e-5)
    exact = []
    run_steps(trainer("exact", data=data), 8, lambda _, loss: exact.append(loss))
    assert exact == pytest.approx(tutorials, rel=1e-4)


def test_the_history_has_a_row_every_so_many_steps_and_one_for_the_last():
    history = train(500, "native").history
    assert [(row.step, row.epoch) for row in history] == [(3, 1), (6, 1), (9, 2), (12, 2), (15, 2), (16, 2)]


def test_the_history_has_the_losses_of_those_steps():
    losses = []
    run_steps(trainer(data=drawn_set(500)), 16, lambda _, loss: losses.append(loss))
    history = train(500, "exact").history
    assert [row.loss for row in history] == [losses[i - 1] for i in (3, 6, 9, 12, 15, 16)]


def test_a_repeated_training_gives_equal_weights_and_another_seed_gives_others():
    for name in ("exact", "native"):
        one = trained_fingerprint(name)
        assert trained_fingerprint(name) == one
        assert trained_fingerprint(name, seed=1) != one


def test_every_image_is_seen_once_an_epoch_in_an_order_of_its_own():
    one, two = permutation("order/0/0", 1000), permutation("order/0/1", 1000)
    assert sorted(one) == sorted(two) == list(range(1000))
    assert one.tolist() != two.tolist()


def test_draws_are_those_of_shake_256():
    assert random_integers("tests", 2**63, 3).tolist() == [3348626008083055704, 5083263863065207882, 2955696562908271325]


def test_initial_weights_have_pytorchs_law():
    model = SimpleCNN()
    initialise(model, 0)
    for layer in (model.conv1, model.conv2, model.fc1, model.fc2, model.fc3):
        bound = 1 / np.sqrt(layer.weight[0].numel())
        for part in (layer.weight, layer.bias):
            values = part.detach().numpy()
            assert np.abs(values).max() <= bound
            if values.size > 1000:
                assert abs(values.mean()) < 4 * bound / np.sqrt(3 * values.size)
                assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)


def test_a_batch_larger_than_the_set_is_the_whole_set():
    assert [row.step for row in train(50, "exact").history] == [2]


def test_the_loop_waits_for_the_device_once_a_logged_interval(monkeypatch):
    waits = []
    read = Trainer.read_step_log
    monkeypatch.setattr(Trainer, "read_step_log", lambda self: waits.append(1) or read(self))
    train(640, "native", Train(epochs=1, batch_size=64, lr=0.01, momentum=0.9, log_every=5))
    assert len(waits) == 2
