"""`make bench`: the tutorial's script, native and exact numerics side by side, in one run; the README's table of speed.

Machines are noisy, so the ways take turns in short rounds, and what counts is the ratio to the tutorial's script within the
run, from medians. Images are random bytes of full size: what is in them does not change the time.
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import nn, optim
from torch.utils.data import DataLoader

from pipeline import demo, files, numerics
from pipeline import device as devices
from pipeline.comparison.results import RESULTS
from pipeline.data.dataset import Dataset
from pipeline.draws import random_integers
from pipeline.errors import UserError
from pipeline.evaluation import evaluate
from pipeline.model import SimpleCNN, initialise
from pipeline.params import Evaluate, Train
from pipeline.runs import kept
from pipeline.training.trainer import Trainer

BATCH = 64
ROUNDS, STEPS = 24, 10
"""Rounds in turn, and steps of each way a round."""
GUIDE = "the tutorial's script"
BEGIN, END = "<!-- bench: made by `make bench` -->", "<!-- /bench -->"

Step = Callable[[], None]


class Spread(NamedTuple):
    """Seconds: the median, and the tenth and ninetieth of a hundred."""

    median: float
    low: float
    high: float


def spread(seconds: list[float]) -> Spread:
    """The spread of a way's rounds."""
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return Spread(statistics.median(seconds), tenths[0], tenths[-1])


def random_set(train: int, test: int = 10_000) -> Dataset:
    """Random images and labels."""
    made = {}
    for name, count in (("train", train), ("test", test)):
        pixels = np.resize(random_integers(f"bench/{name}", 256, 2**20).astype(np.uint8), count * 3072)
        made[name] = pixels.reshape(-1, 3, 32, 32), (np.arange(count) % 10).astype(np.uint8)
    return Dataset("random", tuple("0123456789"), *made["train"], *made["test"])


# --- the tutorial's script -------------------------------------------------------------------------------------------


def guide_loader(data: Dataset, train: bool, batch_size: int, workers: int) -> Any:
    """Torchvision's CIFAR10 with ToTensor in a DataLoader, as in the tutorial; only the files' reading is left out."""
    made = torchvision.datasets.CIFAR10.__new__(torchvision.datasets.CIFAR10)
    images = data.train_images if train else data.test_images
    made.data, made.targets = images.transpose(0, 2, 3, 1).copy(), (data.train_labels if train else data.test_labels).tolist()
    made.transform, made.target_transform = torchvision.transforms.ToTensor(), None
    return DataLoader(made, batch_size=batch_size, shuffle=train, num_workers=workers, persistent_workers=workers > 0)


def guide_steps(data: Dataset, device: torch.device, workers: int) -> Step:
    """The tutorial's loop, a step at a time."""
    model = SimpleCNN().to(device)
    criterion, optimizer = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    loader = guide_loader(data, True, BATCH, workers)

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    source = batches()

    def step() -> None:
        inputs, labels = next(source)
        inputs, labels = inputs.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()

    return step


def our_steps(data: Dataset, device: torch.device, name: str) -> Step:
    """The pipeline's loop, a step at a time, its look at the losses every tenth step included."""
    trainer = Trainer(
        data, device, 0, numerics.select(name, device), Train(epochs=1, batch_size=BATCH, lr=0.001, momentum=0.9, log_every=10)
    )

    def step() -> None:
        trainer.step()
        if trainer.steps_completed % 10 == 0:
            trainer.read_step_log()

    return step


def ways(data: Dataset, device: torch.device) -> dict[str, Step]:
    """What is compared: name -> a step."""
    return {
        GUIDE: guide_steps(data, device, 0),
        f"{GUIDE}, 2 workers": guide_steps(data, device, 2),
        "native": our_steps(data, device, "native"),
        "exact": our_steps(data, device, "exact"),
    }


# --- measuring -------------------------------------------------------------------------------------------------------


def in_turn(named: dict[str, Callable[[], Any]], device: torch.device, rounds: int, repeats: int) -> dict[str, Spread]:
    """Seconds a call: each round calls each way `repeats` times, waiting for the device at both ends."""
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for warm_up in (True, *[False] * rounds):
        for name, call in named.items():
            clock = devices.Stopwatch(device)
            with clock.running():
                for _ in range(repeats):
                    call()
            if not warm_up:
                seconds[name].append(clock.seconds / repeats)
    return {name: spread(found) for name, found in seconds.items()}


def evaluations(data: Dataset, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Ways to evaluate 10,000 images."""
    model = SimpleCNN()
    initialise(model, 0)
    weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    loader, criterion = guide_loader(data, False, 1000, 0), nn.CrossEntropyLoss(reduction="sum")
    model.to(device)

    def guide() -> None:
        with torch.no_grad():
            for inputs, labels in loader:
                outputs = model(inputs.to(device))
                criterion(outputs, labels.to(device)).item()
                (outputs.argmax(1) == labels.to(device)).sum().item()

    def ours(name: str) -> Callable[[], Any]:
        chosen = numerics.select(name, device)
        return lambda: evaluate(weights, data, device, chosen, Evaluate(batch_size=1000))

    return {GUIDE: guide, "native": ours("native"), "exact": ours("exact")}


def alone(way: str, images: int, epochs: int, device: str) -> dict[str, float]:
    """One way in a process of its own: seconds of its training, and the most memory that it took."""
    command = [sys.executable, "-c", f"from pipeline import bench; bench.child({way!r}, {images}, {epochs}, {device!r})"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def child(way: str, images: int, epochs: int, device_name: str) -> None:
    """What `alone` starts."""
    device = devices.select(device_name)
    devices.prepare(device)
    data = random_set(images, 10)
    step = guide_steps(data, device, 0) if way == GUIDE else our_steps(data, device, way)
    step()
    clock = devices.Stopwatch(device)
    with clock.running():
        for _ in range(epochs * (images // BATCH)):
            step()
    print(json.dumps({"seconds": clock.seconds, "bytes": devices.peak_memory_bytes(device)}))


def start_ups() -> dict[str, float]:
    """CPU seconds of commands whose work is little, each the least of three."""
    ours, dvc = [sys.executable, "-m", "pipeline"], [sys.executable, "-m", "dvc"]
    two = [str(folder.resolve()) for folder in kept.listed(RESULTS)[:2]]
    with tempfile.TemporaryDirectory() as name:
        finished, other = Path(name) / "finished", Path(name) / "other"
        demo.repro(finished)
        other.mkdir()
        files.write_text(other / "dvc.yaml", "stages:\n  one:\n    cmd: echo 1 > one\n    outs: [one]\n")
        for words in ([*dvc, "init", "--no-scm"], [*dvc, "repro"]):
            _cpu_seconds(words, other)
        commands = {
            "python -m pipeline --help": ([*ours, "--help"], finished),
            "python -m pipeline compare (two runs of 10,000 images)": ([*ours, "compare", *two], finished),
            "dvc repro, nothing to do": ([*dvc, "repro"], finished),
            "dvc repro of a single echo, nothing to do": ([*dvc, "repro"], other),
        }
        return {name: min(_cpu_seconds(*command) for _ in range(3)) for name, command in commands.items()}


def _cpu_seconds(words: list[str], folder: Path) -> float:
    environment = {**os.environ, "PYTHONPATH": str(demo.PROJECT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):  # 1: compare's "different"
        raise UserError(f"{' '.join(words[1:])} failed: {done.stderr.strip()}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# --- the table -------------------------------------------------------------------------------------------------------


def bench(device_name: str, quick: bool = False) -> str:
    """Measure everything on a device; the table as Markdown."""
    device = devices.select(device_name)
    devices.prepare(device)
    facts = devices.describe(device)
    data = random_set(50_000)
    steps = in_turn(ways(data, device), device, 3 if quick else ROUNDS, STEPS)
    tests = in_turn(evaluations(data, device), device, 2 if quick else 7, 1)
    guide = steps[GUIDE].median
    lines = [
        f"Measured {time.strftime('%Y-%m-%d')} on {facts['hardware']}, {facts['threads']} threads, {facts['cpu_capability']}, PyTorch "
        f"{facts['torch']}, batch {BATCH}; the ways took turns in {3 if quick else ROUNDS} rounds of {STEPS} steps.",
        "",
        "| a training step, loader included | ms, median | 10 % to 90 % | steps a second | seconds an epoch | ratio to the tutorial's |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | {s.median * 1e3:.2f} | {s.low * 1e3:.2f} to {s.high * 1e3:.2f} | {1 / s.median:,.0f} | {s.median * 782:.1f} | "
          f"{s.median / guide:.2f} |" for name, s in steps.items()),
        "",
        "| evaluating 10,000 images | seconds, median | 10 % to 90 % | ratio to the tutorial's |",
        "|---|---|---|---|",
        *(f"| {name} | {s.median:.3f} | {s.low:.3f} to {s.high:.3f} | {s.median / tests[GUIDE].median:.2f} |" for name, s in tests.items()),
    ]  # fmt: skip
    sizes = [(12_500, 1), (12_500, 2), (12_500, 4), (12_500, 8), (25_000, 1), (50_000, 1)][: 2 if quick else None]
    lines += [
        "",
        "| alone: images x epochs | exact: seconds | seconds per 12,500 images | peak memory, MB |",
        "|---|---|---|---|",
    ]
    for images, epochs in sizes:
        found = alone("exact", images, epochs, device_name)
        each = found["seconds"] / epochs / (images / 12_500)
        lines.append(f"| {images:,} x {epochs} | {found['seconds']:.2f} | {each:.2f} | {found['bytes'] / 1e6:,.0f} |")
    peaks = {way: alone(way, 50_000, 1, device_name)["bytes"] / 1e6 for way in (GUIDE, "native")}
    lines += ["", "Peak memory for 50,000 images x 1: " + ", ".join(f"{way} {peak:,.0f} MB" for way, peak in peaks.items()) + "."]
    said = ", ".join(f"`{name}` {seconds:.2f}" for name, seconds in start_ups().items())
    return "\n".join([*lines, "", f"CPU seconds to start: {said}.", ""])


def write(table: str, device: torch.device, readme: Path = Path("README.md")) -> Path:
    """Keep the table in results/, and put it between the README's two markers."""
    facts = devices.describe(device)
    words = f"{facts['hardware']} {facts['cpu_capability']}" if device.type == devices.CPU else facts["hardware"]
    path = RESULTS / f"bench-{re.sub('[^a-z0-9]+', '-', words.lower()).strip('-')}.md"
    files.write_text(path, table)
    text = readme.read_text()
    if BEGIN in text and END in text and device.type == devices.CPU:
        files.write_text(readme, text[: text.index(BEGIN) + len(BEGIN)] + f"\n{table}" + text[text.index(END) :])
    return path
