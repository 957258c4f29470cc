"""NVIDIA's GPUs: whether PyTorch, the driver and the GPU go together."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from pipeline.device.failures import failures_explained
from pipeline.system.errors import UserError, shown

MINIMUM_DRIVER = {"13": "580", "12": "525"}
"""CUDA's major version -> the oldest Linux driver that runs it (NVIDIA's CUDA compatibility guide, minor version compatibility)."""


def check(device: torch.device) -> None:
    """Whether this PyTorch sees the GPU.

    Raises:
        UserError: it does not; says what is missing and what to do.
    """
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


def check_architecture(device: torch.device) -> None:
    """Whether this PyTorch holds machine code for the GPU, and the GPU can be reached at all.

    Code runs on GPUs of its major version from its minor version on; code for the virtual machine (PTX) on every later GPU. What is
    made for one GPU alone (sm_90a) comes beside what is not (NVIDIA's CUDA programming guide, compute capabilities).

    Raises:
        UserError: it does not, or the GPU fails.
    """
    with failures_explained(device):
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
    built = [(kind, int(of[:-1]), int(of[-1])) for kind, of in (re.findall(r"^(sm|compute)_(\d+)$", arch)[0] for arch in _architectures())]
    if built and not any(
        (of_major, of_minor) <= (major, minor) if kind == "compute" else of_major == major and of_minor <= minor
        for kind, of_major, of_minor in built
    ):
        holds = ", ".join(f"{of_major}.{of_minor}" for _, of_major, of_minor in built)
        raise UserError(
            f"device '{device}': {name} has compute capability {major}.{minor}, and torch {torch.__version__} holds code for {holds} "
            "and later ones of each first number; install a PyTorch that was built for it, or set device: cpu in params.yaml"
        )


def _architectures() -> list[str]:
    """What this PyTorch holds code for, as the compiler names it."""
    return [arch for arch in torch.cuda.get_arch_list() if re.fullmatch(r"(sm|compute)_\d\d+", arch)]


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
