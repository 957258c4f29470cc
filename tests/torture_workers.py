"""`python -m tests.torture_workers`: kill one process of a training at a random moment, again and again; the next run must be right.

The victim is worker 0, another worker, or, under torchrun, its agent. Then within seconds nothing of the training may be left, no file
may be torn, and `dvc repro` with another number of workers must end in the fingerprint of one process.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from pipeline.machine import demo
from pipeline.runs import outputs
from pipeline.runs.outputs import OUTPUTS
from pipeline.system import tensors
from pipeline.training.checkpoint import UNFINISHED
from tests.processes import descendants, running
from tests.settings import set_params
from tests.steps import drawn_set
from tests.torture import ended, init_dvc, start

FOLDER = Path("torture-workers")
SETTINGS = {"epochs": 4, "batch_size": 16, "lr": 0.01, "momentum": 0.9, "log_every": 10}
"""41 steps an epoch; the last batch of an epoch has 3 images."""
GONE_SECONDS = 60
"""How long may pass until nothing is left; in a quiet machine it takes one or two."""
REPRO = (sys.executable, "-m", "dvc", "repro")


def lay_out(folder: Path) -> None:
    """A workspace with a small set, whose `train` saves its state often."""
    shutil.rmtree(folder, ignore_errors=True)
    demo.lay_out(folder)
    stages = (folder / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(stages.replace("-m pipeline train", "-m pipeline train --checkpoint-seconds 0.2"))
    drawn_set(643).save(folder / "data" / "dataset.safetensors")
    set_params(folder, train=SETTINGS, workers=1)
    init_dvc(folder)


def command(workers: int, by_torchrun: bool) -> list[str]:
    """What is killed."""
    if not by_torchrun:
        return [sys.executable, "-m", "pipeline", "train", "--checkpoint-seconds", "0.2"]
    options = ["--standalone", "--local-addr", "127.0.0.1", f"--nproc-per-node={workers}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "pipeline", "train", "--checkpoint-seconds", "0.2"]


def rank_of(pid: int) -> str:
    """What a process is."""
    if rank := re.search(rb"\0RANK=(\d+)\0", b"\0" + Path(f"/proc/{pid}/environ").read_bytes()):
        return "worker 0" if rank[1] == b"0" else "another worker"
    return "torchrun's agent" if b"torch.distributed.run" in Path(f"/proc/{pid}/cmdline").read_bytes() else "worker 0"


def repro(folder: Path) -> str:
    """`dvc repro` of the training, which must succeed; what it said."""
    code, said = ended(start(folder, *REPRO, "--single-item", "train"))
    assert code == 0, said
    return said


def clear(folder: Path) -> None:
    """So that there is something to train."""
    for path in (OUTPUTS, Path(".dvc/cache/runs")):
        shutil.rmtree(folder / path, ignore_errors=True)
    (folder / "dvc.lock").unlink(missing_ok=True)


def sweep(folder: Path, kills: int, seed: int) -> collections.Counter[str]:
    """Kill `kills` times in `folder`, which is laid out; what was killed, and how often a state was resumed.

    Raises:
        AssertionError: something was left or torn, or the next run failed or ended in other bits.
    """
    draw, figures = random.Random(seed), collections.Counter[str]()
    repro(folder)
    wanted = tensors.fingerprint(outputs.read_weights(folder / OUTPUTS))
    print(f"one process: {wanted}", flush=True)
    while sum(count for name, count in figures.items() if name != "resumed") < kills:
        clear(folder)
        workers, by_torchrun, of_training = draw.randint(2, 4), draw.random() < 0.4, draw.random() < 0.8
        set_params(folder, workers=workers)
        process, began = start(folder, *command(workers, by_torchrun)), time.monotonic()
        while of_training and not list((folder / UNFINISHED).glob("*.safetensors")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 2 if of_training else time.monotonic() - began + 8))
        everyone = [process.pid, *descendants(process.pid)]
        try:
            victims = {pid: rank_of(pid) for pid in everyone}
            kind = draw.choice(sorted(set(victims.values())))
            victim = draw.choice([pid for pid, of_kind in victims.items() if of_kind == kind])
            os.kill(victim, signal.SIGKILL)
        except OSError:
            ended(process)
            continue  # it had just ended
        killed_at = time.monotonic()
        while running(everyone):
            assert time.monotonic() < killed_at + GONE_SECONDS, (
                f"{[(pid, victims[pid]) for pid in running(everyone)]} go on after {kind} was killed"
            )
            time.sleep(0.02)
        gone_after, (code, said) = time.monotonic() - killed_at, ended(process)
        if code == 0:
            continue  # it had done its work
        figures[f"{kind}{' under torchrun' if by_torchrun else ''}"] += 1
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(lines) <= 1, said
        assert not (folder / OUTPUTS / outputs.MODEL).exists() or outputs.read_model(folder / OUTPUTS).fingerprint == wanted
        others = draw.choice([number for number in (1, 2, 3, 4) if number != workers])
        set_params(folder, workers=others)
        said = repro(folder)
        of_weights = tensors.fingerprint(outputs.read_weights(folder / OUTPUTS))
        assert of_weights == wanted, f"{of_weights} with {others} workers after {kind} of {workers} was killed"
        assert not list((folder / UNFINISHED).glob("*"))
        resumed = re.search(r"resumes at step \d+ of \d+", said)
        figures["resumed"] += resumed is not None
        number, how = sum(figures.values()) - figures["resumed"], " under torchrun" if by_torchrun else ""
        print(f"{number:>3} {kind} of {workers}{how} was killed; all gone after {gone_after:.1f} s; {lines[0] if lines else 'no word'}")
        print(f"    with {others}: {resumed[0] if resumed else 'from the start'}", flush=True)
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="deleted first")
    asked = parser.parse_args()
    lay_out(asked.folder)
    figures = sweep(asked.folder, asked.kills, asked.seed)
    print(
        f"\n{asked.kills} kills, seed {asked.seed}; each time the next dvc repro, with another number of workers, gave the same fingerprint"
    )
    print("killed: " + ", ".join(f"{name} {count}" for name, count in figures.most_common() if name != "resumed"))
    print(f"resumed from a saved state: {figures['resumed']}")


if __name__ == "__main__":
    main()
