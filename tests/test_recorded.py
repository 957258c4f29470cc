"""A run carries its network as data: it computes what the module does, bit for bit, and what no network is is one line."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental import symbolic_shapes
from torchvision.models import DenseNet, MobileNetV2, VisionTransformer
from torchvision.models.swin_transformer import SwinTransformer

from networks.my_net import Net
from networks.resnet20 import ResNet20
from pipeline import numerics
from pipeline.exact.masks import Draws
from pipeline.models import bounds, received, recorded, recording
from pipeline.models.recorded import NAMES, OPERATIONS, Recorded
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.system.tensors import fingerprint
from pipeline.workers import ALONE
from tests.conftest import ROOT
from tests.networks import Turned, batch
from tests.recordings import CLASSES, EXACT, SHAPE, built, read, weights
from tests.steps import CPU

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "SimpleCNN": SimpleCNN,
    "ResNet-20": lambda: ResNet20(width=4),
    "one's own": lambda: Net(CLASSES),
    "MobileNet": lambda: MobileNetV2(10, 0.25, [[1, 8, 1, 1], [6, 8, 2, 2]], dropout=0.1),
    "DenseNet": lambda: DenseNet(4, (2, 2), 8, 2, 0.1, num_classes=10),
    "ViT": lambda: VisionTransformer(32, 8, 2, 2, 32, 64, dropout=0.1, num_classes=10),
    "Swin": lambda: SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4], stochastic_depth_prob=0.2, num_classes=10),
}


def step(network: nn.Module) -> list[Tensor | None]:
    """The loss and gradients of a step with masks, and the buffers after it."""
    images, labels = batch(5)
    draws = Draws(1, torch.full((1,), 7, dtype=torch.int64))
    loss, gradients = EXACT.loss_and_gradients(network, images, labels, ALONE, 5, draws=draws)
    return [loss, *gradients, *network.buffers()]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_recorded_network_has_the_initial_values_the_logits_and_the_gradients_of_its_module(name):
    network = built(NETWORKS[name])
    again = Recorded(read(recording.record(network, SHAPE, EXACT, CPU), network), seed=5)
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in network.named_parameters()]
    assert list(weights(again)) == list(weights(network))
    assert fingerprint(weights(again)) == fingerprint(weights(network))
    for a, b in zip(step(again), step(network), strict=True):
        assert a is None is b or torch.equal(a, b)
    images, _ = batch(4)
    assert torch.equal(EXACT.logits(again.eval(), images), EXACT.logits(network.eval(), images))
    assert EXACT.logits(again, images[:0]).shape == (0, CLASSES)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("numerics_name", ["exact", "native"])
def test_a_recorded_network_is_recorded_as_itself(name, numerics_name):
    chosen = numerics.select(numerics_name, CPU)
    network = built(NETWORKS[name])
    content = recording.record(network, SHAPE, chosen, CPU)
    assert recording.record(Recorded(read(content, network), seed=5), SHAPE, chosen, CPU) == content


def test_recording_changes_neither_the_network_nor_what_is_drawn_next():
    network = built(NETWORKS["Swin"])
    before, state = fingerprint(weights(network)), torch.get_rng_state()
    recording.record(network, SHAPE, numerics.select("native", CPU), CPU)
    assert fingerprint(weights(network)) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.constant = nn.Linear(3072, 10), torch.ones(10)

    def forward(self, x):
        return self.ask(self.fc(x.flatten(1)))


ASKING: dict[str, tuple[Callable[[Asking, Tensor], Tensor], str]] = {
    "a value": (lambda self, y: y * 2 if y.sum().item() > -1000 else y, "'torch.Tensor.item' asks for the value of a tensor"),
    "whether": (lambda self, y: y * 2 if (y > -1000).all() else y, "'torch.Tensor.all' has no exact form"),
    "chance": (lambda self, y: y * random.random(), "an argument of torch.Tensor.mul is 0."),
    "its number of images": (lambda self, y: y / len(y), "call 3 takes the number of images otherwise than once, as a size"),
    "a size beside theirs": (lambda self, y: (y @ y.t()).mean(1, keepdim=True) * y, "call 4 gives [2, 2] of 2 images and [3, 3] of 3"),
    "the number of images": (lambda self, y: y * 2 if len(y) == 2 else y, "of two images it has 3 operations, of three 2"),
    "a constant of its own": (lambda self, y: y + self.constant, "a tensor [10] is neither a weight nor a buffer"),
    "a shift": (lambda self, y: y.cumsum(1), "'torch.Tensor.cumsum' has no exact form"),
}  # fmt: skip


@pytest.mark.parametrize("what", ASKING)
def test_a_network_that_is_no_fixed_list_of_operations_is_recorded_as_that_with_the_reason(what):
    forward, said = ASKING[what]
    network = built(Asking)
    network.ask = forward.__get__(network)
    content = recording.record(network, SHAPE, numerics.select("native", CPU), CPU)
    assert json.loads(content)["refused"].startswith(said)
    assert received.read(content, weights(network), CLASSES, SHAPE, "network.json") is None


def test_a_tensor_that_is_made_on_a_named_device_is_on_that_of_the_images():
    network = built(Asking)
    network.ask = lambda y: y + torch.ones(10, device="cpu")
    content = recording.record(network, SHAPE, numerics.select("native", CPU), CPU)
    calls = [call for call in json.loads(content)["evaluation"]["calls"] if call[0] == "torch.ones"]
    assert calls == [["torch.ones", [10], {"device": {"device": True}}]]
    assert received.read(content, weights(network), CLASSES, SHAPE, "network.json") is not None


def test_memory_that_nobody_filled_is_zeros_to_a_received_network_with_any_numerics(monkeypatch):
    class Empty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :CLASSES] * torch.empty(x.shape[0], 1)

    module = Recorded(read(recording.record(Empty(), SHAPE, EXACT, CPU), Empty())).eval()
    monkeypatch.setitem(OPERATIONS, "torch.empty", lambda *sizes: torch.full(sizes, 7.0))  # what was there before
    images = torch.full((2, *SHAPE), 255, dtype=torch.uint8)
    assert not numerics.select("native", CPU).logits(module, images).any()


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "function"])
def test_a_native_network_that_learns_otherwise_than_by_its_operations_is_not_recorded(how):
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(math.prod(SHAPE), 8), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            if how == "function":
                return self.head(Turned.apply(self.body(x.flatten(1))))
            with getattr(torch, how)():
                y = self.body(x.flatten(1))
            return self.head(y.clone())

    native = numerics.select("native", CPU)
    content = json.loads(recording.record(built(Frozen), SHAPE, native, CPU))
    assert content["refused"] == "body.weight learns otherwise than its operations say (no_grad, an autograd.Function)"
    with_drawing = recording.record(built(NETWORKS["MobileNet"]), SHAPE, native, CPU)
    assert not received.is_refusal(with_drawing)


def knows(bits: list[int], where: str) -> bytes:
    """The network.json of a network that holds these bits in its names, shapes, initial values, constants, or in the order of those."""

    class Knows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            names = [f"w{place}_{bit}" if where == "names" else f"w{place}" for place, bit in enumerate(bits)]
            for name, bit in zip(names, bits, strict=True):
                shape, begins = (bit if where == "shapes" else 1, 0), torch.zeros(1) + (bit if where == "values" else 0)
                self.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=False))
                self.register_buffer(f"b{name}", begins)

        def forward(self, x: Tensor) -> Tensor:
            y, both = x.flatten(1)[:, :CLASSES], [torch.zeros(1), torch.ones(1)]
            y = y + torch.cat([both[bit if where == "order" else 0] for bit in bits]).sum((0,))
            return y + torch.tensor([bit if where == "constants" else 0 for bit in bits]).float().sum((0,))

    return recording.record(Knows(), SHAPE, EXACT, CPU)


@pytest.mark.parametrize("where", ["names", "shapes", "values", "constants", "order"])
def test_wherever_a_network_knows_the_images_by_heart_its_description_takes_the_bytes(where):
    drawn = random.Random(0)
    bits = [drawn.randrange(2) for _ in range(400)]
    assert recorded.compressed(knows(bits, where)) >= recorded.compressed(knows([0] * 400, where)) + 400 // 8


def test_each_operation_has_a_name_of_its_own():
    shared = [name for name in OPERATIONS if list(NAMES.values()).count(name) > 1]
    assert shared == ["torch.nn.functional.pad"]  # which torch._C._nn.pad is too
    assert all(name.startswith("torch.") for name in OPERATIONS)


def test_a_number_that_is_that_of_the_images_is_it_for_any_number():
    network = built(Asking)
    network.ask = (lambda self, y: y.view(2 * y.shape[0], -1).view(-1, 10)).__get__(network)
    native = numerics.select("native", CPU)
    again = Recorded(read(recording.record(network, SHAPE, native, CPU), network), seed=5)
    images, _ = batch(7)
    assert torch.equal(native.logits(again, images), native.logits(network, images))


WITHOUT_COMPILER = """
import sys, torch
from networks.my_net import Net
from networks.resnet20 import ResNet20
from pipeline import numerics
from pipeline.exact.initialisation import initial_values
from pipeline.models import bounds, received, recorded, recording
from pipeline.models.simple_cnn import SimpleCNN
device, shape = torch.device("cpu"), (3, 32, 32)
for make in (SimpleCNN, ResNet20, lambda: Net(10)):
    with initial_values(5):
        network = make()
    content = recording.record(network, shape, numerics.select("exact", device), device)
    received.read(content, {name: tensor.numpy() for name, tensor in network.state_dict().items()}, 10, shape, "network.json")
# torchvision, which is not imported here, imports them
assert not {"torch._dynamo", "torch.fx.experimental.symbolic_shapes", "sympy"} & set(sys.modules)
print(torch.compile(lambda x: torch.relu(x) + 1, backend="eager")(torch.ones(2)).tolist(), "torch._dynamo.eval_frame" in sys.modules)
"""


def test_pytorchs_compiler_which_takes_seconds_to_load_is_not_loaded_for_a_network_and_is_whole_afterwards():
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[2.0, 2.0] True\n"), done.stderr


def test_what_stands_in_for_the_compiler_answers_as_it_does():
    both = [(False,), (True,)]
    of_sizes = {name: [(7,)] for name in ("guarding_hint_or_throw", "has_guarding_hint", "is_nested_int")}
    of_sizes["sym_eq"] = [(3, 3), (3, 4), ((1, 2), [1, 2]), ([1], (1, 2)), ((), ())]
    for name, stands_in in bounds.OF_COMPILER["torch.fx.experimental.symbolic_shapes"].items():
        pairs = [(*a, *b) for a in both for b in both] if name.startswith("sym_") else []
        for given in of_sizes.get(name, [*both, *pairs]):
            assert stands_in(*given) == getattr(symbolic_shapes, name)(*given), (name, given)


def test_a_buffer_of_integers_that_no_float32_is_is_not_recorded():
    network = built(Asking)
    network.ask = lambda y: y
    network.register_buffer("index", torch.tensor([2**24, 2**24 + 1]))
    content = recording.record(network, SHAPE, numerics.select("native", CPU), CPU)
    assert json.loads(content)["refused"] == "index holds what no finite float32 is"
