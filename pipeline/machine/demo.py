"""The whole pipeline on the synthetic set in a folder of its own, then the claim proved on this machine."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from pipeline import params, sources
from pipeline.device import CPU, accelerators, cpu_limit, threads
from pipeline.inputs import CACHE
from pipeline.machine import records
from pipeline.machine.records import Outcome, Variant
from pipeline.runs import outputs
from pipeline.sources import PROJECT
from pipeline.system import files, revision, tensors
from pipeline.system.errors import UserError
from pipeline.training.checkpoint import UNFINISHED

FINGERPRINT = "0a0d3aa571357ffd44256b4a8194b7e6f300350b161fa81839a8b5c0a9a36f49"
"""What the demo's weights must be, on every machine, with this version of the numerics."""
DURATION = "It takes about three minutes on two CPU cores, 110 MB of disk, and no network."
FOLDER = Path("demo")
PIPELINE = [sys.executable, "-m", "pipeline"]
SETTINGS: dict[str, Any] = {
    "device": CPU,
    "workers": 1,
    "seed": 0,
    "numerics": "exact",
    "data": {"source": "synthetic", "folder": "photos", "size": 32},  # DVC asks for all that dvc.yaml names
    "model": {"name": params.SIMPLE_CNN},
    "train": {"epochs": 3, "batch_size": 64, "lr": 0.01, "momentum": 0.9, "log_every": 10},
    "evaluate": {"batch_size": 1000},
    "compare": {"margin_points": 1.0, "confidence": 0.95},
}
"""All of the demo's params.yaml: what the project's says is the user's."""


def demo(folder: Path = FOLDER, others: list[Variant] | None = None, emulator: str | None = None) -> bool:
    """Run the stages in `folder`, train and evaluate again in other ways, print what and a line each, and leave the machine's record.

    The other ways to train are all `variants()` of this machine, or `others`; `emulator` is what plays its processor, if any.
    Returns whether all fingerprints were right, and all evaluations the same.

    Raises:
        UserError: a stage failed.
    """
    ways, epochs = variants() if others is None else others, SETTINGS["train"]["epochs"]
    print(
        f"In {folder}/ this makes a synthetic set, trains the tutorial's SimpleCNN on it for {epochs} epochs and evaluates it.\n"
        f"Then it trains in {len(ways)} other ways, and evaluates in other batches: all must give the same bits.\n"
        f"{DURATION}\n",
        flush=True,
    )
    repro(folder)
    print("\nThe same training in other ways; each must give the same weights, bit for bit:\n", flush=True)
    first = Outcome(
        name="the stages", device=CPU, threads=threads(), fingerprint=_fingerprint(folder),
        evaluation=records.evaluation_digest(folder / outputs.OUTPUTS), evaluation_batch=SETTINGS["evaluate"]["batch_size"],
    )  # fmt: skip
    outcomes = [_said(first), *(_said(train_again(folder, variant)) for variant in ways)]
    print("\nThe same evaluation in other batches; its metrics and predictions must be the same bytes:\n", flush=True)
    other = evaluate_again(folder, first)
    outcomes.append(other)
    for each in (first, other):
        print(f"  {each.evaluation}  in batches of {each.evaluation_batch}{'' if each.evaluation == first.evaluation else '  <- differs'}")
    edited = revision.is_edited(sources.PACKAGE)
    right, verdict = judged({each.fingerprint for each in outcomes}, other.evaluation == first.evaluation, edited)
    print(f"\n{verdict}")
    if not (revision.describe(sources.PACKAGE) or "").endswith("-dirty"):  # a record is of a commit
        leave_record(folder / records.RECORD, outcomes, emulator)
    return right


def judged(fingerprints: set[str], one_evaluation: bool, edited: bool) -> tuple[bool, str]:
    """Whether the claim is shown, and in words: for the README's fingerprint, or for another of sources that Git knows to be `edited`."""
    if len(fingerprints) > 1 or not one_evaluation:
        return False, "NOT every way gave the same bits: please report it"
    (found,) = fingerprints
    if found == FINGERPRINT:
        return True, f"every fingerprint is the one in the README: {FINGERPRINT}"
    same = f"every way gave the same bits, {found}; they are NOT the README's, {FINGERPRINT}"
    if edited:
        return True, f"{same}, for the sources here are edited: the claim holds of them, too"
    return False, f"{same}: that is right where you changed what is trained; else please report it"


def leave_record(path: Path, outcomes: list[Outcome], emulator: str | None = None) -> None:
    """Write the machine's record, and say where it can be sent. Raises UserError."""
    record = records.describe(FINGERPRINT, outcomes, emulator)
    records.write(path, record)
    print(
        f"{path} says what was computed and on what processor, system and PyTorch (no name of the machine or of its user);\n"
        f"to add it to the README's table, send it in a pull request as {records.RECORDS}/{record.slug()}.json"
    )


def repro(folder: Path) -> None:
    """Run the stages in `folder`, laid out first: with DVC, or one after another where it is not installed. Raises as `demo` does."""
    lay_out(folder)
    if importlib.util.find_spec("dvc") is None:
        for stage in sources.STAGES:
            _run([*PIPELINE, stage], folder, {"PYTHONPATH": _importable(folder)})
        return
    if not (folder / ".dvc").exists():
        _run(["dvc", "init", "--quiet", "--no-scm"], folder)
    _run(["dvc", "repro"], folder)


def lay_out(folder: Path) -> None:
    """Put the stages, their code and the demo's settings into `folder`."""
    for source in [PROJECT / "dvc.yaml", *(PROJECT / "pipeline").rglob("*.*")]:
        if source.parent.name != "__pycache__":
            files.write_bytes(folder / source.relative_to(PROJECT), source.read_bytes())
    files.write_text(folder / params.PARAMS, params.dump(SETTINGS))
    # stages depend on these two whatever the source and the network, and DVC warns of empty folders
    for name in (SETTINGS["data"]["folder"], "networks"):
        files.write_text(folder / name / "README.md", "Nothing of the demo's is here.\n")


def variants() -> list[Variant]:
    """Other ways to train on this machine."""
    limit = cpu_limit()
    given = [
        Variant(name=f"all {limit} threads", device=CPU, threads=limit),
        Variant(name="one thread", device=CPU, threads=1),
        Variant(name="set to the oldest instructions", device=CPU, threads=limit, settings=records.OLDEST_INSTRUCTIONS),
        Variant(name="two workers", device=CPU, threads=1, workers=2),
    ]
    gpus = accelerators()
    for name, described in gpus.items():
        given.append(Variant(name=f"CUDA ({described})", device=name))
        given.append(Variant(name=f"begun on the CPU, ended on {name}", device=name, resumed_from=CPU))
    if len(gpus) > 1:
        given.append(Variant(name=f"{len(gpus)} workers, a GPU each", device=min(gpus).partition(":")[0], workers=len(gpus)))
    return given


def train_again(folder: Path, variant: Variant) -> Outcome:
    """Train as in `folder`, but in another way; what it gave. Raises UserError."""
    own = folder / "variants" / re.sub("[^A-Za-z0-9]", "-", variant.name)
    with files.explained(own):
        shutil.rmtree(own / CACHE, ignore_errors=True)
        own.mkdir(parents=True, exist_ok=True)
        (own / "data").unlink(missing_ok=True)
        (own / "data").symlink_to((folder / "data").resolve())
    environment = {"PYTHONPATH": _importable(folder), **variant.settings}
    if variant.threads:
        environment["OMP_NUM_THREADS"] = str(variant.threads)
    if variant.resumed_from:
        _set(folder, own, {"device": variant.resumed_from})
        begin(own, environment)
    _set(folder, own, {"device": variant.device, "workers": variant.workers})
    _run([*PIPELINE, "train"], own, environment, quiet=True)
    return Outcome(**msgspec.structs.asdict(variant), fingerprint=_fingerprint(own))


def evaluate_again(folder: Path, first: Outcome, batch: int = 7) -> Outcome:
    """Evaluate what was trained in `folder`, in batches of another size; what it gave. Raises UserError."""
    own = folder / "variants" / "other-batches"
    shutil.rmtree(own, ignore_errors=True)
    for source in [*(folder / "data").rglob("*"), *(folder / outputs.OUTPUTS).rglob("*")]:
        if source.is_file():
            files.write_bytes(own / source.relative_to(folder), source.read_bytes())
    _set(folder, own, {"evaluate": {"batch_size": batch}})
    _run([*PIPELINE, "evaluate"], own, {"PYTHONPATH": _importable(folder)}, quiet=True)
    digest = records.evaluation_digest(own / outputs.OUTPUTS)
    return msgspec.structs.replace(first, name=f"evaluated in batches of {batch}", evaluation=digest, evaluation_batch=batch)


def _importable(folder: Path) -> str:
    """PYTHONPATH with which the code in `folder` is imported, and all that this process can import."""
    return os.pathsep.join(filter(None, (str(folder.resolve()), os.environ.get("PYTHONPATH"))))


def _set(folder: Path, own: Path, settings: dict[str, Any]) -> None:
    everything = msgspec.to_builtins(params.load(folder / params.PARAMS)) | settings
    files.write_text(own / params.PARAMS, params.dump(everything))


def begin(own: Path, environment: dict[str, str], end: signal.Signals = signal.SIGTERM) -> None:
    """Start a training, and end it by that signal as soon as a state of it is saved. Raises UserError."""
    command = [*PIPELINE, "train", "--checkpoint-seconds", "0"]
    with subprocess.Popen(
        command, cwd=own, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as begun:
        while begun.poll() is None and not any((own / UNFINISHED).glob("*.safetensors")):
            time.sleep(0.02)
        begun.send_signal(end)
    if begun.returncode != (-end if end == signal.SIGKILL else 128 + end):
        raise UserError(f"the training in {own} was not stopped on its way: it ended with {begun.returncode}")


def _fingerprint(folder: Path) -> str:
    return tensors.fingerprint(outputs.read_weights(folder / outputs.OUTPUTS))


def _said(outcome: Outcome) -> Outcome:
    print(f"  {outcome.fingerprint}  {outcome.name}" + ("" if outcome.fingerprint == FINGERPRINT else "  <- not the README's"), flush=True)
    return outcome


def _run(command: list[str], folder: Path, changed: dict[str, str] | None = None, quiet: bool = False) -> None:
    beside = Path(sys.executable).parent  # dvc.yaml says `python`: this one
    environment = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}", **(changed or {})}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=quiet, text=True)
    if done.returncode:
        said = (done.stderr or "").strip().splitlines()
        raise UserError(f"{' '.join(command[-3:])} failed in {folder}" + (f": {said[-1]}" if said else ""))
