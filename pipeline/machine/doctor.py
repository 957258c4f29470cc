"""What this environment can do: Python, packages, PyTorch, devices, driver, threads, workspace, cache, disk. Changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.sources import PROJECT
from pipeline.system.errors import MAKE_AGAIN, UserError, printable
from pipeline.system.libraries import failed_import, python, pytorch_fault

DEVICE = "device"
"""The finding that decides: whether the device of params.yaml can be used."""

NEEDED_BYTES = 10**9
"""CIFAR-10's archive, the data set made of it, DVC's copy of that, and room for the runs."""

REQUIREMENTS = PROJECT / "requirements" / "run.in"
SECONDS = 60
"""The longest that a program which is asked may take."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    about: str
    ok: bool
    text: str
    """What was found and, where that is not ok, the remedy."""


def examine(*about: str) -> list[Finding]:
    """Look at these, by default at everything, in the current folder; a check that fails says so and hides no other."""
    return [_finding(name, CHECKS[name]) for name in about or CHECKS]


def _finding(about: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(about, True, check())
    except UserError as error:
        return Finding(about, False, printable(str(error)))
    except (Exception, SystemExit) as error:  # whatever a broken environment raises: it is a finding, and the others still come
        return Finding(about, False, printable(failed_import(error) or f"{type(error).__name__}: {_one_line(error)}; {MAKE_AGAIN}"))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _needs_pytorch(say_why: bool = False) -> None:
    """Raise UserError where PyTorch cannot be imported; not tried here, for a second try in one process fails of something else."""
    if fault := pytorch_fault():
        raise UserError(fault if say_why else "not known: PyTorch cannot be imported")


def _python() -> str:
    """Whether `python` is this one: dvc.yaml starts the stages with it."""
    asked = _output("python", "-c", "import sys; print(sys.prefix)")
    if asked.strip() != sys.prefix:
        raise UserError(
            f"dvc.yaml runs `python`, which is {shutil.which('python') or 'not there'} and not {sys.executable}; "
            "activate the environment first: . .venv/bin/activate, or use make repro"
        )
    return f"{platform.python_version()}, {sys.executable}, as `python` in dvc.yaml"


def _packages() -> str:
    if not REQUIREMENTS.is_file():
        raise UserError(f"not known, for {REQUIREMENTS} is not there")
    names = re.findall(r"^[A-Za-z][\w.-]*", REQUIREMENTS.read_text(), re.MULTILINE)
    if missing := [name for name in names if not any(importlib.metadata.Distribution.discover(name=name))]:
        raise UserError(f"not installed: {', '.join(missing)}; {MAKE_AGAIN}")
    return f"all {len(names)} of {REQUIREMENTS.relative_to(PROJECT)} are installed"


def _output(*command: str) -> str:
    """What a program prints, or nothing where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, errors="replace", timeout=SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _device() -> str:
    _needs_pytorch(say_why=True)
    from pipeline import device, params

    name = params.load().device
    device.select(name)
    return f"{name}, as {params.PARAMS} wants, can be used"


def _pytorch() -> str:
    _needs_pytorch(say_why=True)
    import torch

    from pipeline import device

    needed = device.needed_driver()
    return f"{torch.__version__}, {device.build()}" + (f", needs an NVIDIA driver of at least {needed}" if needed else "")


def _torchvision() -> str:
    _needs_pytorch()
    import torch

    try:
        import torchvision
    except ImportError:
        raise UserError(f"not installed; its data sets and networks need it; {MAKE_AGAIN}") from None
    except RuntimeError as error:
        raise UserError(
            f"does not match torch {torch.__version__} ({_one_line(error)}): they are of different builds; "
            "install both from one index, as requirements/torch.txt pins them"
        ) from None
    return f"{torchvision.__version__}, matches torch"


def _devices() -> str:
    _needs_pytorch()
    from pipeline import device

    return "; ".join(f"{name}: {what}" for name, what in device.available().items())


def _driver() -> str:
    _needs_pytorch()
    from pipeline import device

    version = device.driver_version()
    if device.driver_too_old():
        raise UserError(f"NVIDIA {version} is too old for this PyTorch, which needs at least {device.needed_driver()}; update it")
    return f"NVIDIA {version}" if version else "no NVIDIA driver is visible"


def _threads() -> str:
    _needs_pytorch()
    from pipeline import device

    used, limit = device.threads(), device.cpu_limit()
    if used > limit:
        raise UserError(f"PyTorch uses {used}, but the CPU limit is {limit}; unset OMP_NUM_THREADS ({os.environ.get('OMP_NUM_THREADS')})")
    return f"PyTorch uses {used}, the CPU limit is {limit}"


def _workers() -> str:
    _needs_pytorch()
    from pipeline import device, params

    given = params.load()
    if count := os.environ.get("WORLD_SIZE"):
        where = " ".join(f"{name}={os.environ.get(name, '')}" for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
        alone = "to train alone, or with what params.yaml says, unset WORLD_SIZE"
        return f"WORLD_SIZE={count} {where} in the environment: train is one of {count} workers, and waits for the others; {alone}"
    device.select(given.device, 0, given.workers)
    what, most = ("CPU", device.cpu_limit()) if given.device == device.CPU else ("GPU", max(1, len(device.accelerators())))
    if given.workers > most:
        raise UserError(
            f"{params.PARAMS} wants {given.workers}, and this machine has {most} {what}(s) to give; set workers: {most} or fewer"
        )
    return f"{given.workers}, as {params.PARAMS} wants; at most one a {what} makes sense, {most} here (docs/workers.md says when)"


def _numerics() -> str:
    import torch

    from pipeline import device, numerics
    from pipeline.exact import VERSION, hardware, registry

    able = [name for name in device.available() if hardware.has_float64(torch.device(name))]
    for name in able:
        device.prepare(torch.device(name))
        numerics.select(VERSION, torch.device(name))
    return f"{VERSION} is proved on {', '.join(able)}; {len(registry.FORMS)} operations have exact forms (docs/exact-numerics.md)"


def _workspace() -> str:
    return f"{_writable(Path.cwd())}; this process is {os.getuid()}:{os.getgid()}"


def _writable(folder: Path) -> str:
    owner = folder.stat()
    text = f"{folder} belongs to {owner.st_uid}:{owner.st_gid}"
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise UserError(f"{folder} is on a read-only file system; mount it without ':ro'")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"{text}, and this process, {os.getuid()}:{os.getgid()}, may not write there "
            f"(in a container: docker run --user {owner.st_uid}:{owner.st_gid})"
        )
    return f"{text}, writable"


ASK_DVC = "from dvc.repo import Repo; repo = Repo(); repo.scm; print(repo.cache.local.path)"
"""What DVC does first in every command that runs a stage: find its folder, then Git's."""


def _cache() -> str:
    if not Path(".dvc").is_dir():
        raise UserError("there is no .dvc folder here, so DVC cannot run; use a whole checkout, hidden files too")
    asked = subprocess.run([*python(), "-c", ASK_DVC], capture_output=True, errors="replace", timeout=SECONDS)
    if asked.returncode:
        complaint = (asked.stderr.strip().splitlines() or ["?"])[-1].partition(": ")[2]
        if "is not a git repository" in complaint:
            raise UserError(f"DVC cannot run, for {complaint}; tell it to do without: dvc config --local core.no_scm true (or: git init)")
        raise UserError(f"DVC cannot run: {complaint}")
    cache = Path(asked.stdout.strip().splitlines()[-1])
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return _writable(there) + ("" if there == cache else f" ({cache.name} is not made yet)")


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / 1e9:.1f} GB free here"
    if free < NEEDED_BYTES:
        raise UserError(f"{text}; CIFAR-10, DVC's copy of it and the runs need about {NEEDED_BYTES / 1e9:.0f} GB: free some")
    return text


CHECKS: dict[str, Callable[[], str]] = {
    DEVICE: _device,
    "python": _python,
    "packages": _packages,
    "PyTorch": _pytorch,
    "torchvision": _torchvision,
    "devices": _devices,
    "driver": _driver,
    "threads": _threads,
    "workers": _workers,
    "numerics": _numerics,
    "workspace": _workspace,
    "cache": _cache,
    "disk": _disk,
}
"""What is looked at: each gives the line, or raises the UserError that is the line."""
