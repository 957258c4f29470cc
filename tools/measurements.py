"""What `bench` measures, a table each: steps and evaluations in turns, whole trainings alone, commands that start up."""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from pipeline import device as devices
from pipeline import numerics, sources
from pipeline.evaluation import evaluate
from pipeline.exact.initialisation import initialise
from pipeline.machine import demo
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.params import Evaluate, Model
from pipeline.runs import keeping, kept, outputs
from pipeline.runs.outputs import OUTPUTS, Step
from pipeline.runs.provenance import Provenance
from pipeline.system import files
from pipeline.system.errors import UserError
from tools.variants import (
    NETWORKS,
    SETTINGS,
    TUTORIAL,
    Call,
    evaluations,
    network_evaluation,
    our_steps,
    random_set,
    training_steps,
    tutorial_steps,
)  # fmt: skip

TEST_IMAGES = 1000
"""That networks are evaluated on."""
STEPS = 10
"""Of each variant in a round."""
PAUSE = 0.1
"""Seconds before a variant's turn: the workers of the last one's loader may still be preparing batches, 16 ms with both CPUs."""


class Spread(NamedTuple):
    """Seconds: the median, the tenth and ninetieth of a hundred; and the ratio to the first variant's, the median of the rounds' own."""

    median: float
    low: float
    high: float
    ratio: float


def spread(seconds: list[float], firsts: list[float]) -> Spread:
    """The spread of a variant's rounds. A round's turns follow one another, so they share what the machine has to bear in that second."""
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    ratio = statistics.median(own / first for own, first in zip(seconds, firsts, strict=True))
    return Spread(statistics.median(seconds), tenths[0], tenths[-1], ratio)


# --- steps and evaluations, in turns ---------------------------------------------------------------------------------


def in_turns(device: torch.device, measured_at: str, rounds: int, test_rounds: int) -> str:
    """Where it was measured, at which commit, and the tables of a step and of an evaluation."""
    facts, data = devices.describe(device), random_set(50_000)
    steps = _measure(training_steps(data, device), device, rounds, STEPS)
    tests = _measure(evaluations(data, device), device, test_rounds, 1)
    epoch = -(-50_000 // SETTINGS.batch_size)
    lines = [
        f"Measured {time.strftime('%Y-%m-%d')} at commit {measured_at} on {facts['hardware']}, {facts['threads']} threads, "
        f"{facts['cpu_capability']}, PyTorch {facts['torch']}, batch {SETTINGS.batch_size}; "
        f"the variants took turns in {rounds} rounds of {STEPS} steps, and a ratio is the median of the rounds' ratios.",
        "",
        "| a training step, loader included | ms, median | 10 % to 90 % | steps a second | seconds an epoch | ratio to the tutorial's |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | {s.median * 1e3:.2f} | {s.low * 1e3:.2f} to {s.high * 1e3:.2f} | {1 / s.median:,.0f} | {s.median * epoch:.1f} | "
          f"{s.ratio:.2f} |" for name, s in steps.items()),
        "",
        "| evaluating 10,000 images | seconds, median | 10 % to 90 % | ratio to the tutorial's |",
        "|---|---|---|---|",
        *(f"| {name} | {s.median:.3f} | {s.low:.3f} to {s.high:.3f} | {s.ratio:.2f} |" for name, s in tests.items()),
    ]  # fmt: skip
    return "\n".join(lines)


def _measure(variants: dict[str, Call], device: torch.device, rounds: int, repeats: int) -> dict[str, Spread]:
    """Seconds a call: each round calls each variant `repeats` times, waiting for the device at both ends.

    One round warms up, and one call each turn, which finds the caches as another variant left them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number, (name, call) in itertools.product(range(rounds + 1), variants.items()):
        time.sleep(PAUSE)
        call()
        clock = devices.Stopwatch(device)
        with clock.running():
            for _ in range(repeats):
                call()
        if round_number:
            seconds[name].append(clock.seconds / repeats)
    return {name: spread(of_rounds, seconds[next(iter(variants))]) for name, of_rounds in seconds.items()}


# --- networks, in turns ----------------------------------------------------------------------------------------------


def networks(device: torch.device, rounds: int) -> str:
    """A table of the networks that people use: PyTorch's own training and exact numerics', a step and an evaluation, and memory alone."""
    data, settings = random_set(16 * SETTINGS.batch_size, TEST_IMAGES), msgspec.structs.replace(SETTINGS, epochs=2 * rounds)
    lines = [
        "| network | a step, ms: PyTorch's own, exact | ratio | evaluation of 1,000 images, s: PyTorch's own, exact | ratio | "
        "peak memory, MB: PyTorch's own, exact |",
        "|---|---|---|---|---|---|",
    ]
    for name, network in NETWORKS.items():
        steps = _measure({which: our_steps(data, device, which, network, settings) for which in ("native", "exact")}, device, rounds, 1)
        tests = _measure({which: network_evaluation(data, device, which, network) for which in ("native", "exact")}, device, rounds, 1)
        memory = [_in_a_process(which, STEPS * SETTINGS.batch_size, 1, str(device), name)[1] / 1e6 for which in ("native", "exact")]
        lines.append(
            f"| {name} | {steps['native'].median * 1e3:.0f}, {steps['exact'].median * 1e3:.0f} | {steps['exact'].ratio:.2f} | "
            f"{tests['native'].median:.2f}, {tests['exact'].median:.2f} | {tests['exact'].ratio:.2f} | {memory[0]:,.0f}, {memory[1]:,.0f} |"
        )
    return "\n".join(lines)


# --- one variant alone -----------------------------------------------------------------------------------------------


def alone(device: torch.device, sizes: tuple[tuple[int, int], ...]) -> str:
    """Time and memory of whole trainings: a table of exact's by size, images times epochs, and the others' memory."""
    lines = ["| alone: images x epochs | exact: seconds | seconds per 12,500 images | peak memory, MB |", "|---|---|---|---|"]
    for images, epochs in sizes:
        seconds, memory = _in_a_process("exact", images, epochs, str(device))
        lines.append(f"| {images:,} x {epochs} | {seconds:.2f} | {seconds / epochs / (images / 12_500):.2f} | {memory / 1e6:,.0f} |")
    peaks = {name: _in_a_process(name, 50_000, 1, str(device))[1] / 1e6 for name in (TUTORIAL, "native")}
    return "\n".join([*lines, "", f"Peak memory for 50,000 images x 1: {', '.join(f'{name} {mb:,.0f} MB' for name, mb in peaks.items())}."])


def _in_a_process(variant: str, images: int, epochs: int, device_name: str, network: str = "") -> tuple[float, int]:
    """One variant in a process of its own: seconds of its training, and the most bytes of memory that it took."""
    code = f"from tools import measurements; measurements.train_alone({variant!r}, {images}, {epochs}, {device_name!r}, {network!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=sources.PROJECT)
    seconds, memory = json.loads(done.stdout)
    return seconds, memory


def train_alone(variant: str, images: int, epochs: int, device_name: str, network: str = "") -> None:
    """Train in this process; print the seconds and the most bytes of memory as JSON."""
    device = devices.select(device_name)
    devices.prepare(device)
    data = random_set(images, 10)
    settings = msgspec.structs.replace(SETTINGS, epochs=epochs + 1)  # for the step that comes first
    model = NETWORKS.get(network, Model())
    step = tutorial_steps(data, device) if variant == TUTORIAL else our_steps(data, device, variant, model, settings)
    step()
    clock = devices.Stopwatch(device)
    with clock.running():
        for _ in range(epochs * (images // SETTINGS.batch_size)):
            step()
    print(json.dumps([clock.seconds, devices.peak_memory_bytes(device)]))


# --- starting up -----------------------------------------------------------------------------------------------------


def start_ups() -> str:
    """CPU seconds of commands whose work is little, each the least of three."""
    ours, dvc = [sys.executable, "-m", "pipeline"], [sys.executable, "-m", "dvc"]
    with tempfile.TemporaryDirectory() as name:
        finished, other = Path(name) / "finished", Path(name) / "other"
        demo.repro(finished)
        other.mkdir()
        files.write_text(other / "dvc.yaml", "stages:\n  one:\n    cmd: echo 1 > one\n    outs: [one]\n")
        for words in ([*dvc, "init", "--no-scm"], [*dvc, "repro"]):
            _cpu_seconds(words, other)
        commands = {
            "python -m pipeline --help": ([*ours, "--help"], finished),
            "python -m pipeline compare (two runs of 10,000 images)": ([*ours, "compare", *keep_full_size(Path(name))], finished),
            "dvc repro, nothing to do": ([*dvc, "repro"], finished),
            "dvc repro of a single echo, nothing to do": ([*dvc, "repro"], other),
        }
        seconds = {name: min(_cpu_seconds(*command) for _ in range(3)) for name, command in commands.items()}
    return "CPU seconds to start: " + ", ".join(f"`{name}` {least:.2f}" for name, least in seconds.items()) + "."


def keep_full_size(folder: Path) -> list[str]:
    """Two kept runs as large as ten epochs of CIFAR-10 leave, under `folder`; their folders. Only their size matters here."""
    device, data = devices.select(devices.CPU), random_set(100)
    chosen = numerics.select("native", device)
    history = [Step(step, 1, 1 / step) for step in range(10, 7821, SETTINGS.log_every)]
    folders = []
    for seed in range(2):
        model = SimpleCNN()
        initialise(model, seed)
        weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
        trained = Provenance(data=data.description, seed=seed, numerics=chosen.version, train=SETTINGS, code=sources.digest("train"))
        evaluation = evaluate(weights, data, device, chosen, Evaluate(batch_size=1000))
        outputs.write_training(folder / OUTPUTS, weights, history, trained)
        outputs.write_evaluation(folder / OUTPUTS, evaluation.metrics, evaluation.predictions)
        folders.append(str(keeping.keep(folder / OUTPUTS, folder / kept.RUNS)))
    return folders


def _cpu_seconds(words: list[str], folder: Path) -> float:
    environment = {**os.environ, "PYTHONPATH": str(sources.PROJECT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 3):  # 3: compare's "different"
        raise UserError(f"{' '.join(words[1:])} failed: {done.stderr.strip()}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
