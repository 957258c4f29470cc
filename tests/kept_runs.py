"""Small made-up kept runs, written with the pipeline's own functions: the logic of `compare` without training."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.data.dataset import Dataset, Description
from pipeline.exact.draws import random_integers
from pipeline.params import Model, Train
from pipeline.runs import environments, keeping, kept, outputs
from pipeline.runs.environments import Facts
from pipeline.runs.outputs import Metrics, Prediction, Step
from pipeline.runs.provenance import Provenance
from pipeline.system.tensors import Tensors, fingerprint

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = Train(epochs=2, batch_size=64, lr=0.01, momentum=0.9, log_every=10)
DIGEST = "d" * 64
DATA = Description(name="synthetic", digest=DIGEST, classes=CLASSES)


def labels(count: int) -> list[int]:
    """The test labels of every run here, the classes in turn."""
    return [i % 10 for i in range(count)]


def guesses(count: int, wrong: Sequence[int] = ()) -> list[int]:
    """Predicted classes: right for about 6 images in 10, and for `wrong` the opposite of that."""
    right = [int(key) % 10 < 6 for key in random_integers("guesses", 2**32, count)]
    return [(i + (right[i] == (i in wrong)) * (1 + i // 10 % 9)) % 10 for i in range(count)]


def losses(steps: int = 40, off: float = 0.0, since: int = 0) -> list[float]:
    """A falling curve with some noise, times 1 + `off` from the logged step number `since` on."""
    noise = random_integers("losses", 2**16, steps) / 2**16
    curve = (1.2 + 1.1 * np.exp(-np.arange(steps) / 15) + 0.2 * noise).astype(np.float32)
    return [float(str(np.float32(loss * (1 + off * (i >= since))))) for i, loss in enumerate(curve)]


def weights(off: float = 0.0) -> dict[str, np.ndarray]:
    """Two small layers; `off` is added to one element of the second."""
    layers = {
        "conv1.weight": (random_integers("conv1.weight", 2**16, 24) / 2**16 - 0.5).astype(np.float32).reshape(2, 3, 2, 2),
        "fc1.bias": (random_integers("fc1.bias", 2**16, 4) / 2**16 - 0.5).astype(np.float32),
    }
    layers["fc1.bias"][1] += np.float32(off)
    return layers


def dataset(count: int = 1000, name: str = "synthetic", classes: tuple[str, ...] = CLASSES) -> Dataset:
    """A data set whose test labels are these runs'."""
    pixels = random_integers("pixels", 256, (count + 20) * 3 * 64).astype(np.uint8).reshape(-1, 3, 8, 8)
    images = pixels.repeat(4, axis=2).repeat(4, axis=3)
    return Dataset(
        name, classes, images[:20], np.array(labels(20), np.uint8), np.ascontiguousarray(images[20:]), np.array(labels(count), np.uint8)
    )


def provenance(
    *,
    data: Description = DATA,
    seed: int = 0,
    numerics: str = "exact-1",
    train: dict[str, Any] | None = None,
    model: Model | None = None,
    code: str = "c" * 64,
    workers: int | None = None,
) -> Provenance:
    """What trained a run's weights; `train` holds what is not as in TRAIN, and the tutorial's network is no `model`."""
    return Provenance(
        data=data, seed=seed, numerics=numerics, train=replaced(TRAIN, train), model=model or msgspec.UNSET, code=code, workers=workers
    )


def replaced(structure: Any, changes: dict[str, Any] | None) -> Any:
    """`structure`, a Struct or a dataclass, with other values for some of its fields."""
    return msgspec.convert({**msgspec.to_builtins(structure), **(changes or {})}, type(structure))


def write_outputs(
    folder: Path,
    *,
    tensors: Tensors | None = None,
    history: Sequence[float] | None = None,
    predicted: Sequence[int] | None = None,
    actual: Sequence[int] | None = None,
    confidence: float = 0.5,
    metrics: dict[str, Any] | None = None,
    network: bytes | None = None,
    **trained: Any,
) -> None:
    """Write the four outputs of a run; `metrics` holds what is not as the predictions say, `trained` is what `provenance` takes."""
    layers = weights() if tensors is None else tensors
    curve = losses() if history is None else history
    guessed = guesses(1000) if predicted is None else predicted
    true = labels(len(guessed)) if actual is None else actual
    training = provenance(**trained)
    classes = training.data.classes
    hits = [a == p for a, p in zip(true, guessed, strict=True)]
    of_class = {name: [h for h, a in zip(hits, true, strict=True) if a == i] for i, name in enumerate(classes)}
    counted = Metrics(
        accuracy=sum(hits) / len(hits),
        loss=1.25,
        accuracy_per_class={name: sum(of) / len(of) for name, of in of_class.items() if of},
        numerics=training.numerics,
        fingerprint=fingerprint(layers),
    )
    outputs.write_training(
        folder, layers, [Step(1 + 10 * i, 1 + 2 * i // len(curve), loss) for i, loss in enumerate(curve)], training, network
    )
    rows = [Prediction(i, classes[a], classes[p], confidence) for i, (a, p) in enumerate(zip(true, guessed, strict=True))]
    outputs.write_evaluation(folder, replaced(counted, metrics), rows)


def keep(
    *,
    runs: Path = kept.RUNS,
    device: str = "cpu",
    threads: int = 2,
    capability: str = "AVX2",
    hardware: str = "A processor",
    trained_by: int | None = 1,
    seconds_per_epoch: float | None = 12.5,
    trained_here: bool = True,
    **written: Any,
) -> Path:
    """Keep a run under `runs` and return its folder. Its environment waits in .cache/, so the current folder must be the test's own.

    `written` is what `write_outputs` takes; `trained_by` is the number of workers in the training's environment.
    """
    facts = Facts(device=device, hardware=hardware, threads=threads, cpu_capability=capability, python="3.11.2", torch="2.14.1")
    folder = Path(tempfile.mkdtemp())
    write_outputs(folder, **written)
    if trained_here:
        measured = {"seconds_per_epoch": seconds_per_epoch, "images_per_second": 4000.0, "peak_memory_bytes": 300_000_000}
        environments.await_evaluation(outputs.read_model(folder), replaced(facts, {"workers": trained_by, **measured}))
    else:  # as on a machine where nothing was trained
        shutil.rmtree(environments.WAITING, ignore_errors=True)
    evaluated = replaced(facts, {"batch_size": 1000, "images_per_second": 9000.0, "peak_memory_bytes": 310_000_000})
    target = keeping.keep(folder, runs, evaluated)
    shutil.rmtree(folder)
    return target
