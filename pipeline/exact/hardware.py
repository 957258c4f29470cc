"""The few questions that exact numerics ask of a device: which way to a sum is fast on it. No answer changes a bit."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import torch

CPU = "cpu"

CACHED = 2**19
"""Numbers of a tensor, of float32, that stay in the caches."""


def is_cpu(tensor: torch.Tensor) -> bool:
    """Whether a tensor lives in the CPU's memory."""
    return tensor.device.type == CPU


def can_look_at(tensor: torch.Tensor) -> bool:
    """Whether the values of a tensor can be looked at: it has memory, and its device computes at once, not into a CUDA graph."""
    return not tensor.is_meta and not (tensor.is_cuda and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64, which exact numerics need."""
    return device.type != "mps"


def is_from_intel() -> bool:
    """Whether Intel made this machine's CPU, for which MKL has kernels of its own."""
    return "GenuineIntel" in _processor()


def multiplies_bytes() -> bool:
    """Whether PyTorch multiplies matrices of bytes on this CPU at several times float64's rate.

    Seen on AMD's processors with AVX-512 VNNI; on an Intel Xeon with VNNI and AMX it was slower than float64 (docs/performance.md).
    """
    return "AuthenticAMD" in _processor() and "avx512_vnni" in _processor() and torch.backends.cpu.get_cpu_capability() == "AVX512"


FAST_FLOAT64 = {(8, 0), (9, 0), (10, 0)}
"""Compute capabilities of GPUs with half of float32's rate in float64: A100, H100, B200. The others from 7.5 up, whose tensor cores
multiply bytes, have 1/32 or 1/64 (NVIDIA's CUDA C++ programming guide, throughput of native arithmetic instructions)."""


def multiplies_by_digits(tensor: torch.Tensor) -> bool:
    """Whether products of a tensor's integers are taken by digits of a byte: on GPUs without fast float64."""
    if not (tensor.is_cuda and torch.cuda.is_available()):
        return False
    capability = torch.cuda.get_device_capability(tensor.device)
    return capability >= (7, 5) and capability not in FAST_FLOAT64


@functools.cache
def _processor() -> str:
    """Linux's description of the first CPU; empty elsewhere."""
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    return ""


def channels_at_once(x: torch.Tensor) -> list[slice]:
    """The channels of `x` [N, C, ...], so many at a time that several passes over them stay in a CPU's caches: all elsewhere."""
    some = max(1, CACHED * x.shape[1] // max(1, x.numel())) if is_cpu(x) else max(1, x.shape[1])
    return [slice(first, first + some) for first in range(0, max(1, x.shape[1]), some)]
