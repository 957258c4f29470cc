"""What `bench` compares: the tutorial's script, native and exact numerics, a step of training or an evaluation at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn, optim
from torch.utils.data import DataLoader

from pipeline import models, numerics
from pipeline.data.dataset import Dataset
from pipeline.evaluation import evaluate
from pipeline.exact.draws import random_integers
from pipeline.exact.initialisation import initialise
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.params import Evaluate, Model, Train
from pipeline.training.trainer import Trainer

SETTINGS = Train(epochs=1, batch_size=64, lr=0.001, momentum=0.9, log_every=10)
"""The tutorial's, but for the batch size."""
TUTORIAL = "the tutorial's script"
NETWORKS = {
    "ResNet-20": Model(name="networks/resnet20.py:ResNet20"),
    "resnet18": Model(name="resnet18"),
    "mobilenet_v2": Model(name="mobilenet_v2"),
    "ViT, 6 x 192": Model(name="networks/vit.py:ViT"),
}
"""For images of 32 x 32."""

Call = Callable[[], Any]


def random_set(train: int, test: int = 10_000, size: int = 32) -> Dataset:
    """Random images, of so many pixels a side, and labels."""
    arrays = []
    for name, count in (("train", train), ("test", test)):
        pixels = np.resize(random_integers(f"bench/{name}", 256, 2**20).astype(np.uint8), count * 3 * size * size)
        arrays += [pixels.reshape(-1, 3, size, size), (np.arange(count) % 10).astype(np.uint8)]
    return Dataset("random", tuple("0123456789"), *arrays)


def tutorial_loader(data: Dataset, train: bool, batch_size: int, workers: int = 0) -> Any:
    """Torchvision's CIFAR10 with ToTensor in a DataLoader, as in the tutorial; only the files' reading is left out."""
    cifar10 = torchvision.datasets.CIFAR10.__new__(torchvision.datasets.CIFAR10)
    images, labels = (data.train_images, data.train_labels) if train else (data.test_images, data.test_labels)
    cifar10.data, cifar10.targets = images.transpose(0, 2, 3, 1).copy(), labels.tolist()
    cifar10.transform, cifar10.target_transform = torchvision.transforms.ToTensor(), None
    return DataLoader(cifar10, batch_size=batch_size, shuffle=train, num_workers=workers, persistent_workers=workers > 0)


def tutorial_steps(data: Dataset, device: torch.device, workers: int = 0) -> Call:
    """The tutorial's loop, a step at a time."""
    model = SimpleCNN().to(device)
    criterion, optimizer = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=SETTINGS.lr, momentum=SETTINGS.momentum)
    loader = tutorial_loader(data, True, SETTINGS.batch_size, workers)

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    source = batches()

    def step() -> None:
        inputs, labels = next(source)
        inputs, labels = inputs.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()

    return step


def our_steps(data: Dataset, device: torch.device, name: str, network: Model = Model(), settings: Train = SETTINGS) -> Call:  # noqa: B008
    """The pipeline's loop, a step at a time; the log is read as often as `loop.train` reads it."""
    trainer = Trainer(data, device, 0, numerics.select(name, device), settings, network=network)

    def step() -> None:
        trainer.step()
        if trainer.steps_completed % settings.log_every == 0:
            trainer.read_step_log()

    return step


def training_steps(data: Dataset, device: torch.device) -> dict[str, Call]:
    """Variant -> a step of its training."""
    return {
        TUTORIAL: tutorial_steps(data, device),
        f"{TUTORIAL}, 2 workers": tutorial_steps(data, device, 2),
        "native": our_steps(data, device, "native"),
        "exact": our_steps(data, device, "exact"),
    }


def evaluations(data: Dataset, device: torch.device) -> dict[str, Call]:
    """Variant -> an evaluation of the test images."""
    model = SimpleCNN()
    initialise(model, 0)
    weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    loader, criterion = tutorial_loader(data, False, 1000), nn.CrossEntropyLoss(reduction="sum")
    model.to(device)

    def tutorial() -> None:
        with torch.no_grad():
            for inputs, labels in loader:
                scores = model(inputs.to(device))
                criterion(scores, labels.to(device)).item()
                (scores.argmax(1) == labels.to(device)).sum().item()

    def ours(name: str) -> Call:
        chosen = numerics.select(name, device)
        return lambda: evaluate(weights, data, device, chosen, Evaluate(batch_size=1000))

    return {TUTORIAL: tutorial, "native": ours("native"), "exact": ours("exact")}


def network_evaluation(data: Dataset, device: torch.device, name: str, network: Model) -> Call:
    """An evaluation of the test images by a network with its initial weights."""
    model = models.build(network, data.shape, len(data.classes), 0)
    weights = {key: tensor.numpy().copy() for key, tensor in model.state_dict().items()}
    chosen = numerics.select(name, device)
    return lambda: evaluate(weights, data, device, chosen, Evaluate(batch_size=250), network)
