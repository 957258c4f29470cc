"""The only package that knows devices: select, prepare, describe, capture, and what their failures are."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path
from typing import Any

import torch

from pipeline.device import cuda
from pipeline.device.cuda import accelerators, build, driver_too_old, driver_version, needed_driver
from pipeline.device.description import Stopwatch, available, describe, peak_memory_bytes, synchronise
from pipeline.device.failures import failures_explained
from pipeline.device.graph import as_cuda_graph
from pipeline.exact import precision
from pipeline.exact.errors import Imprecise
from pipeline.params import DEVICE
from pipeline.system.errors import UserError, shown

__all__ = [
    "CPU", "Stopwatch", "accelerators", "as_cuda_graph", "available", "build", "collectives", "cpu_limit", "describe", "driver_too_old",
    "driver_version", "failures_explained", "generator_states", "needed_driver", "peak_memory_bytes", "prepare", "select", "synchronise",
    "threads",
]  # fmt: skip

CPU = "cpu"
"""The device that is always there."""
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
        cuda.check(device)
        if workers > 1:
            if (count := torch.cuda.device_count()) < workers:
                raise UserError(f"{workers} workers on device 'cuda' need a GPU each, and this machine shows {count}; set workers: {count}")
            device = torch.device(name, worker)
        cuda.check_architecture(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device '{name}': this machine or this PyTorch has no MPS; set device: cpu in params.yaml")
    return device


def threads() -> int:
    """How many threads PyTorch computes with on the CPU, once prepared."""
    prepare(torch.device("cpu"))
    return torch.get_num_threads()


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
    torch.backends.cudnn.deterministic = True  # native numerics promise equal runs on one machine
    _keep_freed()


def _keep_freed() -> None:
    """Tell glibc to keep what a step frees for the next one: else its larger tensors are given back and cleared again each time.

    Measured: hundreds of page faults a step become none. Other C libraries have no `mallopt` or ignore it.
    """
    trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
    gibibyte, most_before_2_35 = 2**30, 2**25
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(mmap_threshold, gibibyte):
            mallopt(mmap_threshold, most_before_2_35)
        mallopt(trim_threshold, gibibyte)


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


def generator_states() -> list[torch.Tensor]:
    """The states of PyTorch's generators of random numbers, of all devices in use."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def collectives(device: torch.device) -> dict[str, Any]:
    """How torch.distributed connects workers on such devices: arguments of `init_process_group`.

    Between GPUs a collective waits for its end and raises where another worker is lost, as gloo does: NCCL's own watchdog would end the
    process, and nobody could say whose fault it was.
    """
    if device.type != "cuda":
        return {"backend": "gloo"}
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    return {"backend": "nccl", "device_id": device}
