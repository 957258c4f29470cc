"""`python -m tests.unlike ...` is `python -m pipeline ...`, but workers 1 and 2 compute with instructions and threads of their own."""

from __future__ import annotations

import os
import sys

UNLIKE = {"1": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}, "2": {"OMP_NUM_THREADS": "3"}}
"""RANK -> the environment variables that make the difference; PyTorch reads them when it is loaded."""

if __name__ == "__main__":
    os.environ.pop("TORCHELASTIC_RUN_ID")  # so that the number of threads is taken for the user's own
    os.execvpe(sys.executable, [sys.executable, "-m", "pipeline", *sys.argv[1:]], os.environ | UNLIKE.get(os.environ["RANK"], {}))
