"""All that there is to see on a machine with a GPU, in one command and one folder that goes into `results/`.

`python3 -m tools.gpu`, in the folder that `make gpu-kit` made, or in a clone with its environment. A step that fails hides no other:
the tests that need a GPU, the demo (on the CPU, on the GPU, begun on one and ended on the other) with the machine's record, a whole
training and evaluation with exact and with native numerics where a folder of pictures is given, the bench.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
SITE = PROJECT / "site.zip"
"""The kit's packages (tools/gpu_kit.py)."""
WHOLE = {"epochs": 10, "batch_size": 64, "lr": 0.01, "momentum": 0.9, "log_every": 10}


def main(words: list[str] | None = None) -> None:
    """Run every step and say what came of it; exit code 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python3 -m tools.gpu")
    parser.add_argument("--device", default="cuda", help="the device to see, as in params.yaml (cuda)")
    parser.add_argument("--folder", type=Path, help="a folder of pictures in train/CLASS/ and test/CLASS/, for the whole training")
    parser.add_argument("--name", default="my-images", help="what to call that data set")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="the folder to leave (gpu-results)")
    parser.add_argument("--work", type=Path, default=Path(".cache/gpu"), help="where to compute (.cache/gpu)")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: one training begun anew, one epoch, a few rounds of the bench")
    asked = parser.parse_args(words)
    for folder in (asked.work, asked.out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    use_packages(asked.work.resolve())
    failed = []
    for name, step in STEPS.items():
        start = time.monotonic()
        print(f"\n=== {name}", flush=True)
        try:
            step(asked)
            outcome = "ok"
        except NotHere as reason:
            outcome = f"left out: {reason}"
        except Exception as error:  # whatever it is, the other steps are worth their while
            outcome = f"FAILED: {type(error).__name__}: {error}"
            failed.append(name)
        line = f"{name}: {outcome} ({time.monotonic() - start:.0f} s)"
        print(line, flush=True)
        with open(asked.out / "steps.txt", "a") as file:
            file.write(line + "\n")
    shutil.make_archive(str(asked.out), "gztar", asked.out)
    advice = f"NOT well: {', '.join(failed)}" if failed else "copy what is in it into results/"
    print(f"\n{asked.out}/ and {asked.out}.tar.gz hold what was seen; {advice}")
    sys.exit(1 if failed else 0)


class NotHere(Exception):
    """Why a step cannot be done on this machine."""


def use_packages(work: Path) -> None:
    """Let this process and those that it starts import the project and, where there is a kit, its packages."""
    paths = [str(PROJECT)]
    if SITE.exists():
        with zipfile.ZipFile(SITE) as packages:
            packages.extractall(work / "site")
        paths.append(str(work / "site"))
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join(paths + os.environ.get("PYTHONPATH", "").split(os.pathsep)).strip(os.pathsep)


def tests(asked: argparse.Namespace) -> None:
    """The tests that need a GPU; on a GPU none may be skipped."""
    needing = sorted(str(path) for path in (PROJECT / "tests").glob("test_*.py") if "pytest.mark.cuda" in path.read_text())
    required = {"PIPELINE_REQUIRED_TESTS": "cuda"} if asked.device.startswith("cuda") else {}
    run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", *needing],
        PROJECT,
        asked.out / "tests.txt",
        **required,
    )


def demo(asked: argparse.Namespace) -> None:
    """The demo's fingerprint in every way that this machine has, and the machine's record."""
    from pipeline import demo, device, machine
    from pipeline.machine import Variant

    resumed = Variant(name=f"begun on the CPU, ended on {asked.device}", device=asked.device, resumed_from=device.CPU)
    right = demo.demo(asked.work / "demo", [resumed] if asked.quick else None)
    record = machine.read(asked.work / "demo" / machine.RECORD)
    machine.write(asked.out / "machines" / f"{record.slug()}.json", record)
    if not right:
        raise RuntimeError("a fingerprint or an evaluation is another")


def whole(asked: argparse.Namespace) -> None:
    """Train and evaluate on the folder of pictures, exact and native, and keep both runs."""
    if asked.folder is None:
        raise NotHere("no --folder was given")
    from msgspec import to_builtins

    from pipeline import params

    folder = asked.work / "whole"
    folder.mkdir()
    settings: dict[str, Any] = to_builtins(params.load(PROJECT / params.PARAMS)) | {"device": asked.device, "seed": 0}
    settings["data"] |= {"source": "folder", "folder": str(asked.folder.resolve())}
    settings["train"] = WHOLE | ({"epochs": 1} if asked.quick else {})
    for numerics in ("exact", "native"):
        (folder / params.PARAMS).write_text(params.dump(settings | {"numerics": numerics}))
        for stage in ("download", "train", "evaluate") if numerics == "exact" else ("train", "evaluate"):
            run([sys.executable, "-m", "pipeline", stage], folder, asked.out / "whole.txt")
    for kept in (folder / "runs").iterdir():
        shutil.copytree(kept, asked.out / kept.name)


def bench(asked: argparse.Namespace) -> None:
    """The tutorial's script, native and exact side by side."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        raise NotHere("torchvision is not installed, and the tutorial's script needs it") from None
    quick = ["--quick"] if asked.quick else []
    run([sys.executable, "-m", "tools.bench", "--device", asked.device, *quick], PROJECT, asked.out / "bench.txt")
    for table in (PROJECT / "results").glob("bench-*.md"):
        if not (asked.quick or asked.device == "cpu"):
            shutil.copy(table, asked.out)


def run(command: list[str], folder: Path, log: Path, **environment: str) -> None:
    """Run a command, show what it prints and keep it in `log`. Raises RuntimeError where it fails."""
    environment = {**os.environ, **environment}
    started = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with started as running, open(log, "a") as file:
        for line in running.stdout or ():
            print(line, end="", flush=True)
            file.write(line)
    if running.returncode:
        raise RuntimeError(f"{' '.join(command[1:4])} ended with {running.returncode}")


STEPS: dict[str, Callable[[argparse.Namespace], None]] = {"tests": tests, "demo": demo, "whole": whole, "bench": bench}
"""In this order; each raises what went wrong, or NotHere."""

if __name__ == "__main__":
    main()
