"""`make scaling`: what more workers cost or give on this machine's CPUs, from trainings that take turns, into docs/performance.md."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pipeline import cli, params, sources
from pipeline import device as devices
from pipeline.data.dataset import DATASET
from pipeline.machine import demo
from pipeline.params import Model
from pipeline.runs.environments import WAITING, Facts
from pipeline.system import files
from pipeline.system.errors import UserError, printable
from tools import commit, markers
from tools.variants import NETWORKS, random_set

PAGE = Path("docs/performance.md")
NAME = "scaling"
"""Of the block in that page."""
CASES = {"SimpleCNN": ((64, 20_480), (1024, 20_480)), "ResNet-20": ((256, 1_536),)}
"""Network -> batch sizes, and how many images are an epoch, which is a measurement."""
WORKERS = (1, 2, 4)
"""Of one thread each."""
ROUNDS = 5
COLLECTIVES = Path("collectives.json")
"""Where a training that is measured leaves its seconds in collectives."""


class Step(NamedTuple):
    """Milliseconds of a training step."""

    all: float
    collectives: float
    """Of them in worker 0's collectives, waiting for the others included."""


def main() -> None:
    """Measure, and put the table into its page."""
    parser = argparse.ArgumentParser(prog="python -m tools.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train:
        train()
        return
    try:
        measured_at = commit.measured()
        with tempfile.TemporaryDirectory() as name:
            table = scaling(Path(name), measured_at, asked.rounds)
        print(table)
        markers.replace(PAGE, NAME, table)
    except UserError as error:
        sys.exit(f"error: {printable(str(error))}")


def scaling(folder: Path, measured_at: str, rounds: int = ROUNDS) -> str:
    """Measure in `folder`; a table of milliseconds a step, with their ratio to those of one process of one thread.

    Raises:
        UserError: a training failed.
    """
    limit = devices.cpu_limit()
    demo.lay_out(folder)
    shutil.copytree(sources.PROJECT / "networks", folder / "networks", dirs_exist_ok=True)
    ways = [*((workers, 1) for workers in WORKERS), *((1, limit) for _ in range(limit > 1))]
    steps: dict[tuple[str, int, int, int], list[Step]] = {}
    for name, batches in CASES.items():
        for batch, images in batches:
            random_set(images, 10).save(folder / DATASET)
            of_case: dict[tuple[str, int, int, int], list[Step]] = {(name, batch, *way): [] for way in ways}
            for _ in range(rounds):
                for (_, _, workers, threads), measured in of_case.items():
                    measured.append(_step(folder, batch, workers, threads, -(-images // batch), NETWORKS.get(name, Model())))
            steps |= of_case
    facts = devices.describe(devices.select(devices.CPU))
    lines = [
        f"Measured {time.strftime('%Y-%m-%d')} at commit {measured_at} on {facts['hardware']}, {facts['cpu_capability']}, {limit} CPUs, "
        f"PyTorch {facts['torch']}; the median of {rounds} trainings each, which took turns.",
        "",
        "| network | batch | workers | threads of each | ms a step | of them in collectives | ratio to one worker of one thread |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, batch, workers, threads), measured in steps.items():
        one = statistics.median(step.all for step in steps[name, batch, 1, 1])
        median = statistics.median(step.all for step in measured)
        collectives = statistics.median(step.collectives for step in measured)
        lines.append(f"| {name} | {batch} | {workers} | {threads} | {median:.1f} | {collectives:.1f} | {median / one:.2f} |")
    return "\n".join(lines)


def _step(folder: Path, batch: int, workers: int, threads: int, steps: int, network: Model = Model()) -> Step:  # noqa: B008
    """A step's share of an epoch of `python -m pipeline train` in `folder`."""
    path = folder / params.PARAMS
    settings = msgspec.to_builtins(params.load(path)) | {"workers": workers, "model": msgspec.to_builtins(network)}
    settings["train"] |= {"epochs": 1, "batch_size": batch}
    path.write_text(params.dump(settings))
    for before in (folder / WAITING).rglob("*.json"):
        before.unlink()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(sources.PROJECT)}
    done = subprocess.run([sys.executable, "-m", "tools.scaling", "--train"], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the training failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    (waiting,) = (folder / WAITING).rglob("*.json")
    seconds = msgspec.json.decode(waiting.read_bytes(), type=Facts).seconds_per_epoch
    assert seconds is not None, "nothing was left to train"
    return Step(seconds / steps * 1e3, json.loads((folder / COLLECTIVES).read_bytes()) / steps * 1e3)


def train() -> None:
    """`python -m pipeline train` in the current folder, which leaves its seconds in collectives; worker 0's, for it starts the others."""
    from pipeline.workers.processes import Processes

    all_reduce, seconds = Processes._all_reduce, 0.0

    def timed(*arguments: Any, **options: Any) -> Any:
        nonlocal seconds
        began = time.perf_counter()
        try:
            return all_reduce(*arguments, **options)
        finally:
            seconds += time.perf_counter() - began

    Processes._all_reduce = timed  # type: ignore[method-assign]
    sys.argv = ["pipeline", "train"]
    try:
        cli.main()
    finally:
        files.write_json(COLLECTIVES, seconds)


if __name__ == "__main__":
    main()
