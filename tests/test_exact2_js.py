"""exact2.js, run by Node: a third implementation of docs/exact-numerics.md that must give the pipeline's bits."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import numerics
from pipeline.exact.initialisation import initialise
from pipeline.export import page
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.predict import Network
from tests import goldens, network_runs, reference
from tests.network_runs import DATA

SCRIPT = (Path(page.__file__).parent / "exact2.js").read_text()


def node(program: str, given: Any) -> Any:
    """What `program`, the body of a function of `given`, returns beside exact2.js; numbers travel as JSON, so to the bit."""
    binary = shutil.which("node")
    if binary is None:
        pytest.skip("no Node here (Debian: apt-get install nodejs)")
    script = f"{SCRIPT}\nconst given = JSON.parse(require('fs').readFileSync(0, 'utf8'));\n" + (
        "process.stdout.write(JSON.stringify((() => {" + program + "})()));"
    )
    done = subprocess.run([binary, "-e", script], input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def tensors(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: {"shape": array.shape, "values": array.ravel().tolist()} for name, array in weights.items()}


def predictions(weights: dict[str, np.ndarray], images: np.ndarray) -> list[dict[str, Any]]:
    program = """
      for (const tensor of Object.values(given.tensors)) tensor.values = Float32Array.from(tensor.values);
      const model = simpleCNN(given.tensors);
      return given.images.map((bytes) => {
        const { logits, predicted, confidences } = predict(model, Uint8Array.from(bytes));
        return { logits: [...logits], predicted, confidences: [...confidences], losses: [...logits.keys()].map((c) => lossOf(logits, c)) };
      });
    """
    return node(program, {"tensors": tensors(weights), "images": images.reshape(len(images), -1).tolist()})


class JavaScript(goldens.Reference):
    """What the goldens ask of an implementation, by exact2.js; the mean and the update, which no prediction needs, by the reference."""

    def function(self, name: str, x: np.ndarray) -> np.ndarray:
        if name == "softmax":
            return np.array(node("return given.map((row) => softmax(Float32Array.from(row)).probabilities)", x.tolist()))
        if name in ("exp", "log"):
            return np.array(node(f"return given.map({name})", x.tolist()))
        return super().function(name, x)

    def logits(self, weights: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
        return np.array([one["logits"] for one in predictions(weights, images)], np.float32)

    def evaluation(self, weights: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        given = predictions(weights, images)
        losses = np.array([one["losses"][label] for one, label in zip(given, labels, strict=True)])
        confidences = np.array([max(one["confidences"]) for one in given], np.float32)
        return float(reference.mean(losses)), np.array([one["predicted"] for one in given]), confidences


@pytest.mark.parametrize("case", ["exact-3-functions", "exact-3-evaluation"])
def test_exact2_js_gives_the_goldens(case: str) -> None:
    assert goldens.first_difference(goldens.CASES[case](JavaScript()), goldens.golden(case)) is None


def test_the_page_computes_the_pipelines_version() -> None:
    assert numerics.select("exact", torch.device("cpu")).version == page.VERSION


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 40.0])
def test_logits_losses_and_confidences_are_the_pipelines(tmp_path: Path, scale: float) -> None:
    model = network_runs.write(tmp_path, scale=scale, images=10)
    network = Network(model, "cpu")
    images = np.concatenate([DATA.test_images[:100], np.zeros((1, 3, 32, 32), np.uint8), np.full((1, 3, 32, 32), 255, np.uint8)])
    ours = network(images)
    logits = torch.from_numpy(ours.logits)
    losses = [network.numerics.scores(logits, torch.full((len(images),), label))[0].numpy() for label in range(10)]
    theirs = predictions(model.weights, images)
    assert [one["logits"] for one in theirs] == ours.logits.tolist()
    assert [one["confidences"] for one in theirs] == ours.confidences.tolist()
    assert [one["predicted"] for one in theirs] == ours.logits.argmax(1).tolist()
    assert [one["losses"] for one in theirs] == np.stack(losses, 1).tolist()


def test_tiny_weights_give_the_pipelines_bits_too() -> None:
    module = SimpleCNN()
    initialise(module, seed=1)
    weights = {name: tensor.numpy() * np.float32(2.0**-60) for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))
        logits = numerics.select("exact", torch.device("cpu")).logits(module, torch.from_numpy(DATA.test_images[:5]))
    assert [one["logits"] for one in predictions(weights, DATA.test_images[:5])] == logits.tolist()


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
