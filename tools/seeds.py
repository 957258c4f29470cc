"""`make seeds`: does exact learn as well as native? The same seeds with both, and the interval of their mean difference.

The data set is the one in data/; docs/quality.md holds the table. Every finished training is noted under .cache/seeds, by the digest
of the sources that trained, so that an interrupted measurement goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

import msgspec

from pipeline import device as devices
from pipeline import numerics, sources
from pipeline.comparison import markdown
from pipeline.data import dataset
from pipeline.data.dataset import Dataset
from pipeline.evaluation import evaluate
from pipeline.exact import VERSION
from pipeline.inputs import CACHE
from pipeline.params import Evaluate, Train
from pipeline.system import files
from pipeline.system.errors import UserError, printable
from pipeline.training import loop
from pipeline.training.trainer import Trainer
from tools import commit, markers

PAGE = Path("docs/quality.md")
NAME = "seeds"
"""Of the block in the page."""
SEEDS = 10
SETTINGS = Train(epochs=5, batch_size=64, lr=0.01, momentum=0.9, log_every=100)
STUDENT_9 = 2.262157162740992
"""The 97.5 % quantile of Student's t with 9 degrees of freedom, for 10 seeds (any table of the distribution)."""


def accuracy(name: str, seed: int, data: Dataset) -> float:
    """Test accuracy, in percent, of a training on the CPU."""
    noted = CACHE / "seeds" / f"{sources.digest('train')[:16]}-{data.digest[:16]}-{name}-{seed}.json"
    if noted.exists():
        return float(json.loads(noted.read_bytes()))
    device, chosen = numerics.prepared(devices.CPU, name)
    weights = loop.train(Trainer(data, device, seed, chosen, SETTINGS)).weights
    percent = 100 * evaluate(weights, data, device, chosen, Evaluate(batch_size=1000)).metrics.accuracy
    files.write_json(noted, percent)
    return percent


def table(exact: list[float], native: list[float], data: Dataset, measured_at: str) -> str:
    """The accuracies and the interval, as Markdown."""
    differences = [a - b for a, b in zip(exact, native, strict=True)]
    mean = statistics.mean(differences)
    half = STUDENT_9 * statistics.stdev(differences) / math.sqrt(SEEDS)
    settings = ", ".join(f"{key} {value}" for key, value in msgspec.to_builtins(SETTINGS).items() if key != "log_every")
    rows = [
        [name, *(f"{value:.2f}" for value in accuracies), f"{statistics.mean(accuracies):.2f}"]
        for name, accuracies in (("exact", exact), ("native", native))
    ]
    return "\n".join([
        f"Measured {time.strftime('%Y-%m-%d')} at commit {measured_at}; {data.name}, {len(data.train_labels):,} training and "
        f"{len(data.test_labels):,} test images; {settings}. Test accuracy in %:",
        "",
        *markdown.table(["seed", *map(str, range(SEEDS)), "mean"], rows),
        "",
        f"Exact ({VERSION}) minus native: {mean:+.2f} points on average, 95 % confidence interval of the mean "
        f"{mean - half:+.2f} to {mean + half:+.2f} (paired t, {SEEDS - 1} degrees of freedom).",
    ])  # fmt: skip


def main() -> None:
    """Measure, and put the table into its page."""
    try:
        _measure()
    except UserError as error:
        sys.exit(f"error: {printable(str(error))}")


def _measure() -> None:
    """Train what is not noted yet; with `--part`, only every second training, so that two processes share the work."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--part", type=int, choices=(0, 1), help="train only this half of the seeds, and write no page")
    part = arguments.parse_args().part
    measured_at = None if part is not None else commit.measured()
    data = dataset.load()
    seeds = [seed for seed in range(SEEDS) if part in (None, seed % 2)]
    exact, native = ([accuracy(name, seed, data) for seed in seeds] for name in ("exact", "native"))
    if measured_at:
        markers.replace(PAGE, NAME, table(exact, native, data, measured_at))


if __name__ == "__main__":
    main()
