"""What the tests of `reproduce` share: a small set, runs made with it, copies forged by hand, and what is said of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec import structs

from pipeline import evaluation, inputs
from pipeline.data.dataset import Dataset
from pipeline.exact.draws import permutation
from pipeline.params import Compare
from pipeline.runs import kept, outputs
from pipeline.system import tensors
from pipeline.system.errors import Interrupted, UserError
from pipeline.training import stage
from pipeline.training.trainer import Trainer
from pipeline.weights import reproduce
from tests.conftest import ROOT
from tests.settings import set_params

CLASSES = tuple(f"class{i}" for i in range(10))
SETTINGS = {"epochs": 2, "batch_size": 16, "lr": 0.05, "momentum": 0.9, "log_every": 3}
"""On 72 images: five batches an epoch, rows of the history after steps 3, 6, 9 and 10."""
WIDE = Compare(margin_points=2.0, confidence=0.5)
"""On 40 images no interval lies within a point."""


def small_set(images: int = 72, classes: tuple[str, ...] = CLASSES) -> Dataset:
    """Drawn bytes and labels."""
    pixels = (permutation("reproduce/images", images * 3072) % 256).astype(np.uint8).reshape(-1, 3, 32, 32)
    labels = (np.arange(images) % 10).astype(np.uint8)
    return Dataset("drawn", classes, pixels, labels, pixels[:40], labels[:40])


def make(folder: Path, numerics: str) -> Path:
    """Run the stages `train` and `evaluate` in `folder`, on the small set; the kept run's folder."""
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, numerics=numerics, train=SETTINGS, evaluate={"batch_size": 16})
    with contextlib.chdir(folder):
        small_set().save()
        stage.train(inputs.read("train"))
        evaluation.stage(inputs.read("evaluate"))
        (run,) = kept.listed()
    return folder / run


def hand_over(
    author: Path,
    receiver: Path,
    model: dict[str, object],
    numerics: str = "exact",
    batch_size: int = 16,
    besides: dict[str, str] | None = None,
) -> None:
    """Train a network in an author's project; put the run and its data set, nothing else, into the receiver's folder.

    `batch_size` is that of the evaluation, `besides` holds the text of more files of networks/.
    """
    shutil.copy(ROOT / "params.yaml", author)
    shutil.copytree(ROOT / "networks", author / "networks", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in (besides or {}).items():
        (author / "networks" / name).write_text(text)
    set_params(author, numerics=numerics, train=SETTINGS, evaluate={"batch_size": batch_size}, model=model)
    with contextlib.chdir(author):
        small_set().save()
        stage.train(inputs.read("train"))
        evaluation.stage(inputs.read("evaluate"))
        (run,) = kept.listed()
    shutil.copytree(author / run, receiver / "theirs")
    shutil.copytree(author / "data", receiver / "data")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on standard output."""
    return capsys.readouterr().out.splitlines()[-1]


def claim(run: Path, target: Path, **changed: Callable) -> Path:
    """A forger's copy of a run: `history`, `weights`, `predictions`, `metrics` and `identity` changed, and all hashes made to fit.

    It has a network.json only where `network` makes one of the run's.
    """

    def change(what, value):
        return changed.get(what, lambda same: same)(value)

    target.mkdir()
    model = outputs.read_model(run)
    provenance = change("provenance", model.provenance)
    history, network = change("history", outputs.read_history(run)), changed.get("network", lambda its: None)(model.network)
    outputs.write_training(target, change("weights", model.weights), history, provenance, network)
    predictions = change("predictions", outputs.read_predictions(run))
    hits = [(p.actual, p.actual == p.predicted) for p in predictions]
    of_class = {name: [hit for actual, hit in hits if actual == name] for name in dict(hits)}
    fingerprint = tensors.fingerprint(outputs.read_weights(target))
    metrics = {
        "accuracy": sum(hit for _, hit in hits) / len(hits),
        "loss": outputs.read_metrics(run).loss,
        "accuracy_per_class": {name: sum(of) / len(of) for name, of in of_class.items()},
        "numerics": provenance.numerics,
        "fingerprint": fingerprint,
    }
    outputs.write_evaluation(target, outputs.Metrics(**change("metrics", metrics)), predictions)
    described = json.loads(msgspec.json.encode(provenance))
    identity = json.loads((run / kept.IDENTITY).read_text()) | described | {"fingerprint": fingerprint}
    identity["files"] = kept.sums_of(kept.read_parts(target))
    (target / kept.IDENTITY).write_text(json.dumps(change("identity", identity)))
    (target / kept.ENVIRONMENT).write_bytes((run / kept.ENVIRONMENT).read_bytes())
    return target


def trained_with(**train: float) -> Callable:
    """Change a provenance's settings of the training."""
    return lambda provenance: structs.replace(provenance, train=structs.replace(provenance.train, **train))


def slightly(amount: float, name: str = "conv1.weight") -> Callable:
    """Change one weight a little."""

    def change(weights):
        changed = {key: array.copy() for key, array in weights.items()}
        changed[name].reshape(-1)[7] += np.float32(amount)
        return changed

    return change


def loss_changed(step: int) -> Callable:
    """Change the logged loss of a step by its last bit."""
    return lambda history: [
        s._replace(loss=float(np.nextafter(np.float32(s.loss), np.float32(9)))) if s.step == step else s for s in history
    ]


def in_full(value: np.float32) -> str:
    return f"{value!s} ({float(value).hex()})"


def called(name: str) -> Callable:
    """Change the name of a provenance's data set."""
    return lambda p: structs.replace(p, data=structs.replace(p.data, name=name))


def refused(message: str, run: Path, *arguments, **named) -> None:
    """A reproduction is refused in one line, and nothing is written."""
    before = content(Path())
    with pytest.raises(UserError) as error:
        reproduce.reproduce(run, *arguments, **named)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert content(Path()) == before


def stopped_at(step: int, run: Path, total: int = 10) -> None:
    """A reproduction that SIGTERM ends after a step."""
    take, before = Trainer.step, signal.getsignal(signal.SIGTERM)

    def stopping(self):
        take(self)
        if self.steps_completed == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "step", stopping)
        with pytest.raises(Interrupted, match=f"at step {step} of {total}; the state is saved"):
            reproduce.reproduce(run)
    signal.signal(signal.SIGTERM, before)
