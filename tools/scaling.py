"""`python -m tools.scaling`: what more workers cost or give on this machine's CPUs, from trainings that take turns."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec

from pipeline import demo, params
from pipeline import device as devices
from pipeline.data.dataset import DATASET
from pipeline.errors import UserError
from pipeline.runs.environments import WAITING, Facts
from tools.variants import random_set

BATCHES = (64, 1024)
IMAGES = 20_480
ROUNDS = 5


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES, help="of an epoch, which is a measurement")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(scaling(Path(name), asked.images, asked.rounds))


def scaling(folder: Path, images: int = IMAGES, rounds: int = ROUNDS) -> str:
    """Measure in `folder`; a table of milliseconds a step, with their ratio to those of one process of one thread."""
    limit = devices.cpu_limit()
    demo.lay_out(folder)
    random_set(images, 10).save(folder / DATASET)
    ways = [(1, 1), *((1, limit) for _ in range(limit > 1)), *((workers, 1) for workers in (2, 4, 8, 16) if workers <= limit)]
    keys = [(batch, *way) for batch in BATCHES for way in ways]
    seconds: dict[tuple[int, int, int], list[float]] = {key: [] for key in keys}
    for _ in range(rounds):
        for batch, workers, threads in keys:
            seconds[batch, workers, threads].append(_epoch_seconds(folder, batch, workers, threads) / -(-images // batch))
    facts = devices.describe(devices.select(devices.CPU))
    lines = [
        f"Measured {time.strftime('%Y-%m-%d')} on {facts['hardware']}, {facts['cpu_capability']}, CPU limit {limit}, PyTorch "
        f"{facts['torch']}; the median of {rounds} trainings each, which took turns.",
        "",
        "| batch | workers | threads of each | ms a step | ratio |",
        "|---|---|---|---|---|",
    ]
    for batch, workers, threads in keys:
        median, one = (statistics.median(seconds[batch, *way]) for way in ((workers, threads), (1, 1)))
        lines.append(f"| {batch} | {workers} | {threads} | {median * 1e3:.1f} | {median / one:.2f} |")
    return "\n".join(lines)


def _epoch_seconds(folder: Path, batch: int, workers: int, threads: int) -> float:
    """Seconds of an epoch of `python -m pipeline train` in `folder`, as its environment records them."""
    path = folder / params.PARAMS
    settings = msgspec.to_builtins(params.load(path)) | {"workers": workers}
    settings["train"] |= {"epochs": 1, "batch_size": batch}
    path.write_text(params.dump(settings))
    for before in (folder / WAITING).rglob("*.json"):
        before.unlink()
    done = subprocess.run(
        [*demo.PIPELINE, "train"], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"the training failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    (waiting,) = (folder / WAITING).rglob("*.json")
    measured = msgspec.json.decode(waiting.read_bytes(), type=Facts).seconds_per_epoch
    assert measured is not None, "nothing was left to train"
    return measured


if __name__ == "__main__":
    main()
