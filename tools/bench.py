"""`make bench`: the tutorial's script, native and exact numerics side by side, in one run; the tables of speed.

Machines are noisy, so the variants take turns in short rounds, and what counts is the ratio to the tutorial's script within a
round, the median of all. Images are random bytes of full size: what is in them does not change the time.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.comparison import markdown
from pipeline.system import files, libraries
from pipeline.system.errors import UserError, printable
from tools import commit, markers
from tools.results import RESULTS

if TYPE_CHECKING:
    import torch

ROUNDS, TEST_ROUNDS = 48, 9
"""Rounds of training steps, and of evaluations."""
NETWORK_ROUNDS = 6
"""Rounds of a step and of an evaluation of each larger network."""
SIZES = ((12_500, 1), (12_500, 2), (12_500, 4), (12_500, 8), (25_000, 1), (50_000, 1))
"""Images and epochs of the trainings that are measured alone."""
PAGE = Path("docs/performance.md")
NAME = "bench"
"""Of the block in the page, and of the README's."""
README = Path("README.md")


def main() -> None:
    """Measure, and write the tables to results/ and, where the CPU was measured, into docs/performance.md and the README."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench")
    parser.add_argument("--device", help="where to measure, as in params.yaml; the CPU by default")
    parser.add_argument("--quick", action="store_true", help="a few rounds, to see that it works; nothing is written")
    arguments = parser.parse_args()
    libraries.settle_variables()
    from pipeline import device as devices

    try:
        device = devices.select(arguments.device or devices.CPU)
        measured_at = "none" if arguments.quick else commit.measured()
        table = bench(device, measured_at, arguments.quick)
        if not arguments.quick:
            print(f"wrote {write(table, device)}")
    except UserError as error:
        sys.exit(f"error: {printable(str(error))}")


def bench(device: torch.device, measured_at: str, quick: bool = False) -> str:
    """Measure everything on a device; the tables as Markdown, which name the commit. Each is printed as soon as it is there."""
    from pipeline import device as devices
    from tools import measurements

    devices.prepare(device)
    measured: list[Callable[[], str]] = [
        lambda: measurements.in_turns(device, measured_at, 3 if quick else ROUNDS, 2 if quick else TEST_ROUNDS),
        lambda: measurements.networks(device, 2 if quick else NETWORK_ROUNDS),
        lambda: measurements.alone(device, SIZES[:2] if quick else SIZES),
    ]
    if importlib.util.find_spec("dvc"):
        measured.append(measurements.start_ups)
    tables = []
    for measure in measured:
        tables.append(measure())
        print(tables[-1], flush=True)
    return "\n\n".join(tables) + "\n"


def write(table: str, device: torch.device, page: Path = PAGE, results: Path = RESULTS) -> Path:
    """Keep the table in results/, and put that of a CPU into its page and its ratios into the README.

    Raises:
        UserError: one of them has no place for it.
    """
    from pipeline import device as devices

    facts = devices.describe(device)
    words = f"{facts['hardware']} {facts['cpu_capability']}" if device.type == devices.CPU else facts["hardware"]
    path = results / f"bench-{re.sub('[^a-z0-9]+', '-', words.lower()).strip('-')}.md"
    files.write_text(path, table)
    if device.type == devices.CPU:
        markers.replace(page, NAME, table)
        markers.replace(README, NAME, cost(table))
    return path


def cost(table: str) -> str:
    """The README's small table: how many times PyTorch's own training exact numerics take, and where that was measured."""
    native, exact = (list(map(float, re.findall(rf"^\| {name} \|.* ([\d.]+) \|$", table, re.MULTILINE))) for name in ("native", "exact"))
    rows = [["the tutorial's SimpleCNN", f"{exact[0] / native[0]:.1f}", f"{exact[1] / native[1]:.1f}"]]
    for name, step, evaluation in re.findall(r"^\| ([^|]+) \| [\d, ]+ \| ([\d.]+) \| [\d., ]+ \| ([\d.]+) \|", table, re.MULTILINE):
        rows.append([name, f"{float(step):.1f}", f"{float(evaluation):.1f}"])
    lines = markdown.table(["exact numerics, times PyTorch's own", "a training step", "evaluation"], rows)
    return "\n".join([*lines, "", f"{table.partition(';')[0]}."])


if __name__ == "__main__":
    main()
