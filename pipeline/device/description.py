"""What a device is, how much memory it uses, and how long it takes."""

from __future__ import annotations

import contextlib
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.device.cuda import accelerators, driver_version
from pipeline.device.failures import failures_explained


def available() -> dict[str, str]:
    """The devices that `select` would give here: name for params.yaml -> what it is."""
    devices = {"cpu": f"{_name(torch.device('cpu'))}, {torch.backends.cpu.get_cpu_capability()}", **accelerators()}
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU; no float64, so numerics: native alone"
    return devices


def describe(device: torch.device) -> dict[str, Any]:
    """What computes: facts for a run's environment.json, the same for every run on this machine with these settings."""
    facts: dict[str, Any] = {
        "hardware": _name(device),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    if device.type == "cuda":
        with failures_explained(device):
            capability = torch.cuda.get_device_capability(device)
        facts |= {
            "cuda": torch.version.cuda,
            "driver": driver_version(),
            "cudnn": torch.backends.cudnn.version(),
            "compute_capability": f"{capability[0]}.{capability[1]}",
        }
    return facts


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use at once so far: the GPU's for CUDA, else this process's resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError):  # Linux: getrusage would count the parent's, from before exec, too
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def synchronise(device: torch.device) -> None:
    """Wait until all that was asked of `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Seconds of work on a device, waiting for it at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Add the block's time to `seconds`."""
        synchronise(self.device)
        start = time.perf_counter()
        yield
        synchronise(self.device)
        self.seconds += time.perf_counter() - start
