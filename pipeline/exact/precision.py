"""What lowers the precision of a device's arithmetic: switched off where PyTorch can, refused where it cannot."""

from __future__ import annotations

import os

import torch

from pipeline.exact.errors import Imprecise

LOWER_PRECISION: dict[str, dict[str, set[str]]] = {
    "cpu": {name: {"strict"} for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")},
    "cuda": {name: {"0"} for name in ("NVIDIA_TF32_OVERRIDE", "CUBLAS_EMULATE_DOUBLE_PRECISION", "CUBLAS_EMULATE_SINGLE_PRECISION")},
}
"""The environment variables by which a device's libraries compute in less precision than asked, and their harmless values.

The libraries read them themselves, before or without PyTorch (oneDNN's developer guide, floating-point math mode; cuBLAS's
documentation, floating-point emulation).
"""


MAY_LOWER_PRECISION = (
    *(name for names in LOWER_PRECISION.values() for name in names), "CUBLAS_EMULATION_STRATEGY",
    "CUBLAS_FIXEDPOINT_EMULATION_MANTISSA_BIT_COUNT", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "LD_PRELOAD",
)  # fmt: skip
"""Environment variables to look at where a computation is less precise than it should be."""


def set_from_outside() -> list[str]:
    """Those of MAY_LOWER_PRECISION that are set, each as NAME=value."""
    return [f"{name}={os.environ[name]}" for name in MAY_LOWER_PRECISION if os.environ.get(name)]


def restore(device: torch.device) -> None:
    """Have all arithmetic on `device` done in the precision of its type.

    TF32, bfloat16 in float32's place, reduced-precision reductions and flushing of subnormals are switched off, also where they
    were switched on before. cuDNN does not search for algorithms.

    Raises:
        Imprecise: an environment variable lowers the precision, which PyTorch cannot undo; names it.
    """
    for name, harmless in LOWER_PRECISION.get(device.type, {}).items():
        value = os.environ.get(name, "")
        if value and value.lower() not in harmless:
            raise Imprecise(f"{name}={value!r:.80} makes device '{device}' compute in less precision, which PyTorch cannot undo; unset it")
    backends = torch.backends
    torch.set_float32_matmul_precision("highest")  # for CUDA's and oneDNN's products
    backends.cudnn.allow_tf32 = False
    for setting in (backends, backends.cudnn, backends.mkldnn, *(b for of in (backends.cudnn, backends.mkldnn) for b in (of.conv, of.rnn))):
        setting.fp32_precision = "ieee"
    backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    backends.cuda.matmul.allow_fp16_accumulation = False
    backends.cudnn.benchmark = False
    torch.set_flush_denormal(False)


def is_autocast() -> bool:
    """Whether torch.autocast lowers the precision of what is computed now."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
