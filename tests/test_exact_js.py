"""exact.js, run by Node: a third implementation of docs/exact-numerics.md that must give the pipeline's bits."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models as torchvision

from networks.my_net import Net
from networks.resnet20 import ResNet20
from pipeline import models, numerics
from pipeline.data.dataset import Shape
from pipeline.exact.initialisation import initial_values
from pipeline.models import received, recording
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.weights.export import page
from pipeline.weights.predict import Network
from tests import goldens, network_runs, reference
from tests.network_runs import DATA
from tests.steps import CPU

EXACT = numerics.select("exact", CPU)
SCRIPT = (Path(page.__file__).parent / "exact.js").read_text()


def node(program: str, given: Any) -> Any:
    """What `program`, the body of a function of `given`, returns beside exact.js; numbers travel as JSON, so to the bit."""
    binary = shutil.which("node")
    if binary is None:
        pytest.skip("no Node here (Debian: apt-get install nodejs)")
    script = f"{SCRIPT}\nconst given = JSON.parse(require('fs').readFileSync(0, 'utf8'));\n" + (
        "process.stdout.write(JSON.stringify((() => {" + program + "})()));"
    )
    done = subprocess.run([binary, "-e", script], input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def as_data(module: nn.Module, shape: Shape = (3, 32, 32)) -> dict[str, Any]:
    """The network as the page has it."""
    weights = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    found = received.read(recording.record(module, shape, EXACT, CPU), weights, 10, shape, "network.json")
    assert found is not None
    return page.content(found, module, shape)


def predictions(network: dict[str, Any], images: np.ndarray) -> list[dict[str, Any]]:
    program = """
      for (const tensor of Object.values(given.network.held)) {
        tensor.data = new Float32Array(Uint8Array.from(Buffer.from(tensor.data, "base64")).buffer);
      }
      return given.images.map((bytes) => {
        const { logits, predicted, confidences } = predict(given.network, Uint8Array.from(bytes));
        return { logits: [...logits], predicted, confidences: [...confidences], losses: [...logits.keys()].map((c) => lossOf(logits, c)) };
      });
    """
    return node(program, {"network": network, "images": images.reshape(len(images), -1).tolist()})


def simple_cnn(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    with initial_values(0):
        module = SimpleCNN()
    models.load(module, weights)
    return as_data(module)


class JavaScript(goldens.Reference):
    """What the goldens ask of an implementation, by exact.js; the mean and the update, which no prediction needs, by the reference."""

    def function(self, name: str, x: np.ndarray) -> np.ndarray:
        if name == "softmax":
            return np.array(node("return given.map((row) => softmax(Float32Array.from(row)).probabilities)", x.tolist()))
        if name in ("exp", "log"):
            return np.array(node(f"return given.map({name})", x.tolist()))
        return super().function(name, x)

    def logits(self, weights: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
        return np.array([one["logits"] for one in predictions(simple_cnn(weights), images)], np.float32)

    def evaluation(self, weights: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        given = predictions(simple_cnn(weights), images)
        losses = np.array([one["losses"][label] for one, label in zip(given, labels, strict=True)])
        confidences = np.array([max(one["confidences"]) for one in given], np.float32)
        return float(reference.mean(losses)), np.array([one["predicted"] for one in given]), confidences


@pytest.mark.parametrize("case", ["exact-3-functions", "exact-3-evaluation"])
def test_exact_js_gives_the_goldens(case: str) -> None:
    assert goldens.first_difference(goldens.CASES[case](JavaScript()), goldens.golden(case)) is None


def test_the_page_computes_the_pipelines_version() -> None:
    assert EXACT.version == page.VERSION


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 40.0])
def test_logits_losses_and_confidences_are_the_pipelines(tmp_path: Path, scale: float) -> None:
    model = network_runs.write(tmp_path, scale=scale, images=10)
    network = Network(model, "cpu")
    images = np.concatenate([DATA.test_images[:100], np.zeros((1, 3, 32, 32), np.uint8), np.full((1, 3, 32, 32), 255, np.uint8)])
    ours = network(images)
    logits = torch.from_numpy(ours.logits)
    losses = [network.numerics.scores(logits, torch.full((len(images),), label))[0].numpy() for label in range(10)]
    theirs = predictions(simple_cnn(model.weights), images)
    assert [one["logits"] for one in theirs] == ours.logits.tolist()
    assert [one["confidences"] for one in theirs] == ours.confidences.tolist()
    assert [one["predicted"] for one in theirs] == ours.logits.argmax(1).tolist()
    assert [one["losses"] for one in theirs] == np.stack(losses, 1).tolist()


def test_tiny_weights_give_the_pipelines_bits_too() -> None:
    with initial_values(1):
        module = SimpleCNN()
    for tensor in module.state_dict().values():
        tensor.mul_(2.0**-60)
    logits = EXACT.logits(module, torch.from_numpy(DATA.test_images[:5]))
    assert [one["logits"] for one in predictions(as_data(module), DATA.test_images[:5])] == logits.tolist()


@pytest.mark.parametrize(
    ("x", "expected"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (0.49999999999999994, 0), (2.0**40 + 0.5, 2.0**40)]
)
def test_rint_rounds_half_to_even(x: float, expected: float) -> None:
    assert node("return rint(given)", x) == expected


@pytest.mark.parametrize(("x", "exponent"), [(1.0, 0), (1.9999999999999998, 0), (2.0, 1), (2.0**-40, -40), (0.7, -1)])
def test_exponents_and_powers_of_two_are_exact(x: float, exponent: int) -> None:
    assert node("return [exponentOf(given[0]), powerOfTwo(given[1])]", [x, exponent]) == [exponent, 2.0**exponent]


def test_a_group_with_nan_or_infinity_has_no_unit() -> None:
    program = "return [[1, NaN, 2], [Infinity], [0], [1e-30, -4]].map(unitOf)"
    assert node(program, None) == [None, None, 2.0**-58, 2.0**-16]  # JSON has null for NaN


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("integer", "expected"),
    [
        (2**60 + 2**36, 2**60),  # a tie, to even
        (2**60 + 2**36 + 1, 2**60 + 2**37),  # float64 would make it the tie
        (2**60 + 3 * 2**36 - 1, 2**60 + 2**37),
        (2**60 + 3 * 2**36, 2**60 + 2**38),
        (2**53 - 1, 2**53),
    ],
)
def test_a_sum_beyond_float64_is_rounded_to_float32_once(sign: int, integer: int, expected: int) -> None:
    assert float(node("return rounded(BigInt(given))", str(sign * integer))) == sign * expected


# --- networks --------------------------------------------------------------------------------------------------------


class Windows(nn.Module):
    """Convolutions and pools with windows of every kind, each on the images themselves or on what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 12, (3, 5), (2, 1), (1, 4), (1, 2), bias=False)
        self.own = nn.Conv2d(12, 24, 3, padding="same", dilation=2, groups=12)
        self.two = nn.Conv2d(24, 6, (1, 2), padding="valid", groups=2)
        self.fc = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Ceilings, paddings that count and do not, divisors, windows that overlap and that are not alike."""
        x = F.max_pool2d(F.hardtanh(self.own(self.wide(x)), -0.5, 0.5), (3, 2), (2, 1), (1, 0), (1, 2), ceil_mode=True)
        x = F.avg_pool2d(self.two(x), (3, 5), 2, (1, 2), ceil_mode=True, count_include_pad=False)
        x = F.avg_pool2d(F.max_pool2d(x, 2), 2, 1, 1) + F.avg_pool2d(F.max_pool2d(x, 2), 2, 1, 1, divisor_override=3)
        small = F.adaptive_avg_pool2d(x, (2, None))
        return self.fc(torch.cat([F.adaptive_avg_pool2d(x, (3, 4)).flatten(1), small[:, :, :, :1].flatten(1)], -1))


class Parts(nn.Module):
    """Gates, arithmetic with numbers and by channel, views, and changes in place that another tensor shows."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.scale = nn.Linear(6, 6), nn.Parameter(torch.ones(6, 1, 1))
        self.fc = nn.Linear(6 * 18 * 17, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Of bytes and of floats."""
        x = torch.cat([x[:, :, ::2, 1::2].clone(), 1 - x[:, :, -32::2, :31:2] / 3], dim=1)
        a, _ = x.chunk(2, 1)
        a.sub_(0.25)
        x += 0.125
        gate = torch.sigmoid(self.gate(x.mean([-1, 2])))
        x = (
            F.silu(x * gate[:, :, None, None])
            + F.hardswish(x * self.scale).transpose(2, 3)
            - F.hardsigmoid(gate).unsqueeze(-1).unsqueeze(-1)
        )
        x = F.pad(F.relu6(x.permute(0, 1, 3, 2).contiguous()), (0, 1, 1, 1), value=0.5)
        first, second = x.split([2, 4], dim=1)
        x = torch.cat((second, first[..., :]), 1).view(x.shape[0], 2, 3, 18, 17).transpose(1, 2).reshape(len(x), -1)
        return self.fc(F.dropout(x, 0.5, self.training))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet-20": (ResNet20, 32),
    "one's own": (lambda: Net(10), 32),
    "SimpleCNN of other sizes": (lambda: SimpleCNN(3, 45), 45),
    "MobileNetV2": (lambda: torchvision.MobileNetV2(10, 0.25, [[1, 8, 1, 1], [6, 8, 2, 2], [6, 16, 1, 2]]), 32),
    "MobileNetV3": (lambda: torchvision.mobilenet_v3_small(num_classes=10, width_mult=0.25), 32),
    "DenseNet": (lambda: torchvision.DenseNet(4, (2, 2), 8, 2, num_classes=10), 32),
    "SqueezeNet": (lambda: torchvision.squeezenet1_1(num_classes=10), 33),
    "ShuffleNet": (lambda: torchvision.ShuffleNetV2([1, 1, 1], [8, 8, 16, 16, 16], 10), 32),
    "parts": (Parts, 32),
    "windows": (Windows, 32),
    "sums too long for float64": (lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(3 * 120 * 120, 10)), 120),
    "sums of bytes too long for float64": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 120 * 120, 10)), 120),
}  # fmt: skip


def varied(make: Callable[[], nn.Module]) -> nn.Module:
    """In evaluation, with weights and statistics that are no batch norm's first ones."""
    with initial_values(5):
        module = make().eval()
    random = np.random.default_rng(1)
    for name, tensor in module.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            low = 0.5 if name.endswith(("var", "weight")) else -0.5
            tensor.copy_(torch.from_numpy(random.uniform(low, low + 1, len(tensor))))
    return module


@pytest.mark.parametrize("name", NETWORKS)
def test_a_recorded_network_gives_the_logits_and_confidences_of_the_pipeline(name: str) -> None:
    make, size = NETWORKS[name]
    module, shape = varied(make), (3, size, size)
    images = np.random.default_rng(2).integers(0, 256, (4, *shape), np.uint8)
    images[1], images[2, :, :, ::2] = 0, 255
    logits = EXACT.logits(module, torch.from_numpy(images))
    theirs = predictions(as_data(module, shape), images)
    assert [one["logits"] for one in theirs] == logits.tolist()
    assert [one["confidences"] for one in theirs] == EXACT.probabilities(logits).tolist()
