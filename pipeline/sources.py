"""The code that matters: the sources that can change what a stage writes, and their digest.

`dvc.yaml` names the same folders and files as each stage's dependencies, the key of an unfinished training and a run's identity hold the
digest, and a test holds the lists to what the stages import. Of a folder all its modules count, so that a new one needs no line here.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from pathlib import Path

from pipeline.system.errors import UserError

PACKAGE = Path(__file__).parent
PROJECT = PACKAGE.resolve().parent

_EVERY_STAGE = ("data", "exact", "inputs.py", "params.py", "sources.py", "system")
_MODEL = ("device", "models", "numerics", "runs", "workers")
STAGES: dict[str, tuple[str, ...]] = {
    "download": _EVERY_STAGE,
    "train": (*_EVERY_STAGE, *_MODEL, "training"),
    "evaluate": (*_EVERY_STAGE, *_MODEL, "evaluation.py"),
}
"""Stage -> its folders and files of sources, relative to the package."""
OTHERS = {"__init__.py", "__main__.py", "cli", "comparison", "machine", "port", "weights"}
"""What changes nothing that a stage writes."""


def files(stage: str) -> list[str]:
    """A stage's sources, relative to the package, sorted; what an editor leaves beside them is none."""
    named = [PACKAGE / name for name in STAGES[stage]]
    found = [path for each in named for path in (each.glob("*.py") if each.is_dir() else (each,))]
    return sorted(path.relative_to(PACKAGE).as_posix() for path in found if not path.name.startswith("."))


def unseen() -> list[str]:
    """Modules of the package that were imported and are no stage's sources, such as one that a network in it was given."""
    known = OTHERS.union(*STAGES.values())
    loaded = [Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))]
    names = {path.relative_to(PACKAGE).as_posix() for path in loaded if path.is_relative_to(PACKAGE)}
    return sorted(name for name in names if name.partition("/")[0] not in known)


def are_those_in(package: Path, stage: str) -> bool:
    """Whether a stage's sources are byte for byte those of another copy of the package."""
    with contextlib.suppress(OSError):
        return all((package / name).read_bytes() == (PACKAGE / name).read_bytes() for name in files(stage))
    return False


def digest(stage: str) -> str:
    """SHA-256, in hex, over the names, lengths and bytes of a stage's sources as they are now.

    Raises:
        UserError: one cannot be read.
    """
    content = hashlib.sha256()
    for name in files(stage):
        try:
            source = (PACKAGE / name).read_bytes()
        except OSError as error:
            raise UserError(f"{PACKAGE / name}: cannot be read: {error.strerror}; put the source back and run again") from None
        content.update(f"{name} {len(source)}\n".encode() + source)
    return content.hexdigest()
