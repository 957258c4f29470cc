"""Small made-up kept runs, written with the pipeline's own functions: the logic of `compare` without training."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import draws, files, run
from pipeline.data.dataset import Dataset

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = {"epochs": 2, "batch_size": 64, "lr": 0.01, "momentum": 0.9, "log_every": 10}
DIGEST = "d" * 64


def labels(count: int) -> list[int]:
    """The test labels of every run here, the classes in turn."""
    return [i % 10 for i in range(count)]


def guesses(count: int, wrong: Sequence[int] = ()) -> list[int]:
    """Predicted classes: right for about 6 images in 10, and for `wrong` the opposite of that."""
    right = [int(key) % 10 < 6 for key in draws.random_integers("guesses", 2**32, count)]
    return [(i + (right[i] == (i in wrong)) * (1 + i // 10 % 9)) % 10 for i in range(count)]


def losses(steps: int = 40, off: float = 0.0, since: int = 0) -> list[float]:
    """A falling curve with some noise, times 1 + `off` from the logged step number `since` on."""
    noise = draws.random_integers("losses", 2**16, steps) / 2**16
    curve = (1.2 + 1.1 * np.exp(-np.arange(steps) / 15) + 0.2 * noise).astype(np.float32)
    return [float(str(np.float32(loss * (1 + off * (i >= since))))) for i, loss in enumerate(curve)]


def weights(off: float = 0.0) -> dict[str, np.ndarray]:
    """Two small layers; `off` is added to one element of the second."""
    made = {
        "conv1.weight": (draws.random_integers("conv1.weight", 2**16, 24) / 2**16 - 0.5).astype(np.float32).reshape(2, 3, 2, 2),
        "fc1.bias": (draws.random_integers("fc1.bias", 2**16, 4) / 2**16 - 0.5).astype(np.float32),
    }
    made["fc1.bias"][1] += np.float32(off)
    return made


def dataset(count: int = 1000, name: str = "synthetic", classes: tuple[str, ...] = CLASSES) -> Dataset:
    """A data set whose test labels are these runs'."""
    pixels = draws.random_integers("pixels", 256, (count + 20) * 3 * 64).astype(np.uint8).reshape(-1, 3, 8, 8)
    images = pixels.repeat(4, axis=2).repeat(4, axis=3)
    return Dataset(
        name, classes, images[:20], np.array(labels(20), np.uint8), np.ascontiguousarray(images[20:]), np.array(labels(count), np.uint8)
    )


def keep(
    *,
    runs: Path = run.RUNS,
    device: str = "cpu",
    numerics: str = "exact-1",
    seed: int = 0,
    data: dict[str, str] | None = None,
    train: dict[str, Any] | None = None,
    evaluate: dict[str, Any] | None = None,
    code: str = "c" * 64,
    threads: int = 2,
    capability: str = "AVX2",
    hardware: str = "A processor",
    seconds_per_epoch: float | None = 12.5,
    trained_here: bool = True,
    made: dict[str, np.ndarray] | None = None,
    history: Sequence[float] | None = None,
    predicted: Sequence[int] | None = None,
    actual: Sequence[int] | None = None,
    confidence: float = 0.5,
    classes: Sequence[str] = CLASSES,
    metrics: dict[str, Any] | None = None,
) -> Path:
    """Keep a run under `runs` and return its folder. Its notes go to .cache/, so the current folder must be the test's own."""
    model = weights() if made is None else made
    curve = losses() if history is None else history
    answers = guesses(1000) if predicted is None else predicted
    actual = labels(len(answers)) if actual is None else actual
    hits = [a == p for a, p in zip(actual, answers, strict=True)]
    of_class = {name: [h for h, a in zip(hits, actual, strict=True) if a == i] for i, name in enumerate(classes)}
    identity = run.Identity(
        data=data or {"name": "synthetic", "digest": DIGEST},
        seed=seed,
        numerics=numerics,
        train=TRAIN | (train or {}),
        evaluate={"batch_size": 1000} | (evaluate or {}),
        device=device,
        fingerprint=run.fingerprint(model),
        code={"digest": code, "revision": None},
    )
    facts = {"device": hardware, "threads": threads, "cpu_capability": capability, "python": "3.11.2", "torch": "2.14.1"}
    outputs = Path(tempfile.mkdtemp())
    run.write_model(outputs, model)
    run.write_history(outputs, [run.Step(1 + 10 * i, 1 + 2 * i // len(curve), loss) for i, loss in enumerate(curve)])
    run.write_predictions(
        outputs, [run.Prediction(i, classes[a], classes[p], confidence) for i, (a, p) in enumerate(zip(actual, answers, strict=True))]
    )
    found = {
        "accuracy": sum(hits) / len(hits),
        "loss": 1.25,
        "accuracy_per_class": {name: sum(of) / len(of) for name, of in of_class.items() if of},
        "numerics": numerics,
        "fingerprint": identity.fingerprint,
    }
    files.write_json(outputs / run.METRICS, found | (metrics or {}))
    if trained_here:
        run.note_training(
            identity, facts | {"seconds_per_epoch": seconds_per_epoch, "images_per_second": 4000.0, "peak_memory_bytes": 300_000_000}
        )
    else:  # as on a machine where nothing was trained
        shutil.rmtree(run.CACHE / "environments", ignore_errors=True)
    folder = run.keep(outputs, runs, identity, facts | {"images_per_second": 9000.0, "peak_memory_bytes": 310_000_000})
    shutil.rmtree(outputs)
    return folder
