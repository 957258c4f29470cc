"""All that there is to see on a machine with a GPU, in one command and one folder that goes into `results/`.

`python3 -m tools.gpu`, in the folder that `make gpu-kit` made, or in a clone with its environment. The steps stand in the order of what
they tell for the time that they take (docs/gpu.md). Each is a process of its own with a limit, so one that fails or hangs hides no other,
and what was seen is packed after each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
SITE = PROJECT / "site.zip"
"""The kit's packages (tools/gpu_kit.py)."""
WHOLE = {"epochs": 10, "batch_size": 64, "lr": 0.01, "momentum": 0.9, "log_every": 10}
GPU = "name,driver_version,compute_cap,memory.total,memory.used,compute_mode,mig.mode.current,ecc.mode.current,clocks.max.sm,power.limit"
"""What nvidia-smi is asked, nothing that names the machine."""
LEFT_OUT = 3
"""The exit code of a step that cannot be done on this machine."""


def main(words: list[str] | None = None) -> None:
    """Run the steps and say what came of each; exit code 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python3 -m tools.gpu")
    parser.add_argument("steps", nargs="*", help=f"which steps to run: {', '.join(STEPS)} (all)")
    parser.add_argument("--device", default="cuda", help="the device to see, as in params.yaml (cuda)")
    parser.add_argument("--folder", type=Path, help="a folder of pictures in train/CLASS/ and test/CLASS/, for the whole training")
    parser.add_argument("--name", default="my-images", help="what to call that data set")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="the folder to leave (gpu-results)")
    parser.add_argument("--work", type=Path, default=Path(".cache/gpu"), help="where to compute (.cache/gpu)")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="the longest that any step may take, in the place of its own limit")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: one training begun anew, one epoch, a few rounds of the bench")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if unknown := [name for name in asked.steps if name not in STEPS]:
        parser.error(f"no step '{unknown[0]}'; there are {', '.join(STEPS)}")
    if asked.limit is not None and not 0 < asked.limit < float("inf"):
        parser.error(f"--limit {asked.limit}: a number of seconds above 0")
    asked.out, asked.work = asked.out.resolve(), asked.work.resolve()
    if asked.inside:
        sys.exit(inside(asked))
    for folder in (asked.work, asked.out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    if SITE.exists():
        with zipfile.ZipFile(SITE) as packages:
            packages.extractall(asked.work / "site")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step that runs is ended too
    failed = []
    for name in asked.steps or STEPS:
        start = time.monotonic()
        print(f"\n=== {name}", flush=True)
        outcome = in_a_process(name, asked, sys.argv[1:] if words is None else words)
        if outcome.startswith("FAILED"):
            failed.append(name)
        line = f"{name}: {outcome} ({time.monotonic() - start:.0f} s)"
        print(line, flush=True)
        with open(asked.out / "steps.txt", "a") as file:
            file.write(line + "\n")
        pack(asked.out)
    advice = f"NOT well: {', '.join(failed)}" if failed else "copy what is in it into results/"
    print(f"\n{asked.out}/ and {asked.out}.tar.gz hold what was seen; {advice}")
    sys.exit(1 if failed else 0)


def in_a_process(name: str, asked: argparse.Namespace, words: list[str]) -> str:
    """Run a step in a process of its own, show and keep what it prints; its outcome, one line. It and all that it started end here."""
    limit = asked.limit or STEPS[name].limit_seconds
    options = [word for word in words if word not in asked.steps]
    log = asked.out / f"{name}.txt"
    paths = [str(PROJECT), *([str(asked.work / "site")] if SITE.exists() else []), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "tools.gpu", *options, "--inside", "--", name]
    with open(log, "wb") as file:
        step = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            told = 0
            deadline = time.monotonic() + limit
            while (ended := step.poll()) is None and time.monotonic() < deadline:
                time.sleep(0.2)
                told = _tell(log, told)
            _tell(log, told)
        finally:
            if step.poll() is None:
                os.killpg(step.pid, signal.SIGKILL)
            step.wait()
    if ended is None:
        return f"FAILED: it was ended after {limit:.0f} s, its limit"
    last = (log.read_text(errors="replace").strip().splitlines() or [f"exit code {ended}"])[-1]
    return "ok" if ended == 0 else f"left out: {last}" if ended == LEFT_OUT else f"FAILED: {last}"


def _tell(log: Path, told: int) -> int:
    """Print what a log has beyond so many bytes; how many it has."""
    with open(log, "rb") as file:
        file.seek(told)
        new = file.read()
    sys.stdout.write(new.decode(errors="replace"))
    sys.stdout.flush()
    return told + len(new)


def pack(out: Path) -> None:
    """Put the folder into an archive beside it, in the place of the one before."""
    made = shutil.make_archive(f"{out}.new", "gztar", out)
    os.replace(made, f"{out}.tar.gz")


def inside(asked: argparse.Namespace) -> int:
    """Do one step in this process; its exit code."""
    try:
        STEPS[asked.steps[0]].do(asked)
    except NotHere as reason:
        print(reason)
        return LEFT_OUT
    except Exception as error:  # whatever it is, it is what this step has to tell
        print(f"{type(error).__name__}: {error}")
        return 1
    return 0


class NotHere(Exception):
    """Why a step cannot be done on this machine."""


def machine(asked: argparse.Namespace) -> None:
    """What this machine is, whether the pipeline can use it, and whether two steps give the known bits."""
    for command in (
        ["nvidia-smi"],
        ["nvidia-smi", f"--query-gpu={GPU}", "--format=csv"],
        [sys.executable, "-c", "import torch.utils.collect_env as c; c.main()"],
    ):
        try:
            run(command, PROJECT)
        except (RuntimeError, OSError) as error:
            print(f"{command[0]}: {error}")  # on another device there is none
    folder = asked.work / "machine"
    folder.mkdir(parents=True)
    settings(folder, asked)
    for words in (["doctor", "--quiet"], ["doctor"], ["doctor", "--trace"]):
        try:
            run([sys.executable, "-m", "pipeline", *words], folder)
        except RuntimeError:
            if words != ["doctor"]:  # which finds what is missing in the folder of a kit, too
                raise


def tests(asked: argparse.Namespace) -> None:
    """The tests that need a GPU; on a GPU none may be skipped."""
    needing = sorted(str(path) for path in (PROJECT / "tests").glob("test_*.py") if "pytest.mark.cuda" in path.read_text())
    required = {"PIPELINE_REQUIRED_TESTS": "cuda"} if asked.device.startswith("cuda") else {}
    run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", *needing],
        PROJECT,
        **required,
    )


def crossing(asked: argparse.Namespace) -> None:
    """The demo's fingerprint, begun on the CPU and ended on the device."""
    prove(asked, "crossing", [begun_on_the_cpu(asked)])


def demo(asked: argparse.Namespace) -> None:
    """The demo's fingerprint in every way that this machine has."""
    prove(asked, "demo", [begun_on_the_cpu(asked)] if asked.quick else None)


def begun_on_the_cpu(asked: argparse.Namespace) -> Any:
    """A training that changes its device half-way."""
    from pipeline import device
    from pipeline.machine.records import Variant

    return Variant(name=f"begun on the CPU, ended on {asked.device}", device=asked.device, resumed_from=device.CPU)


def prove(asked: argparse.Namespace, name: str, ways: list[Any] | None) -> None:
    """Run the demo in these ways, and leave the machine's record."""
    from pipeline.machine import demo, records

    right = demo.demo(asked.work / name, ways)
    record = records.read(asked.work / name / records.RECORD)
    records.write(asked.out / "machines" / f"{record.slug()}.json", record)
    if not right:
        raise RuntimeError("a fingerprint or an evaluation is another")


def timed(asked: argparse.Namespace) -> None:
    """Milliseconds a step and peak memory: exact as a graph and kernel by kernel, native twice; equal ways must give equal weights."""
    import torch

    from pipeline import device as devices
    from pipeline import numerics
    from pipeline.data import synthetic
    from pipeline.params import Train
    from pipeline.system.tensors import fingerprint
    from pipeline.training.trainer import Trainer

    device = devices.select(asked.device)
    devices.prepare(device)
    data, steps, weights = synthetic.make(), 20 if asked.quick else 200, {}
    settings = Train(epochs=100, batch_size=64, lr=0.01, momentum=0.9, log_every=500)
    for way, name, graph in (("graph", "exact", "1"), ("eager", "exact", "0"), ("native", "native", "1"), ("native again", "native", "1")):
        os.environ[devices.graph.GRAPH] = graph
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        trainer = Trainer(data, device, 0, numerics.select(name, device), settings)
        stopwatch = devices.Stopwatch(device)
        for _ in range(10):
            trainer.step()
        with stopwatch.running():
            for _ in range(steps):
                trainer.step()
        weights[way] = fingerprint(trainer.named_weights())
        peak = devices.peak_memory_bytes(device) / 1e6
        print(
            f"{way}: {stopwatch.seconds / steps * 1e3:.3f} ms a step of {steps}, at most {peak:.0f} MB, weights {weights[way]}", flush=True
        )
        del trainer
    for one, other in (("graph", "eager"), ("native", "native again")):
        if weights[one] != weights[other]:
            raise RuntimeError(f"the weights of {one} and {other} differ")


def whole(asked: argparse.Namespace) -> None:
    """Train and evaluate on the folder of pictures, exact and native, and keep both runs."""
    if asked.folder is None:
        raise NotHere("no --folder was given")
    folder = asked.work / "whole"
    folder.mkdir(parents=True)
    pictures = {"source": "folder", "folder": str(asked.folder.resolve())}
    for numerics in ("exact", "native"):
        settings(folder, asked, numerics=numerics, data=pictures, train=WHOLE | ({"epochs": 1} if asked.quick else {}))
        for stage in ("download", "train", "evaluate") if numerics == "exact" else ("train", "evaluate"):
            run([sys.executable, "-m", "pipeline", stage], folder)
        for kept in (folder / "runs").iterdir():
            shutil.copytree(kept, asked.out / kept.name, dirs_exist_ok=True)


def settings(folder: Path, asked: argparse.Namespace, data: dict[str, Any] | None = None, **others: Any) -> None:
    """Write a params.yaml for the device: the project's, with other settings in places."""
    from msgspec import to_builtins

    from pipeline import params

    given: dict[str, Any] = to_builtins(params.load(PROJECT / params.PARAMS)) | {"device": asked.device, "seed": 0} | others
    given["data"] |= data or {}
    (folder / params.PARAMS).write_text(params.dump(given))


def bench(asked: argparse.Namespace) -> None:
    """The tutorial's script, native and exact side by side."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        raise NotHere("torchvision is not installed, and the tutorial's script needs it") from None
    quick = ["--quick"] if asked.quick else []
    run([sys.executable, "-m", "tools.bench", "--device", asked.device, *quick], PROJECT)
    for table in (PROJECT / "results").glob("bench-*.md"):
        if not (asked.quick or asked.device == "cpu"):
            shutil.copy(table, asked.out)


def run(command: list[str], folder: Path, **environment: str) -> None:
    """Run a command, which prints where this process does. Raises RuntimeError where it fails."""
    print("$", " ".join(command[:6]), flush=True)
    if ended := subprocess.run(command, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL).returncode:
        raise RuntimeError(f"{' '.join(command[1:4])} ended with {ended}")


class Step(NamedTuple):
    """What a step does, and the longest that it may take."""

    do: Callable[[argparse.Namespace], None]
    """Raises what went wrong, or NotHere."""
    limit_seconds: float


STEPS = {
    "machine": Step(machine, 300),
    "crossing": Step(crossing, 600),
    "timed": Step(timed, 300),
    "tests": Step(tests, 900),
    "whole": Step(whole, 3600),
    "demo": Step(demo, 1800),
    "bench": Step(bench, 1800),
}
"""In this order: that of what they tell in the first ten minutes."""

if __name__ == "__main__":
    main()
