"""What exact-3 must give, in hex, for both implementations: the pipeline and tests/reference.py.

`python -m tests.goldens` writes the files from the reference. A new golden takes a new version and a line in the changelog.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipeline import device as devices
from pipeline import numerics
from pipeline.evaluation import evaluate
from pipeline.exact import loss, transcendental
from pipeline.exact.draws import random_integers
from pipeline.exact.optimizers import SGD
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.params import Evaluate
from pipeline.workers import ALONE
from tests import reference
from tests.steps import CPU, drawn_set, trainer

FOLDER = Path(__file__).parent / "golden"
LR, MOMENTUM = 0.01, 0.9
Weights = dict[str, np.ndarray]


class Implementation(Protocol):
    """What both can be asked."""

    def function(self, name: str, x: np.ndarray) -> np.ndarray:
        """exp, log, softmax (of float32 rows), mean (of float64 losses), update (of float32 weight, velocity and gradient; w and v)."""

    def steps(self, images: int, batch_size: int) -> Iterator[tuple[float, Weights]]:
        """Loss and weights after each step on the drawn set."""

    def evaluation(self, weights: Weights, images: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The mean loss, the predicted classes and the confidences."""

    def logits(self, weights: Weights, images: np.ndarray) -> np.ndarray:
        """Float32 [N, C]."""

    def one_step(self, weights: Weights, velocity: Weights, images: np.ndarray, labels: np.ndarray) -> tuple[float, Weights]:
        """The loss, and by name the gradients and the weights and velocities after the update."""


class Reference:
    """tests/reference.py."""

    def function(self, name: str, x: np.ndarray) -> np.ndarray:
        functions: dict[str, Any] = {
            "exp": reference.exp, "log": reference.log, "mean": reference.mean, "softmax": lambda x: reference.softmax(x)[2],
            "update": lambda x: np.stack(reference.update(*x, LR, 1.0)),
        }  # fmt: skip
        return np.atleast_1d(functions[name](x))

    def steps(self, images: int, batch_size: int) -> Iterator[tuple[float, Weights]]:
        data = drawn_set(images)
        training = reference.Training(data.train_images, data.train_labels, 0, batch_size, LR, MOMENTUM)
        while True:
            yield float(training.step()), training.weights

    def evaluation(self, weights: Weights, images: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        logits, _ = reference.forward(weights, images)
        return float(reference.mean(reference.losses(logits, labels))), *reference.predict(weights, images)

    def logits(self, weights: Weights, images: np.ndarray) -> np.ndarray:
        return reference.forward(weights, images)[0]

    def one_step(self, weights: Weights, velocity: Weights, images: np.ndarray, labels: np.ndarray) -> tuple[float, Weights]:
        loss, gradients = reference.loss_and_gradients(weights, images, labels)
        results = {f"{name} gradient": gradient for name, gradient in gradients.items()}
        for name, gradient in gradients.items():
            results[name], results[f"{name} velocity"] = reference.update(weights[name], velocity[name], gradient, LR, MOMENTUM)
        return float(loss), results


def _updated(weights: torch.Tensor, velocity: torch.Tensor, gradient: torch.Tensor, momentum: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and velocity after a step of exact.SGD."""
    weights = weights.clone()
    optimizer = SGD([weights], LR, momentum)
    optimizer.state[weights]["momentum_buffer"].copy_(velocity)
    weights.grad = gradient.clone()
    optimizer.step()
    return weights, optimizer.state[weights]["momentum_buffer"]


class Pipeline:
    """pipeline.numerics on a device."""

    def __init__(self, device: torch.device = CPU) -> None:
        devices.prepare(device)
        self.device, self.exact = device, numerics.select("exact", device)

    def function(self, name: str, x: np.ndarray) -> np.ndarray:
        functions: dict[str, Any] = {
            "exp": transcendental.exp, "log": transcendental.log, "mean": loss.mean, "softmax": lambda x: loss.Softmax(x).probabilities,
            "update": self._update,
        }  # fmt: skip
        return np.atleast_1d(functions[name](torch.from_numpy(x).to(self.device)).cpu().numpy())

    def _update(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(_updated(*x, momentum=1.0))

    def steps(self, images: int, batch_size: int) -> Iterator[tuple[float, Weights]]:
        given = trainer(device=self.device, data=drawn_set(images), batch_size=batch_size, lr=LR)
        while True:
            given.step()
            (logged,) = given.read_step_log()
            yield logged.loss, given.named_weights()

    def evaluation(self, weights: Weights, images: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        data = drawn_set(64)
        data = type(data)("golden", data.classes, data.train_images, data.train_labels, images, labels.astype(np.uint8))
        evaluation = evaluate(weights, data, self.device, self.exact, Evaluate(batch_size=9))
        predicted = [data.classes.index(p.predicted) for p in evaluation.predictions]
        return evaluation.metrics.loss, np.array(predicted), np.array([p.confidence for p in evaluation.predictions], np.float32)

    def _model(self, weights: Weights) -> SimpleCNN:
        model = SimpleCNN()
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        return model.to(self.device)

    def logits(self, weights: Weights, images: np.ndarray) -> np.ndarray:
        return self.exact.logits(self._model(weights), torch.from_numpy(images).to(self.device)).cpu().numpy()

    def one_step(self, weights: Weights, velocity: Weights, images: np.ndarray, labels: np.ndarray) -> tuple[float, Weights]:
        on_device = [torch.from_numpy(array).to(self.device) for array in (images, labels.astype(np.int64))]
        loss, gradients = self.exact.loss_and_gradients(self._model(weights), *on_device, ALONE, len(images))
        results = {}
        for name, gradient in zip(weights, gradients, strict=True):
            w, v = (torch.from_numpy(of[name].flatten()).to(self.device) for of in (weights, velocity))
            w, v = _updated(w, v, gradient.flatten(), MOMENTUM)
            after = {f"{name} gradient": gradient, name: w, f"{name} velocity": v}
            results |= {key: tensor.cpu().numpy().reshape(weights[name].shape) for key, tensor in after.items()}
        return float(loss), results


# --- the cases -------------------------------------------------------------------------------------------------------


def _hex(array: np.ndarray) -> list[str]:
    return [float(value).hex() for value in array.flatten()]


def _hash(array: np.ndarray) -> str:
    return reference.fingerprint({"": array})[:16]


def training(of: Implementation, images: int, batch_size: int, steps: int) -> list[str]:
    """Of each step the loss in hex, and of each tensor the first 16 digits of its fingerprint under the name ""."""
    lines = []
    for step, (of_step, weights) in zip(range(1, steps + 1), of.steps(images, batch_size), strict=False):
        if not lines:
            lines.append(",".join(("step", "loss", *weights)))
        lines.append(",".join((str(step), of_step.hex(), *(_hash(weights[name]) for name in lines[0].split(",")[2:]))))
    return lines


def functions(of: Implementation) -> list[str]:
    """Values of exp, log, softmax and the mean, at drawn points and at the edges of their rules."""
    drawn = random_integers("golden/points", 2**40, 60).astype(np.float64) / 2**40  # in [0, 1)
    points = {
        "exp": np.concatenate((-drawn[:20] * 30, [0.0, -59.5, -60.0, -61.0, -1000.0, -0.5 / reference.LOG2E, -1e-300])),
        "log": np.concatenate((1 + drawn[20:40] * 20, [1.0, reference.SQRT2, np.nextafter(reference.SQRT2, 2), 2.0, 8192.0])),
        "mean": np.concatenate((drawn[40:47] * 3, [1.9999999999999998])),  # eight, the largest of them 2 in float32
    }
    lines = ["function,at,value"]
    for name in ("exp", "log"):
        lines += [f"{name},{float(x).hex()},{y}" for x, y in zip(points[name], _hex(of.function(name, points[name])), strict=True)]
    for count in range(8, 0, -1):
        lines.append(f"mean,the last {count},{_hex(of.function('mean', points['mean'][-count:]))[0]}")
    tiny = 2.0**-64 * np.array([0, 1, -1, 1 + 2.0**-23, 4, 1 / 1024], np.float32)
    for i, name in enumerate(("weight", "velocity", "gradient")):
        after = of.function("update", np.eye(3, dtype=np.float32)[i].reshape(3, 1) * tiny)
        lines += [f"update,{name} {float(x).hex()},{' '.join(_hex(y))}" for x, y in zip(tiny, after.T, strict=True)]
    rows = np.stack([(drawn[i : i + 10] * 40 - 20).astype(np.float32) for i in range(0, 50, 10)])
    lines += [f"softmax,row {i},{' '.join(_hex(row))}" for i, row in enumerate(of.function("softmax", rows))]
    return lines


def evaluation(of: Implementation) -> list[str]:
    """The loss, classes and confidences of 31 images, and the logits of one image alone."""
    data = drawn_set(31, "golden/evaluation")
    images = data.train_images >> (np.arange(31, dtype=np.uint8) % 8).reshape(-1, 1, 1, 1)  # darker and darker
    weights = {name: array * np.float32(2) for name, array in reference.initial_weights(0).items()}
    best = int(of.logits(weights, images[:1]).argmax())
    for part in ("weight", "bias"):  # so that three classes always have equal logits, often the largest
        weights[f"fc3.{part}"][[4, 7, 9]] = weights[f"fc3.{part}"][best]
    loss, predicted, confidence = of.evaluation(weights, images, data.train_labels)
    lines = ["image,predicted,confidence", f"mean loss,,{loss.hex()}"]
    lines += [f"{i},{p},{c}" for i, (p, c) in enumerate(zip(predicted, _hex(confidence), strict=True))]
    return [*lines, *(f"logit {i} of image 30 alone,,{x}" for i, x in enumerate(_hex(of.logits(weights, images[30:]))))]


def edges(of: Implementation) -> list[str]:
    """One step with ties in the tiles and zeros before ReLU, and one with weights next to nothing."""
    data = drawn_set(7, "golden/edges")
    images = data.train_images.copy()
    images[0] = 0
    images[1:3, 0] = 100
    lines = ["tensor,value"]
    for kind in ("ties", "tiny"):
        weights = reference.initial_weights(1)
        if kind == "ties":
            weights["conv1.weight"][1] = 0
            weights["conv1.weight"][1, 0, 2, 2] = 0.5  # so of the images of one red, all its outputs are equal
            for name in ("conv1", "conv2", "fc1", "fc2"):
                weights[f"{name}.bias"][:] = 0
        else:
            weights["fc2.weight"] *= np.float32(2.0**-40)  # below the least magnitude of a grid
        velocity = {name: (array * np.float32(2.0**-5)).astype(np.float32) for name, array in weights.items()}
        loss, results = of.one_step(weights, velocity, images, data.train_labels)
        lines += [f"{kind}: loss,{loss.hex()}", *(f"{kind}: {name},{_hash(results[name])}" for name in sorted(results))]
    return lines


CASES: dict[str, Any] = {
    "exact-3-batch-64": lambda of: training(of, 256, 64, 12),
    "exact-3-batch-100": lambda of: training(of, 251, 100, 6),
    "exact-3-batch-512": lambda of: training(of, 549, 512, 3),
    "exact-3-functions": functions,
    "exact-3-evaluation": evaluation,
    "exact-3-edges": edges,
}


def golden(case: str) -> list[str]:
    """The lines of a golden file."""
    return (FOLDER / f"{case}.csv").read_text().splitlines()


def first_difference(lines: list[str], wanted: list[str]) -> str | None:
    """The first row and column in which lines differ from the golden's, or None."""
    names = wanted[0].split(",")
    for one, other in zip(lines, wanted, strict=True):
        for name, a, b in zip(names, one.split(","), other.split(","), strict=True):
            if a != b:
                return f"{names[0]} {one.split(',')[0]}, {name}: {a}, but the golden has {b}"
    return None


if __name__ == "__main__":
    for case, lines_of in CASES.items():
        (FOLDER / f"{case}.csv").write_text("\n".join(lines_of(Reference())) + "\n")
