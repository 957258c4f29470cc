"""The whole pipeline on the synthetic set in a folder of its own, then the claim proved on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from pipeline import files, params, tensors
from pipeline.device import CPU, accelerators, cpu_limit
from pipeline.errors import UserError
from pipeline.runs import outputs

FINGERPRINT = "404435cb92da84ae084ebb4913a1e990d317cfb71df1f82953f70d5139bf5a48"
"""What the demo's weights must be, on every machine, with this version of the numerics."""
FOLDER = Path("demo")
PROJECT = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, Any] = {
    "device": CPU,
    "seed": 0,
    "numerics": "exact",
    "train": {"epochs": 3, "batch_size": 64, "lr": 0.01, "momentum": 0.9, "log_every": 10},
    "evaluate": {"batch_size": 1000},
}


def demo(folder: Path = FOLDER) -> bool:
    """Run the stages with DVC in `folder`, train again in other ways, print a line each; whether all fingerprints were right.

    Raises:
        UserError: a stage failed.
    """
    repro(folder)
    print("\nThe same training in other ways; each must give the same weights, bit for bit:\n", flush=True)
    right = _said("dvc repro", _fingerprint(folder))
    for way, changed, device in variants():
        right &= _said(way, train_again(folder, way, changed, device))
    verdict = "every fingerprint is the one in the README" if right else "a fingerprint is NOT the one in the README: please report it"
    print(f"\n{verdict}: {FINGERPRINT}")
    return right


def repro(folder: Path) -> None:
    """Run the stages with DVC in `folder`, laid out first. Raises UserError as `demo` does."""
    lay_out(folder)
    if not (folder / ".dvc").exists():
        _run(["dvc", "init", "--quiet", "--no-scm"], folder)
    _run(["dvc", "repro"], folder)


def lay_out(folder: Path) -> None:
    """Put the stages, their code and the demo's settings into `folder`."""
    settings = to_builtins(params.load(PROJECT / params.PARAMS)) | SETTINGS
    settings["data"]["source"] = "synthetic"
    for source in [PROJECT / "dvc.yaml", *(PROJECT / "pipeline").rglob("*.*")]:
        if source.parent.name != "__pycache__":
            files.write_bytes(folder / source.relative_to(PROJECT), source.read_bytes())
    files.write_text(folder / params.PARAMS, params.dump(settings))


def variants() -> list[tuple[str, dict[str, str], str]]:
    """Other ways to train on this machine: what each is called, the environment variables that make it, the device."""
    found = [(f"all {cpu_limit()} threads", {"OMP_NUM_THREADS": str(cpu_limit())}, CPU), ("one thread", {"OMP_NUM_THREADS": "1"}, CPU)]
    plain = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
    found.append(("the oldest CPU instructions", plain, CPU))
    return found + [(f"CUDA ({described})", {}, name) for name, described in accelerators().items()]


def train_again(folder: Path, way: str, changed: dict[str, str], device: str) -> str:
    """Train as in `folder` with the environment `changed` and on `device`; the fingerprint."""
    own = folder / "ways" / "".join(c if c.isalnum() else "-" for c in way)
    with files.explained(own):
        own.mkdir(parents=True, exist_ok=True)
        (own / "data").unlink(missing_ok=True)
        (own / "data").symlink_to((folder / "data").resolve())
    settings = to_builtins(params.load(folder / params.PARAMS)) | {"device": device}
    files.write_text(own / params.PARAMS, params.dump(settings))
    _run([sys.executable, "-m", "pipeline", "train"], own, {"PYTHONPATH": str(folder.resolve()), **changed}, quiet=True)
    return _fingerprint(own)


def _fingerprint(folder: Path) -> str:
    return tensors.fingerprint(outputs.read_weights(folder / outputs.OUTPUTS))


def _said(way: str, found: str) -> bool:
    print(f"  {found}  {way}" + ("" if found == FINGERPRINT else "  <- differs"), flush=True)
    return found == FINGERPRINT


def _run(command: list[str], folder: Path, changed: dict[str, str] | None = None, quiet: bool = False) -> None:
    beside = Path(sys.executable).parent  # dvc.yaml says `python`: this one
    environment = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}", **(changed or {})}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=quiet, text=True)
    if done.returncode:
        said = (done.stderr or "").strip().splitlines()
        raise UserError(f"{' '.join(command[-3:])} failed in {folder}" + (f": {said[-1]}" if said else ""))
