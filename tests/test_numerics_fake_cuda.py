"""A step as CUDA would be given it, on tensors that have a device, a type and a shape but no memory: what it must never ask of a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from msgspec import structs
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torchvision.models import MobileNetV2, VisionTransformer

from networks.resnet20 import ResNet20
from pipeline.exact import hardware, transcendental
from pipeline.exact.augmentation import Augmentation
from pipeline.exact.engine import Exact
from pipeline.exact.masks import Draws
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.params import Augment, Optimizer, Schedule, Train
from pipeline.training import updates
from pipeline.workers import ALONE
from tests.dispatched import Rules

CUDA = torch.device("cuda:0")
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "SimpleCNN": (SimpleCNN, 500),
    "ResNet-20": (ResNet20, 3000),
    "a small ViT": (lambda: VisionTransformer(32, 8, 2, 2, 32, 64, dropout=0.1, num_classes=10), 2500),
    "MobileNet's blocks": (lambda: MobileNetV2(10, 0.25, [[1, 8, 1, 1], [6, 8, 2, 2]], dropout=0.1), 2500),
}
"""A network for images of 3 x 32 x 32 and ten classes, and how many operations its step has at least."""
TUTORIAL = Train(epochs=4, batch_size=64, lr=0.01, momentum=0.9, log_every=10)
RECIPES = {
    "the tutorial's": TUTORIAL,
    "SGD with all": structs.replace(
        TUTORIAL, optimizer=Optimizer(nesterov=True, weight_decay=5e-4, decay_norms_and_biases=False), label_smoothing=0.1,
        schedule=Schedule(name="cosine", warmup_epochs=1), augment=Augment(flip=True, crop=4, cutout=8),
    ),
    "Adam": structs.replace(TUTORIAL, optimizer=Optimizer(name="adam"), schedule=Schedule(name="steps", milestones=(2,))),
    "AdamW": structs.replace(
        TUTORIAL, optimizer=Optimizer(name="adamw", weight_decay=0.05), schedule=Schedule(name="one_cycle"),
        augment=Augment(crop=4, padding="reflect"),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch) -> Iterator[None]:
    """What exact numerics keep from one call to the next is no tensor of another test's; no initialisation looks at its values."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, *_, **__: tensor)

    def forget() -> None:
        for module in [each for name, each in sys.modules.items() if name.startswith("pipeline.exact")]:
            for kept in [each for each in vars(module).values() if hasattr(each, "cache_clear")]:
                kept.cache_clear()

    forget()
    yield
    forget()


def traced(network: Callable[[], nn.Module], settings: Train, images: int = 64) -> Rules:
    """The operations of one training step, from bytes to new weights, and of an evaluation, and the rules that they break."""
    rules, numerics = Rules(gpu=True, device=CUDA), Exact()
    with FakeTensorMode():
        with CUDA:
            model = network()
        updating = updates.select(numerics.version, dict(model.named_parameters()), settings, steps_per_epoch=5)
        augmentation = Augmentation(0, **structs.asdict(settings.augment))
        pixels = torch.empty(images, 3, 32, 32, dtype=torch.uint8, device=CUDA)
        labels, rows = (torch.empty(images, dtype=torch.int64, device=CUDA) for _ in range(2))
        number = torch.zeros(1, dtype=torch.int64, device=CUDA)
        with rules:
            _, gradients = numerics.loss_and_gradients(
                model, augmentation(pixels, number, rows), labels, ALONE, images, draws=Draws(0, number, 0),
                label_smoothing=settings.label_smoothing,
            )  # fmt: skip
            updating.step(gradients, number)
            updating.largest()
            model.eval()
            numerics.scores(numerics.logits(model, pixels), labels)
    return rules


@pytest.mark.parametrize(
    ("network", "recipe", "images"),
    [
        *((network, recipe, 64) for network in ("SimpleCNN", "ResNet-20") for recipe in RECIPES),
        *(("SimpleCNN", "SGD with all", images) for images in (3, 1)),
        ("ResNet-20", "SGD with all", 1),
        ("a small ViT", "AdamW", 3),
        ("MobileNet's blocks", "SGD with all", 3),
    ],
)
def test_a_step_on_cuda_has_no_tensor_elsewhere_divides_by_tensors_alone_and_waits_for_nothing(network, recipe, images):
    make, operations = NETWORKS[network]
    rules = traced(make, RECIPES[recipe], images)
    assert rules.broken == []
    assert rules.calls > operations


def test_a_step_whose_products_are_taken_by_digits_breaks_no_rule_either(monkeypatch):
    monkeypatch.setattr(hardware, "multiplies_by_digits", lambda tensor: True)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b, int_mm=torch._int_mm: taken.append(a.device) or int_mm(a, b))
    taken: list[torch.device] = []
    assert traced(NETWORKS["ResNet-20"][0], RECIPES["AdamW"], 3).broken == []
    assert len(taken) > 60
    assert set(taken) == {CUDA}


def first(x: Tensor) -> Tensor:
    """The index 0, int64 [1]."""
    return torch.zeros(1, dtype=torch.int64, device=x.device)


PLANTED: dict[str, tuple[object, str, Callable[..., Tensor], str]] = {
    "a division by a number": (transcendental, "log", lambda x: x / 3.0, "divides by a number"),
    "a division by a number of the CPU": (transcendental, "log", lambda x: x / torch.tensor(3.0), "a tensor on cpu"),
    "a number of the CPU": (transcendental, "exp", lambda x: x * torch.tensor(3.0), "a tensor on cpu"),
    "a look at a value": (transcendental, "exp", lambda x: x if x.sum() > 0 else -x, "waits for a value"),
    "a look for values": (transcendental, "exp", lambda x: x + x.nonzero().sum(), "waits for a value"),
    "a mean": (transcendental, "log", lambda x: x * x.mean(), "mean: its bits are not the same everywhere"),
    "the library's exp": (transcendental, "exp", torch.exp, "exp: its bits are not the same everywhere"),
    "a factor that may be fused": (transcendental, "exp", lambda x: torch.add(x, x, alpha=0.9), "a factor of 0.9, 1 that may be fused"),
    "a fused product and sum": (transcendental, "exp", lambda x: torch.addcmul(x, x, x), "addcmul: its bits"),
    "a sum in the order of threads": (transcendental, "exp", lambda x: x.index_add(0, first(x), x[:1]), "index_add: adds numbers"),
    "a running sum": (transcendental, "exp", lambda x: x.cumsum(1), "cumsum: adds numbers"),
    "values added at places": (
        transcendental, "exp", lambda x: x.index_put((first(x),), x[:1], accumulate=True), "index_put: adds numbers",
    ),
}  # fmt: skip
"""Something that breaks a rule, put in the place of a function of the step, and what is said of it."""


@pytest.mark.parametrize(
    ("network", "recipe", "fault"),
    [*(("SimpleCNN", "the tutorial's", fault) for fault in PLANTED), ("ResNet-20", "AdamW", "a division by a number")],
)
def test_a_planted_fault_of_the_step_is_found(network, recipe, fault, monkeypatch):
    module, name, planted, said = PLANTED[fault]
    monkeypatch.setattr(module, name, planted)
    try:
        broken = traced(NETWORKS[network][0], RECIPES[recipe]).broken
    except (DataDependentOutputException, DynamicOutputShapeException) as looked:  # as PyTorch itself says where there is no value
        broken = [f"{looked.func}: waits for a value"]
    assert [each for each in broken if said in each]
