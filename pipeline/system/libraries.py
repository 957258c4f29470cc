"""The libraries below us: the environment variables that they read, where they are looked for, and what to say when one is not found."""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path
from traceback import walk_tb

from pipeline.system.errors import MAKE_AGAIN, shown

READ = re.compile(
    "(OMP|GOMP|KMP|MKL|ONEDNN|ATEN|TORCH|TORCHELASTIC|PYTORCH|CUBLAS|CUDNN|GLOO|NCCL|TP|DVC|PIPELINE)_|(LOCAL_)?(RANK|WORLD_SIZE)$|MASTER_"
)
"""The names of the variables that we, OpenMP, PyTorch, its libraries and DVC read."""
OF_PYTORCH = re.compile("(OMP|GOMP|KMP|MKL|ONEDNN|ATEN|TORCH|PYTORCH|CUDA|CUBLAS|CUDNN)_")
_VENV = Path(__file__).absolute().parents[2] / ".venv"


def settle_variables() -> None:
    """Prepare the environment variables, before any of these libraries is imported.

    One that is set to nothing is not set: PyTorch cannot be imported with `TORCH_LOGS=`, and OpenMP would take all CPUs
    with `OMP_NUM_THREADS=`. CUDA's are left out, for an empty CUDA_VISIBLE_DEVICES does mean something. The terminal's size is no
    size where nothing could be read in it, or no memory holds a line.
    """
    for name in ("COLUMNS", "LINES"):
        if not re.fullmatch("[2-9][0-9]|[1-9][0-9]{2,3}", os.environ.get(name, "80")):
            del os.environ[name]
    for name in [name for name, value in os.environ.items() if READ.match(name) and not value.strip()]:
        del os.environ[name]
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what PyTorch's sockets warn of, we say
    # OpenMP's threads wait for each other by spinning, by default for milliseconds; on a machine that has other work, or fewer
    # CPUs than threads, that made training ten times slower. To wake a thread takes 50 to 90 microseconds, and a step pauses for up
    # to 300: this count is 300 (docs/performance.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def python() -> list[str]:
    """The words that start this Python again. It looks into the current folder for modules only if this process does."""
    return [sys.executable, *([] if os.path.realpath(os.curdir) in map(os.path.realpath, sys.path) else ["-P"])]


@functools.cache
def pytorch_fault() -> str | None:
    """Why PyTorch cannot be imported, with the remedy, or None; tried once, for a second try in one process fails of something else."""
    try:
        import torch  # noqa: F401
    except (Exception, SystemExit) as error:
        return failed_import(error) or f"torch cannot be imported ({type(error).__name__}: {error}); {MAKE_AGAIN}"
    return None


def failed_import(error: BaseException) -> str | None:
    """One line with the remedy if `error` arose in the import of a library, or of a file that has a library's name; else None."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    bodies = [frame.f_globals for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]  # of modules
    named = [vars(sys.modules[name]) for name in re.findall(r"'(\w+)[.']", said) if sys.modules.get(name)]
    if file := next(filter(None, (_in_the_way(str(module.get("__file__"))) for module in named + bodies)), None):
        return f"{file} stands in the way of the module of that name ({said}); rename it, or take its folder out of PYTHONPATH"
    if isinstance(error, ModuleNotFoundError) and os.path.realpath(sys.prefix) != os.path.realpath(_VENV):
        return f"{error} for {sys.executable}; use the project's own: `. .venv/bin/activate`, or make repro (make setup makes it)"
    names = [module["__name__"].partition(".")[0] for module in bodies]
    if isinstance(error, ImportError):  # which may be raised in no file, but by a compiled module
        names.append((error.name or "a library").partition(".")[0])
    library = next((name for name in names if name not in ("pipeline", "__main__", "runpy")), None)
    if library is None:
        return None
    own = ("GOMP_SPINCOUNT", "TORCH_CPP_LOG_LEVEL")  # which we set
    variables = [f"{name}={shown(value)}" for name, value in sorted(os.environ.items()) if OF_PYTORCH.match(name) and name not in own]
    remedy = f"try it without {' '.join(variables)}, or " if library == "torch" and variables else ""
    return f"{library} cannot be imported ({said}); {remedy}{MAKE_AGAIN}"


def _in_the_way(file: str) -> str | None:
    """`file` where it is a user's that was taken for a module of Python's or of an installed package; else None."""
    from importlib.machinery import PathFinder

    own = {os.path.realpath(path) for path in (os.curdir, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))}
    folder, name = os.path.split(file.removesuffix("/__init__.py").removesuffix(".py"))
    if os.path.realpath(folder) not in own or name == "pipeline":
        return None
    elsewhere = [path for path in sys.path if os.path.realpath(path) not in own]
    return os.path.relpath(file) if name in sys.stdlib_module_names or PathFinder.find_spec(name, elsewhere) else None
