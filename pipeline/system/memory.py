"""How this process keeps its memory."""

from __future__ import annotations

import contextlib
import ctypes


def keep_freed() -> None:
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
