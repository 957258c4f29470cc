"""What this environment can do: PyTorch, devices, driver, threads, workspace, cache, disk. Changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

DEVICE = "device"
"""The finding that decides: whether the device of params.yaml can be used."""

NEEDED_BYTES = 10**9
"""CIFAR-10's archive, the data set made of it, DVC's copy of that, and room for the runs."""


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
        return Finding(about, False, str(error))
    except (ImportError, OSError, RuntimeError) as error:  # PyTorch or a part of it that does not load
        return Finding(about, False, f"{_one_line(error)}; make the environment again: make setup, or build the image")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _device() -> str:
    from pipeline import device, params

    name = params.load().device
    device.select(name)
    return f"{name}, as {params.PARAMS} wants, can be used"


def _pytorch() -> str:
    import torch

    from pipeline import device

    needed = device.needed_driver()
    return f"{torch.__version__}, " + (f"for CUDA, needs an NVIDIA driver of at least {needed}" if needed else "a CPU-only build")


def _torchvision() -> str:
    import torch

    try:
        import torchvision
    except ImportError:
        raise UserError("not installed; only the guide's own loader in tests and benchmark needs it") from None
    except RuntimeError as error:
        raise UserError(
            f"does not match torch {torch.__version__} ({_one_line(error)}): they are of different builds; "
            "install both from one index, as requirements/torch.txt pins them"
        ) from None
    return f"{torchvision.__version__}, matches torch"


def _devices() -> str:
    from pipeline import device

    return "; ".join(f"{name}: {what}" for name, what in device.available().items())


def _driver() -> str:
    from pipeline import device

    found, needed = device.driver_version(), device.needed_driver()
    if found and needed and found.split(".")[0].isdigit() and int(found.split(".")[0]) < int(needed):
        raise UserError(f"NVIDIA {found} is too old for this PyTorch, which needs at least {needed}; update it")
    return f"NVIDIA {found}" if found else "no NVIDIA driver is visible"


def _threads() -> str:
    from pipeline import device

    used, limit = device.threads(), device.cpu_limit()
    if used > limit:
        raise UserError(f"PyTorch uses {used}, but the CPU limit is {limit}; unset OMP_NUM_THREADS ({os.environ.get('OMP_NUM_THREADS')})")
    return f"PyTorch uses {used}, the CPU limit is {limit}"


def _numerics() -> str:
    import torch

    from pipeline import device
    from pipeline.numerics import registry, self_test
    from pipeline.numerics.exact import VERSION

    able = [name for name in device.available() if device.has_float64(torch.device(name))]
    for name in able:
        device.prepare(torch.device(name))
        self_test.check(torch.device(name))
    forms = f"{', '.join(registry.FORMS)}; cross_entropy as the loss; SGD with momentum"
    return f"{VERSION} is proved on {', '.join(able)}; what a model may be made of: {forms}"


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


def _cache() -> str:
    if not Path(".dvc").is_dir():
        raise UserError("there is no .dvc folder here, so DVC cannot run; use a whole checkout, hidden files too")
    asked = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise UserError(f"DVC gives none: {(asked.stderr.strip().splitlines() or ['?'])[0].removeprefix('ERROR: ')}")
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
    "PyTorch": _pytorch,
    "torchvision": _torchvision,
    "devices": _devices,
    "driver": _driver,
    "threads": _threads,
    "numerics": _numerics,
    "workspace": _workspace,
    "cache": _cache,
    "disk": _disk,
}
"""What is looked at: each gives the line, or raises the UserError that is the line."""
