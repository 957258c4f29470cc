"""What a device's own failures are for a user: one line each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from pipeline.system.errors import UserError


@contextlib.contextmanager
def failures_explained(device: torch.device) -> Iterator[None]:
    """Turn a device's own failures (out of memory, GPU lost) into one line. What was saved before stays valid."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise UserError(
                f"device '{device}': out of memory ({_said(error)}); free some and run again, which resumes from the last checkpoint, "
                "or set a smaller batch_size in params.yaml"
            ) from error
        if is_failure(error):
            raise UserError(
                f"device '{device}': failed ({_said(error)}); see nvidia-smi and dmesg; the next run resumes from the last checkpoint"
            ) from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, which PyTorch says of a CPU's in a RuntimeError."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and re.search("allocate memory|ALLOC_FAILED", _said(error)) is not None)


def is_failure(error: BaseException) -> bool:
    """Whether an error says that a GPU or one of its libraries failed."""
    known = isinstance(error, torch.AcceleratorError)
    return known or (isinstance(error, RuntimeError) and re.match("(CUDA|cuDNN|cuBLAS) ", _said(error), re.IGNORECASE) is not None)


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or ["no memory"])[0]
