"""The libraries below us: the environment variables that they read, and what to say when one cannot be imported."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
from importlib.machinery import ModuleSpec
from traceback import walk_tb

from pipeline.errors import UserError, shown

READ = re.compile("(OMP|GOMP|KMP|MKL|ONEDNN|ATEN|TORCH|PYTORCH|CUBLAS|CUDNN|DVC|PIPELINE)_")
"""How the names of the variables begin that we, OpenMP, PyTorch, its libraries and DVC read."""
OF_PYTORCH = re.compile("(OMP|GOMP|KMP|MKL|ONEDNN|ATEN|TORCH|PYTORCH|CUDA|CUBLAS|CUDNN)_")
DEADLY = ("GOMP_CPU_AFFINITY", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables that PyTorch 2.14 with GNU's OpenMP cannot refuse: of a wrong value `import torch` never ends, or the process is aborted."""
IMPORT_SECONDS = 300
"""The longest that `import torch` may take, from a slow disk."""
MAKE_AGAIN = "make the environment again: make setup, or build the image"


def settle_variables() -> None:
    """Prepare the environment variables, before any of these libraries is imported.

    One that is set to nothing is not set: PyTorch cannot be imported with `TORCH_LOGS=`, and OpenMP would take all CPUs
    with `OMP_NUM_THREADS=`. CUDA's are left out, for an empty CUDA_VISIBLE_DEVICES does mean something.
    """
    for name in [name for name, value in os.environ.items() if READ.match(name) and not value.strip()]:
        del os.environ[name]
    # OpenMP's threads wait for each other by spinning, by default for milliseconds; on a machine that has other work, or fewer
    # CPUs than threads, that made training ten times slower. To wake a thread takes 50 to 90 microseconds, and a step pauses for up
    # to 300: this count is 300 (docs/performance.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if any(name in os.environ for name in DEADLY):
        sys.meta_path.insert(0, _BeforePyTorch())


class _BeforePyTorch:
    """An import hook that finds nothing, and refuses PyTorch where it is known not to survive its import."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "torch" and (fault := pytorch_fault()):
            raise UserError(fault)
        return None


@functools.cache
def pytorch_fault() -> str | None:
    """Why PyTorch cannot be imported, with the remedy, or None where it can: tried in a process of its own, that may die of it."""
    if "torch" in sys.modules:
        return None
    say = "try: import torch\nexcept BaseException as e: print(f'{type(e).__name__}: {e}'); raise SystemExit(1)"
    try:
        done = subprocess.run([sys.executable, "-c", say], capture_output=True, errors="replace", timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return _unimportable("torch", f"not done after {IMPORT_SECONDS} seconds")
    except OSError:
        return None  # no process can be started: then it shows when it is imported here
    if done.returncode < 0:
        return _unimportable("torch", f"the process ended of {signal.Signals(-done.returncode).name}")
    return _unimportable("torch", done.stdout) if done.returncode else None


def failed_import(error: BaseException) -> str | None:
    """One line with the remedy if `error` arose in the import of a library; else None."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error} for {sys.executable}; use the project's own: `. .venv/bin/activate`, or make repro (make setup makes it)"
    bodies = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
    libraries = [name.partition(".")[0] for name in bodies if name.partition(".")[0] not in ("pipeline", "__main__", "runpy")]
    if not libraries and isinstance(error, ImportError):  # raised in no file: of a compiled module
        return _unimportable(error.name.partition(".")[0], str(error)) if error.name else f"{' '.join(str(error).split())}; {MAKE_AGAIN}"
    return _unimportable(libraries[0], f"{type(error).__name__}: {error}") if libraries else None


def _unimportable(library: str, reason: str) -> str:
    """The line for a library that is there and fails; variables that are set are the likeliest cause, so it names them."""
    variables = [
        f"{name}={shown(value)}" for name, value in sorted(os.environ.items()) if OF_PYTORCH.match(name) and name != "GOMP_SPINCOUNT"
    ]
    remedy = f"try it without {' '.join(variables)}, or " if library == "torch" and variables else ""
    return f"{library} cannot be imported ({' '.join(reason.split())[:200]}); {remedy}{MAKE_AGAIN}"
