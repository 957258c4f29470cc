"""A step as CUDA would be given it, on tensors that have a device, a type and a shape but no memory: what it must never ask of a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from pipeline.exact.update import SGD
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from pipeline.exact import transcendental
from pipeline.exact.engine import Exact
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.workers import ALONE
from tests.dispatched import Rules

CUDA = torch.device("cuda:0")
Optimizer = Callable[[Tensor], SGD]
"""Makes what updates a vector of weights on its device."""
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {"SimpleCNN": (SimpleCNN, (3, 32, 32))}
"""A network, and the shape of its images."""
OPTIMIZERS: dict[str, Optimizer] = {"SGD": lambda weights: SGD(weights, 0.01, 0.9)}


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    """What exact numerics keep from one call to the next is no tensor of another test's."""

    def forget() -> None:
        for module in [each for name, each in sys.modules.items() if name.startswith("pipeline.exact")]:
            for kept in [each for each in vars(module).values() if hasattr(each, "cache_clear")]:
                kept.cache_clear()

    forget()
    yield
    forget()


def traced(network: Callable[[], nn.Module], shape: tuple[int, ...], optimizer: Optimizer, images: int = 64) -> Rules:
    """The operations of one training step and of an evaluation, and the rules that they break."""
    rules, numerics = Rules(gpu=True, device=CUDA), Exact()
    with FakeTensorMode():
        with CUDA:
            model = network()
        updating = optimizer(torch.empty(sum(weight.numel() for weight in model.parameters()), device=CUDA))
        pixels = torch.empty(images, *shape, dtype=torch.uint8, device=CUDA)
        labels = torch.empty(images, dtype=torch.int64, device=CUDA)
        with rules:
            _, gradients = numerics.loss_and_gradients(model, pixels, labels, ALONE, images)
            updating.step(torch.cat([gradient.flatten() for gradient in gradients]))
            model.eval()
            numerics.scores(numerics.logits(model, pixels), labels)
    return rules


@pytest.mark.parametrize("images", [64, 3, 1])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_on_cuda_has_no_tensor_elsewhere_divides_by_tensors_alone_and_waits_for_nothing(network, optimizer, images):
    rules = traced(*NETWORKS[network], OPTIMIZERS[optimizer], images)
    assert rules.broken == []
    assert rules.calls > 500


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


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_of_the_step_is_found(fault, monkeypatch):
    module, name, planted, said = PLANTED[fault]
    monkeypatch.setattr(module, name, planted)
    try:
        broken = traced(*NETWORKS["SimpleCNN"], OPTIMIZERS["SGD"]).broken
    except (DataDependentOutputException, DynamicOutputShapeException) as looked:  # as PyTorch itself says where there is no value
        broken = [f"{looked.func}: waits for a value"]
    assert [each for each in broken if said in each]
