"""What a stage was started with, so that it can tell, before its outputs are complete, whether that still stands.

DVC records a stage's dependencies as they are after its command. A stage whose inputs changed while it ran must therefore fail:
else DVC would hold the new inputs responsible for outputs that the old ones made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline import params, sources
from pipeline.params import Params
from pipeline.system.errors import UserError

CACHE = Path(".cache")
"""Undeclared and ignored: downloads, unfinished training, and the environments of finished training."""
LOCK = CACHE / "stage.lock"
"""Held by every stage, so that the parts of a run are never those of two, and no stage changes another's inputs."""

PARAMS: dict[str, tuple[str, ...]] = {
    "download": ("data",),
    "train": ("device", "workers", "seed", "numerics", "model", "train"),
    "evaluate": ("device", "seed", "numerics", "model", "train", "evaluate"),
}
"""Stage -> the sections of params.yaml that it reads; `dvc.yaml` names the same."""

Signature = tuple[int, int, int] | None


@dataclass
class Inputs:
    """The parameters, the digest of the sources and the input files of a stage, as they were when it was started."""

    stage: str
    params: Params
    code: str
    """The digest of the stage's sources."""
    files: dict[Path, Signature] = field(default_factory=dict)
    """The input files and what they were when they were first read."""

    def watch(self, *paths: Path) -> None:
        """Note what these input files are, before they are read."""
        self.files |= {path: _signature(path) for path in paths}

    def refuse_unseen(self) -> None:
        """Raise UserError where a module runs whose changes DVC does not see: after an edit of it nothing would be computed again."""
        if unseen := sources.unseen():
            raise UserError(f"{sources.PACKAGE / unseen[0]}: is imported, and DVC does not see its changes; move it into networks/, "
                            "with the network that needs it")  # fmt: skip

    def check_unchanged(self) -> None:
        """Raise UserError when params.yaml, a source or an input file is no longer what the stage was started with."""
        now = params.load()
        changed = [f"{params.PARAMS}: {name}" for name in PARAMS[self.stage] if getattr(now, name) != getattr(self.params, name)]
        if sources.digest(self.stage) != self.code:
            changed.append(f"a source of {self.stage}")
        changed += [str(path) for path, before in self.files.items() if _signature(path) != before]
        if changed:
            raise UserError(
                f"{', '.join(changed)} changed while {self.stage} ran, so its outputs would not be those of what is there now; "
                "put it back, or leave it as it is now, and run `dvc repro` again"
            )


def read(stage: str) -> Inputs:
    """Read what `stage` starts with. To be called before the stage's sources are imported, so that they are the ones noted.

    Raises:
        UserError: params.yaml is not as it must be, or DVC would note other sources than those that run.
    """
    code = sources.digest(stage)
    here = Path(sources.PACKAGE.name)
    if Path("dvc.yaml").is_file() and (here / "__main__.py").is_file() and not sources.are_those_in(here, stage):
        raise UserError(
            f"the sources of {stage} in {here}/, which DVC sees, are not those that run, in {sources.PACKAGE}: unset PYTHONSAFEPATH and "
            "start with python -m pipeline, or install this folder's (make setup)"
        )
    return Inputs(stage, params.load(), code)


def _signature(path: Path) -> Signature:
    """What changes when a file is replaced or rewritten: its inode, size and time; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
