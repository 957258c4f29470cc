"""The state of an unfinished training, on disk: always one whole state, whatever happens."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.inputs import CACHE
from pipeline.runs.outputs import Step
from pipeline.system import files, tensors
from pipeline.system.errors import UserError, printable
from pipeline.system.tensors import Tensors

UNFINISHED = CACHE / "training"
SECONDS = 15.0
"""Between two states, by default."""


@dataclass(frozen=True)
class State:
    """An unfinished training after `step` steps."""

    step: int
    history: list[Step]
    tensors: dict[str, np.ndarray]
    """The trainer's own state."""


class Checkpoint:
    """Where an unfinished training is saved: two files in turn, so that the one not being written is always whole.

    `key` must name all that the bits depend on; a state with another key is not used. With a `secret` neither is one that was written
    by somebody who does not know it.
    """

    def __init__(self, folder: Path, key: dict[str, Any], secret: bytes = b"") -> None:
        self.folder, self.key, self._secret = folder, json.dumps(key, sort_keys=True), secret
        self.older, self.newer = folder / "one.safetensors", folder / "two.safetensors"

    def save(self, state: State) -> None:
        """Save durably in the place of the older state; the newer stays."""
        rows = np.array([(s.step, s.epoch, s.loss) for s in state.history], np.float64).reshape(-1, 3)
        content = {**state.tensors, "history": rows, "step": np.array(state.step)}
        tensors.write(self.older, content, ("checkpoint", json.dumps({"key": self.key, "sha256": self._sum(self.key, content)})))
        self.older, self.newer = self.newer, self.older

    def load(self) -> State | None:
        """The newest state that is whole and of the same key, or None; says what it does not use, and why."""
        states, refused = {}, False
        for path in (self.older, self.newer):
            try:
                states[path] = self._read(path)
            except FileNotFoundError:
                continue
            except UserError as reason:
                refused = True
                print(printable(f"{path}: {reason}: not used"), file=sys.stderr, flush=True)
        if not states:
            if refused:
                print(printable(f"no state in {self.folder} to resume: training starts again"), file=sys.stderr, flush=True)
            return None
        if max(states, key=lambda path: states[path].step) == self.older:
            self.older, self.newer = self.newer, self.older
        return states[self.newer]

    def _read(self, path: Path) -> State:
        """Raises UserError with the reason not to use it, or FileNotFoundError."""
        try:
            content, metadata = tensors.read(path)
            recorded = json.loads(metadata["checkpoint"])
            if recorded["sha256"] != self._sum(recorded["key"], content):
                raise ValueError("its checksum is another")
            if recorded["key"] != self.key:  # as text: 1, 1.0 and true are three values
                theirs, ours = ({name: json.dumps(value) for name, value in json.loads(key).items()} for key in (recorded["key"], self.key))
                raise UserError(f"of another training ({', '.join(n for n in {**theirs, **ours} if theirs.get(n) != ours.get(n))})")
            history = [Step(int(step), int(epoch), float(loss)) for step, epoch, loss in content.pop("history")]
            return State(int(content.pop("step")), history, content)
        except (tensors.Damaged, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"corrupt ({error})") from None

    def _sum(self, key: str, content: Tensors) -> str:
        """SHA-256 over every bit, zeros' signs too; with a secret, its HMAC."""
        digest = hmac.new(self._secret, key.encode(), "sha256") if self._secret else hashlib.sha256(key.encode())
        for name in sorted(content):
            digest.update(f"\n{name} {content[name].dtype} {content[name].shape}\n".encode() + content[name].tobytes())
        return digest.hexdigest()

    def remove(self) -> None:
        """The training is finished: its states go."""
        with files.explained(self.folder):
            self.older.unlink(missing_ok=True)
            self.newer.unlink(missing_ok=True)
