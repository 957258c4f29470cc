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
