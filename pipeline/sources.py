"""The code that matters: the sources that can change what a stage writes, and their digest.

`dvc.yaml` names the same files as each stage's dependencies, the key of an unfinished training and a run's identity hold the
digest, and a test holds the lists to what the stages import. A file is named, never a folder, so what an editor leaves beside
the sources is neither a source nor an error.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.errors import UserError

PACKAGE = Path(__file__).parent

_EVERY_STAGE = ("files.py", "inputs.py", "params.py", "paths.py", "schema.py", "sources.py", "tensors.py")
_EXACT = tuple(
    f"exact/{name}.py"
    for name in (
        "__init__",
        "arguments",
        "attention",
        "augmentation",
        "convolutions",
        "digits",
        "elementwise",
        "engine",
        "errors",
        "grid",
        "group",
        "hardware",
        "initial_values",
        "later",
        "loss",
        "masks",
        "normalisation",
        "optimizers",
        "pooling",
        "precision",
        "products",
        "reductions",
        "registry",
        "schedules",
        "self_test",
        "shapes",
        "tape",
        "tiles",
        "transcendental",
        "trees",
    )
)
_MODEL = (
    "data/batches.py",
    "data/dataset.py",
    "device/__init__.py",
    "device/cuda.py",
    "device/description.py",
    "device/failures.py",
    "device/graph.py",
    "exact/draws.py",
    "memory.py",
    "model.py",
    *_EXACT,
    "numerics/__init__.py",
    "numerics/exact.py",
    "numerics/native.py",
    "runs/outputs.py",
    "runs/provenance.py",
    "workers/__init__.py",
)

STAGES: dict[str, tuple[str, ...]] = {
    "download": (
        *_EVERY_STAGE,
        "data/damage.py",
        "data/dataset.py",
        "data/download.py",
        "data/folder.py",
        "data/pictures.py",
        "data/sets.py",
        "data/synthetic.py",
        "data/transfer.py",
        "exact/__init__.py",
        "exact/draws.py",
    ),
    "train": (
        *_EVERY_STAGE,
        *_MODEL,
        "training/checkpoint.py",
        "training/loop.py",
        "training/signals.py",
        "training/stage.py",
        "training/trainer.py",
        "training/updates.py",
        "workers/board.py",
        "workers/launch.py",
        "workers/meeting.py",
        "workers/place.py",
        "workers/processes.py",
    ),
    "evaluate": (*_EVERY_STAGE, *_MODEL, "evaluation.py"),
}
"""Stage -> its sources, relative to the package."""


def digest(stage: str) -> str:
    """SHA-256, in hex, over the names, lengths and bytes of a stage's sources as they are now.

    Raises:
        UserError: one cannot be read.
    """
    content = hashlib.sha256()
    for name in sorted(STAGES[stage]):
        try:
            source = (PACKAGE / name).read_bytes()
        except OSError as error:
            raise UserError(f"{PACKAGE / name}: cannot be read: {error.strerror}; put the source back and run again") from None
        content.update(f"{name} {len(source)}\n".encode() + source)
    return content.hexdigest()
