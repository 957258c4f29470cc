"""`make torture`: kill `dvc repro` at random moments, again and again; each time the next one must end in the right bits.

The whole process group gets SIGKILL, as in a power cut or from the kernel's out-of-memory killer. What was killed is
looked at before anything runs again: no file that the project writes may be torn.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pipeline.data import dataset, synthetic
from pipeline.machine import demo
from pipeline.runs import kept, outputs
from pipeline.runs.kept import RUNS
from pipeline.runs.outputs import OUTPUTS, PARTS
from pipeline.system import tensors
from pipeline.training.checkpoint import UNFINISHED
from tests import folders

FOLDER = Path("torture")
REMEDIES = {
    r"Unable to read RWLock-file|RWLock-file .* format error|is busy, it is being blocked by": ".dvc/tmp/rwlock",
    r"dvc\.lock' (validation failed|is invalid)|unable to read: '.*dvc\.lock'": "dvc.lock",
}
"""What DVC says when it cannot go on by itself -> the file to delete (docs/faults.md): DVC makes it anew, nothing is lost."""
RESETS = {"all stages": ["data", "outputs", "dvc.lock", ".dvc/cache"], "train and evaluate": ["outputs", ".dvc/cache/runs"]}
"""What is deleted before a kill, so that DVC has these stages to run."""


def lay_out(folder: Path, small: bool = False) -> None:
    """The demo in `folder`, but it saves its state five times a second; with `small`, on a small set."""
    demo.lay_out(folder)
    stages = (folder / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(stages.replace("-m pipeline train", "-m pipeline train --checkpoint-seconds 0.2"))
    if small:
        folders.use(folder, "small", synthetic.make(640, 200))
    init_dvc(folder)


def init_dvc(folder: Path) -> None:
    """What `dvc init --no-scm` does, in no time."""
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")


def change(folder: Path, module: str, before: str, after: str) -> None:
    """Change the copy of the code in `folder`."""
    path = folder / "pipeline" / module
    code = path.read_text()
    assert code.count(before) == 1, f"{module} has no {before!r}"
    path.write_text(code.replace(before, after))


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    """A command (by default `dvc repro`) in `folder`, in a process group of its own, with this environment's programs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DVC_SITE_CACHE_DIR": str((folder / ".site").resolve())}
    return subprocess.Popen(
        command or ("dvc", "repro"), cwd=folder, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The code of a process that ends by itself, and all that it said."""
    out, errors = process.communicate()
    return process.returncode, out + errors


def remedy(folder: Path, said: str) -> str | None:
    """Delete what docs/faults.md says to delete when DVC says this; its path."""
    for pattern, path in REMEDIES.items():
        if re.search(pattern, said):
            (folder / path).unlink()
            return path
    return None


def written(folder: Path) -> dict[str, str]:
    """SHA-256 of each visible file that the stages have written, by path, but for kept runs."""
    paths = [folder / dataset.DATASET, *(folder / OUTPUTS / part for part in PARTS)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.exists()}


def what_runs(group: int) -> str:
    """The stage that runs in a process group, or dvc."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == group and (stage := re.search(rb"pipeline\0(\w+)", (process / "cmdline").read_bytes())):
                return stage[1].decode()
        except OSError:
            continue  # it has just ended
    return "dvc"


@dataclass
class Figures:
    """What a sweep saw."""

    moments: collections.Counter[str] = field(default_factory=collections.Counter)
    resumes: int = 0
    remedies: collections.Counter[str] = field(default_factory=collections.Counter)
    left_by_dvc: int = 0
    left_by_dvc_bytes: int = 0


def check_nothing_is_torn(folder: Path, right: dict[str, str]) -> None:
    """Every file that is there must be what an uninterrupted run makes."""
    for path, digest in written(folder).items():
        assert digest == right[path], f"{folder / path} is torn"
    for run in (folder / RUNS).glob("[!.]*"):
        kept.load(run)


def check_the_end(folder: Path, right: dict[str, str]) -> None:
    """After a `dvc repro` that succeeded all is there, and nothing else."""
    check_nothing_is_torn(folder, right)
    assert written(folder) == right
    left = [path for place in ("data", "outputs", "runs", ".cache") for path in (folder / place).rglob(".*.part")]
    assert left == [], "a write left something behind"
    assert list((folder / UNFINISHED).iterdir()) == [], "a state was left behind"
    for path in (folder / ".dvc/cache/files/md5").rglob("[!.]*"):
        if path.is_file():
            assert hashlib.md5(path.read_bytes()).hexdigest() == path.parent.name + path.name.removesuffix(".dir"), f"{path} is torn"


def sweep(folder: Path, kills: int, seed: int, wanted: str | None, say=print) -> Figures:
    """Kill `kills` times in `folder`, which is laid out; the fingerprint must be `wanted`, or that of the first run, which is not killed.

    Raises:
        AssertionError: a file was torn, a `dvc repro` failed and no remedy is known, or it ended in other bits.
    """
    draw, figures, seconds = random.Random(seed), Figures(), {}
    for reset in RESETS:  # how long each takes, and what is right
        clear(folder, reset)
        began = time.monotonic()
        code, said = ended(start(folder))
        seconds[reset] = time.monotonic() - began
        assert code == 0, said
    right = written(folder)
    of_weights = tensors.fingerprint(outputs.read_weights(folder / OUTPUTS))
    assert wanted in (None, of_weights), f"the run that was not killed ended in {of_weights}, not {wanted}"
    say(f"uninterrupted: fingerprint {of_weights}, " + ", ".join(f"{reset}: {took:.1f} s" for reset, took in seconds.items()), flush=True)
    while figures.moments.total() < kills:
        reset = draw.choice(list(RESETS))
        clear(folder, reset)
        process, delay = start(folder), draw.uniform(0, seconds[reset])
        time.sleep(delay)
        try:
            os.killpg(process.pid, signal.SIGSTOP)
        except ProcessLookupError:
            continue
        moment = what_runs(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        if ended(process)[0] != -signal.SIGKILL:
            continue  # it had ended before
        figures.moments[moment] += 1
        check_nothing_is_torn(folder, right)
        code, said = ended(start(folder))
        while code and (path := remedy(folder, said)):
            figures.remedies[path] += 1
            say(f"  {said.strip().splitlines()[-1]}: deleted {path}", flush=True)
            code, said = ended(start(folder))
        assert code == 0, said
        check_the_end(folder, right)
        resumed = re.search(r"resumes at step \d+ of \d+", said)
        figures.resumes += resumed is not None
        number = figures.moments.total()
        say(f"{number:>3} killed after {delay:5.1f} s of {reset}, in {moment}; {resumed[0] if resumed else 'ran again'}", flush=True)
    left = [path for path in folder.rglob(".*.tmp") if path.is_file()]
    figures.left_by_dvc, figures.left_by_dvc_bytes = len(left), sum(path.stat().st_size for path in left)
    return figures


def clear(folder: Path, reset: str) -> None:
    """Delete what `reset` names."""
    for path in (folder / name for name in RESETS[reset]):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if (lock := folder / "dvc.lock").exists():
        known = yaml.safe_load(lock.read_text())
        lock.write_text(yaml.safe_dump({**known, "stages": {"download": known["stages"]["download"]}}))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="repeats the draws; what runs at a moment depends on the machine too")
    parser.add_argument("--small", action="store_true", help="a set of 640 images: quicker, and more of the kills hit DVC itself")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="deleted first")
    asked = parser.parse_args()
    shutil.rmtree(asked.folder, ignore_errors=True)
    lay_out(asked.folder, asked.small)
    began = time.monotonic()
    figures = sweep(asked.folder, asked.kills, asked.seed, None if asked.small else demo.FINGERPRINT)
    print(
        f"\n{asked.kills} kills, seed {asked.seed}, {(time.monotonic() - began) / 60:.0f} minutes; each time the next dvc repro succeeded"
    )
    print("with the fingerprint and the files of the run that was not killed; no file of the project was ever torn")
    print("killed in: " + ", ".join(f"{name} {count}" for name, count in figures.moments.most_common()))
    print(f"resumed from a saved state: {figures.resumes}")
    print("deleted by hand: " + (", ".join(f"{path} {count}" for path, count in figures.remedies.items()) or "nothing"))
    print(f"left behind by DVC: {figures.left_by_dvc} temporary files, {figures.left_by_dvc_bytes / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
