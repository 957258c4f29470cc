"""The only module that knows devices: select, check, describe, synchronise, capture."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline import memory
from pipeline.errors import UserError, shown
from pipeline.exact import precision
from pipeline.exact.errors import Imprecise
from pipeline.params import DEVICE

CPU = "cpu"
"""The device that is always there."""
MINIMUM_DRIVER = {"13": "580", "12": "525"}
"""CUDA's major version -> the oldest Linux driver that runs it (NVIDIA's CUDA compatibility guide, minor version compatibility)."""

OMP_THREADS = r"\s*\+?0*[1-9]\d*\s*(,\s*\+?0*[1-9]\d*\s*)*"
"""What OMP_NUM_THREADS may be: a number, or one for each level of nested regions. Of any other value OpenMP says that it is invalid."""


def select(name: str, worker: int = 0, workers: int = 1) -> torch.device:
    """The device called `name` in params.yaml, checked to be there; of several workers on this machine each has a GPU of its own.

    Raises:
        UserError: it is not; says what is missing and what to do. There is no fallback.
    """
    if not re.fullmatch(DEVICE, name):
        raise UserError(f"device {shown(name)}: not a device; allowed: cpu | cuda | cuda:N | mps")
    device = torch.device(name)
    if workers > 1 and (device.index is not None or device.type == "mps"):
        raise UserError(f"device '{name}' is one device, and {workers} workers need one each; set device: cpu or cuda, or workers: 1")
    if device.type == "cuda":
        _check_cuda(device)
        if workers > 1:
            if (count := torch.cuda.device_count()) < workers:
                raise UserError(f"{workers} workers on device 'cuda' need a GPU each, and this machine shows {count}; set workers: {count}")
            return torch.device(name, worker)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device '{name}': this machine or this PyTorch has no MPS; set device: cpu in params.yaml")
    return device


def _check_cuda(device: torch.device) -> None:
    if torch.version.cuda is None:
        raise UserError(
            f"device '{device}': this PyTorch is {build()} ({torch.__version__}); "
            "use the CUDA image or a CUDA build, or set device: cpu in params.yaml"
        )
    hidden = _hidden_by()
    if not torch.cuda.is_available():
        driver, needed = driver_version(), needed_driver()
        if driver is None:
            raise UserError(
                f"device '{device}': no NVIDIA GPU is visible; in a container add --gpus all, on a host install "
                f"the driver (at least {needed}), or set device: cpu in params.yaml" + (f"; {hidden}" if hidden else "")
            )
        if hidden and not driver_too_old():
            raise UserError(f"device '{device}': no GPU is left, for {hidden}; unset it, or set device: cpu in params.yaml")
        raise UserError(
            f"device '{device}': no usable GPU; the NVIDIA driver is {driver}, CUDA {torch.version.cuda} needs at "
            f"least {needed}; update it, in a container add --gpus all, or set device: cpu in params.yaml"
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise UserError(
            f"device '{device}': this machine shows {count} GPU(s), cuda:0 to cuda:{count - 1}; set device in params.yaml"
            + (f"; {hidden}" if hidden else "")
        )


def _hidden_by() -> str | None:
    """The environment variable that chooses which GPUs of this machine PyTorch sees, as a clause; None where none is set."""
    # NVIDIA_VISIBLE_DEVICES is the NVIDIA Container Toolkit's: `all` hides none, and an index or a UUID may hide some
    for name, hides_none in (("CUDA_VISIBLE_DEVICES", ()), ("NVIDIA_VISIBLE_DEVICES", ("", "all"))):
        if (value := os.environ.get(name)) is not None and value not in hides_none:
            return f"PyTorch sees only the GPUs that {name} names, which is {shown(value)}"
    return None


def build() -> str:
    """What this PyTorch was built for, as a noun."""
    if torch.version.cuda is not None:
        return f"a build for CUDA {torch.version.cuda}"
    if torch.version.hip is not None:
        return f"a build for ROCm {torch.version.hip}, on which this pipeline was never tried"
    if getattr(torch.version, "xpu", None) is not None:
        return "a build for Intel GPUs, on which this pipeline was never tried"
    return "a CPU-only build"


def needed_driver() -> str | None:
    """The oldest NVIDIA driver, its first number, for this PyTorch's CUDA; None for a CPU-only build."""
    if torch.version.cuda is None:
        return None
    return MINIMUM_DRIVER.get(torch.version.cuda.split(".")[0], max(MINIMUM_DRIVER.values(), key=int))


def accelerators() -> dict[str, str]:
    """The CUDA devices of this machine: name for params.yaml -> what it is."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return {}
    return {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}


def available() -> dict[str, str]:
    """The devices that `select` would give here: name for params.yaml -> what it is."""
    devices = {"cpu": f"{_name(torch.device('cpu'))}, {torch.backends.cpu.get_cpu_capability()}", **accelerators()}
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU; no float64, so numerics: native alone"
    return devices


def threads() -> int:
    """How many threads PyTorch computes with on the CPU, once prepared."""
    prepare(torch.device("cpu"))
    return torch.get_num_threads()


def driver_version() -> str | None:
    """The NVIDIA kernel driver's version, or None where there is none."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")


def driver_too_old() -> bool:
    """Whether there is an NVIDIA driver, of a known version, that this PyTorch's CUDA does not run on."""
    major, needed = (driver_version() or "").partition(".")[0], needed_driver()
    return bool(needed) and major.isdigit() and int(major) < int(needed or 0)


def prepare(device: torch.device, workers: int = 1) -> None:
    """Make PyTorch on `device` behave as the pipeline states: all arithmetic in the precision of its type, threads as the CPU limit.

    `workers` processes of this machine share its CPUs.

    Raises:
        UserError: an environment variable lowers the precision, which PyTorch cannot undo; names it.
    """
    try:
        precision.restore(device)
    except Imprecise as reason:
        raise UserError(str(reason)) from None
    by_torchrun = workers > 1 and "TORCHELASTIC_RUN_ID" in os.environ  # it sets 1 where nothing is set
    if by_torchrun or not re.fullmatch(OMP_THREADS, os.environ.get("OMP_NUM_THREADS", "")):
        torch.set_num_threads(max(1, cpu_limit() // workers) if workers > 1 else min(torch.get_num_threads(), cpu_limit()))
    memory.keep_freed()


def cpu_limit() -> int:
    """How many CPUs this process may use: the affinity mask and the container's quota (cgroup v2, then v1), at least 1."""
    limit = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            return max(1, min(limit, -(-int(quota) // int(period))))
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        if quota_us > 0:
            return max(1, min(limit, -(-quota_us // period_us)))
    return limit


def collectives(device: torch.device) -> dict[str, Any]:
    """How torch.distributed connects workers on such devices: arguments of `init_process_group`."""
    return {"backend": "nccl", "device_id": device} if device.type == "cuda" else {"backend": "gloo"}


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
        capability = torch.cuda.get_device_capability(device)
        facts |= {
            "cuda": torch.version.cuda,
            "driver": driver_version(),
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
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


def as_cuda_graph(step: Callable[[], None], device: torch.device, reset: Callable[[], None]) -> Callable[[], None]:
    """`step`, to be called again and again: on CUDA as one captured graph, which launches all its kernels at once.

    `step` must read and write the same tensors at each call and never look at their values; `reset` must bring what it
    changes to a beginning. On CUDA the step runs three times to warm up, as PyTorch's notes on CUDA graphs ask, then it is
    captured, which computes nothing. Elsewhere `step` is returned as it is.
    """
    if device.type != "cuda":
        return step
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                reset()
                step()
            reset()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    return graph.replay


@contextlib.contextmanager
def failures_explained(device: torch.device) -> Iterator[None]:
    """Turn a device's own failures (out of memory, GPU lost) into one line. What was saved before stays valid."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = (str(error).splitlines() or ["no memory"])[0]
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search("allocate memory|ALLOC_FAILED", said):
            raise UserError(
                f"device '{device}': out of memory ({said}); free some and run again, which resumes from the last checkpoint, "
                "or set a smaller batch_size in params.yaml"
            ) from error
        if isinstance(error, torch.AcceleratorError) or re.match("(CUDA|cuDNN|cuBLAS) ", said, re.IGNORECASE):
            raise UserError(
                f"device '{device}': failed ({said}); see nvidia-smi and dmesg; the next run resumes from the last checkpoint"
            ) from error
        raise
