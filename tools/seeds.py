"""`make seeds`: does exact learn as well as native? The same seeds with both, in several recipes: the curves of docs/quality.md.

The data set is the one in data/. `python -m tools.seeds CASE...` measures some cases and leaves what the others have. Every finished
training is noted under .cache/seeds, by the digest of the sources that trained, so that an interrupted measurement goes on; what a case
gave is a file in results/quality/, and the page's tables are made of these.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from scipy import stats

from pipeline import device as devices
from pipeline import numerics, sources
from pipeline.comparison import markdown
from pipeline.data import dataset
from pipeline.data.dataset import Dataset
from pipeline.evaluation import evaluate
from pipeline.exact import VERSION
from pipeline.inputs import CACHE
from pipeline.params import Augment, Evaluate, Model, Optimizer, Schedule, Train
from pipeline.system import files
from pipeline.system.errors import UserError, printable
from pipeline.training import loop
from pipeline.training.trainer import Trainer
from tools import commit, markers
from tools.results import RESULTS

PAGE = Path("docs/quality.md")
NAME = "seeds"
"""Of the block in the page."""
QUALITY = RESULTS / "quality"
NUMERICS = ("exact", "native")
DISTURBED = "native, weights disturbed by 1e-7"
"""What a native training gives from initial weights to which normal numbers of this deviation are added: as good an answer as its own."""


class Case(NamedTuple):
    """A recipe, and how many seeds of it are trained."""

    seeds: int
    train: Train
    model: Model = Model()
    images: int | None = None
    """Training images, so many at even distances, for a folder's are class by class; all of them where it is None."""
    numerics: tuple[str, ...] = NUMERICS


AUGMENT = Augment(flip=True, crop=2, padding="reflect")
CASES = {
    "plain SGD": Case(10, Train(epochs=5, batch_size=64, lr=0.01, momentum=0.9, log_every=10)),
    "Nesterov, cosine after a warm-up, flips and crops, smoothing": Case(3, Train(
        epochs=10, batch_size=128, lr=0.05, momentum=0.9, log_every=10, optimizer=Optimizer(nesterov=True, weight_decay=5e-4),
        schedule=Schedule(name="cosine", warmup_epochs=1.0), augment=AUGMENT, label_smoothing=0.1,
    ), Model(normalize=True)),
    "AdamW, one cycle, flips and crops": Case(3, Train(
        epochs=10, batch_size=128, lr=0.003, momentum=0.9, log_every=10, optimizer=Optimizer(name="adamw", weight_decay=0.01),
        schedule=Schedule(name="one_cycle"), augment=AUGMENT,
    ), Model(normalize=True)),
    "ResNet-20": Case(3, Train(
        epochs=4, batch_size=128, lr=0.2, momentum=0.9, log_every=5, optimizer=Optimizer(nesterov=True, weight_decay=5e-4),
        schedule=Schedule(name="one_cycle"), augment=Augment(flip=True),
    ), Model(name="networks/resnet20.py:ResNet20", normalize=True), 5_000, (*NUMERICS, DISTURBED)),
    "ViT": Case(3, Train(
        epochs=4, batch_size=128, lr=0.001, momentum=0.9, log_every=5, optimizer=Optimizer(name="adamw", weight_decay=0.05),
        schedule=Schedule(name="one_cycle"), augment=Augment(flip=True),
    ), Model(name="networks/vit.py:ViT", arguments={"width": 128, "layers": 4}, normalize=True), 5_000, (*NUMERICS, DISTURBED)),
}  # fmt: skip


def trained(name: str, case: Case, seed: int, data: Dataset) -> dict[str, Any]:
    """The mean logged loss of each epoch and the test accuracy, in percent, of a training on the CPU."""
    described = msgspec.json.encode([sources.digest("train"), data.digest, name, seed, *case])
    noted = CACHE / "seeds" / f"{hashlib.sha256(described).hexdigest()[:24]}.json"
    if noted.exists():
        return dict(json.loads(noted.read_bytes()))
    device, chosen = numerics.prepared(devices.CPU, "native" if name == DISTURBED else name)
    trainer = Trainer(data, device, seed, chosen, case.train, network=case.model)
    if name == DISTURBED:
        draws = torch.Generator().manual_seed(seed)
        for weights in trainer.model.parameters():
            weights.data += 1e-7 * torch.randn(weights.shape, generator=draws)
    training = loop.train(trainer)
    evaluated = evaluate(training.weights, data, device, chosen, Evaluate(batch_size=500), case.model)
    losses = [statistics.mean(row.loss for row in training.history if row.epoch == epoch) for epoch in range(1, case.train.epochs + 1)]
    given = {"losses": losses, "accuracy": 100 * evaluated.metrics.accuracy}
    files.write_json(noted, given)
    return given


def measure(name: str, case: Case, data: Dataset, measured_at: str) -> None:
    """Train a case's seeds with both numerics, and leave what they gave in results/quality/."""
    few = slice(None, None, len(data.train_labels) // case.images if case.images else 1)
    some = replace(data, train_images=data.train_images[few], train_labels=data.train_labels[few])
    facts = devices.describe(devices.select(devices.CPU))
    given = {which: [trained(which, case, seed, some) for seed in range(case.seeds)] for which in case.numerics}
    files.write_json(_file(name), {
        "case": name, "version": VERSION, "commit": measured_at, "date": time.strftime("%Y-%m-%d"), "on": facts["hardware"],
        "data": f"{data.name}, {len(some.train_labels):,} training and {len(some.test_labels):,} test images",
        "model": msgspec.to_builtins(case.model), "train": msgspec.to_builtins(case.train), **given,
    })  # fmt: skip


def _file(name: str) -> Path:
    return QUALITY / f"{'-'.join(''.join(c if c.isalnum() else ' ' for c in name.lower()).split())}.json"


def page() -> str:
    """The tables of all cases that were measured, as Markdown."""
    return "\n\n".join(table(json.loads(_file(name).read_bytes())) for name in CASES if _file(name).exists())


def table(given: dict[str, Any]) -> str:
    """The curves of a case and the interval of the mean difference, as Markdown."""
    epochs = range(len(given["exact"][0]["losses"]))
    rows = []
    for which in filter(given.get, (*NUMERICS, DISTURBED)):
        runs = given[which]
        cells = [_spread([run["losses"][epoch] for run in runs], 3) for epoch in epochs]
        rows.append([which, *cells, _spread([run["accuracy"] for run in runs], 2)])
    differences = [a["accuracy"] - b["accuracy"] for a, b in zip(given["exact"], given["native"], strict=True)]
    count = len(differences)
    mean = statistics.mean(differences)
    half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    settings = [f"{key} {value}" for key, value in {**given["model"], **given["train"]}.items() if key != "log_every"]
    return "\n".join([
        f"**{given['case'][0].upper()}{given['case'][1:]}**, {count} seeds: {given['data']}; {', '.join(settings).replace(chr(39), '')}. "
        f"Measured {given['date']} at commit {given['commit']} on {given['on']}.",
        "",
        *markdown.table(["training loss, mean of the seeds", *(f"epoch {epoch + 1}" for epoch in epochs), "test accuracy, %"], rows),
        "",
        f"Exact ({given['version']}) minus native: {mean:+.2f} points on average, 95 % confidence interval of the mean "
        f"{mean - half:+.2f} to {mean + half:+.2f} (paired t, {count - 1} degrees of freedom).",
    ])  # fmt: skip


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    """Measure the named cases, or all, and put the tables into their page."""
    try:
        wanted = sys.argv[1:] or list(CASES)
        if unknown := [name for name in wanted if name not in CASES]:
            raise UserError(f"no case {unknown[0]!r}; there are: {'; '.join(CASES)}")
        measured_at, data = commit.measured(), dataset.load()
        for name in wanted:
            measure(name, CASES[name], data, measured_at)
            markers.replace(PAGE, NAME, page())
    except UserError as error:
        sys.exit(f"error: {printable(str(error))}")


if __name__ == "__main__":
    main()
