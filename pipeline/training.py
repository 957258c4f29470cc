"""The `train` stage: the guide's loop, with the data set on the device and a state that survives being killed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from msgspec import structs
from torch import Tensor, nn

from pipeline import device as devices
from pipeline import files, run
from pipeline.draws import permutation
from pipeline.errors import Interrupted, UserError
from pipeline.model import SimpleCNN, initialise
from pipeline.numerics import select
from pipeline.params import Params, Train
from pipeline.progress import progress

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset
    from pipeline.numerics import Numerics

UNFINISHED = run.CACHE / "training"
SAVE_SECONDS = 15.0
"""Between two checkpoints."""


def stage(params: Params) -> None:
    """Train on data/, write outputs/model.safetensors and outputs/history.csv; resume an unfinished training of the same."""
    from pipeline.data import dataset

    with files.only_one(run.LOCK, "train or evaluate"):
        data = dataset.load()
        device = devices.select(params.device)
        devices.prepare(device)
        numerics = select(params.numerics, device)
        key = {
            "seed": params.seed, "numerics": numerics.version, "train": structs.asdict(params.train), "data": data.digest,
            "code": run.code_digest(), "machine": devices.describe(device) if numerics.version == "native" else None,
        }  # fmt: skip
        checkpoint = Checkpoint(UNFINISHED, key)
        with devices.failures_explained(device):
            trained = train(data, device, params.seed, numerics, params.train, checkpoint)
        run.write_model(run.OUTPUTS, trained.weights)
        run.write_history(run.OUTPUTS, trained.history)
        made = run.training_of(params, numerics.version, {"name": data.name, "digest": data.digest}, run.fingerprint(trained.weights))
        run.note_training(made, trained.environment)
        checkpoint.remove()
    print(f"{run.OUTPUTS / run.MODEL}: {made.fingerprint}")
    print(f"{len(trained.history)} logged steps, last loss {trained.history[-1].loss:.4f}, on {params.device}")


@dataclass(frozen=True)
class Trained:
    """What training gives."""

    weights: dict[str, np.ndarray]
    """float32, by the names of the model's state_dict."""
    history: list[run.Step]
    environment: dict[str, Any]
    """Where and how fast: see run.ENVIRONMENT."""


class Trainer:
    """A model, its momentum and the data on one device, and the step that changes them.

    All state that a step reads or writes stays in the same tensors, and a step never looks at a value: so on CUDA it is
    captured once as a graph and replayed.
    """

    def __init__(self, data: Dataset, device: torch.device, seed: int, numerics: Numerics, settings: Train) -> None:
        self.device, self.seed, self.numerics, self.settings = device, seed, numerics, settings
        # 1. the device is selected; 2. the model moves to it
        self.model: nn.Module = SimpleCNN()
        initialise(self.model, seed)
        self.parameters = dict(self.model.named_parameters())
        self.initial = torch.cat([p.detach().flatten() for p in self.parameters.values()]).to(device)  # float32 [P]
        self.weights = self.initial.clone()
        self.velocity = torch.zeros_like(self.weights)  # float32 [P]: SGD's momentum
        for name, part in self._views(self.weights).items():
            self.parameters[name].data = part
        # 3. the data moves to it, whole
        self.images = torch.from_numpy(data.train_images).to(device)  # uint8 [N, 3, 32, 32]
        self.labels = torch.from_numpy(data.train_labels).to(device).long()  # int64 [N]
        self.order = torch.zeros(len(self.labels), dtype=torch.int64, device=device)  # the epoch's order
        self.lr = torch.tensor(settings.lr, device=device)  # float32
        self.momentum = torch.tensor(settings.momentum, device=device)  # float32
        # the position in the epoch, and what the steps since the last look have given
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        self.seen = torch.zeros(settings.log_every, 2, device=device)  # loss and the velocity's largest magnitude
        self.offsets = torch.arange(settings.batch_size, device=device)
        self._full_step: Callable[[], None] | None = None
        if len(self.labels) >= settings.batch_size:
            self._full_step = devices.captured(lambda: self._step(self.offsets), device, self.start)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        parts = torch.split(flat, [p.numel() for p in self.parameters.values()])
        return {name: part.view(p.shape) for (name, p), part in zip(self.parameters.items(), parts, strict=True)}

    def start(self) -> None:
        """Bring weights, velocity and position to the beginning."""
        self.weights.copy_(self.initial)
        self.velocity.zero_()
        self.position.zero_()
        self.slot.zero_()

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the last may be smaller."""
        return math.ceil(len(self.labels) / self.settings.batch_size)

    def begin_epoch(self, epoch: int, step: int = 0) -> None:
        """Draw the order of `epoch` (from 0) and go to its batch `step`."""
        self.order.copy_(torch.from_numpy(permutation(f"order/{self.seed}/{epoch}", len(self.labels))))
        self.position.fill_(step * self.settings.batch_size)

    def step(self, in_epoch: int) -> None:
        """Train on batch `in_epoch` of the epoch, the next in order."""
        left = len(self.labels) - in_epoch * self.settings.batch_size
        if left < self.settings.batch_size or self._full_step is None:
            self._step(self.offsets[:left])
        else:
            self._full_step()

    def _step(self, offsets: Tensor) -> None:
        rows = self.order.index_select(0, self.position + offsets)  # int64 [B]
        images, labels = self.images.index_select(0, rows), self.labels.index_select(0, rows)
        inputs = self.numerics.images(images)
        # 4. the training loop: forward, backward, update
        with self.numerics.computing():
            loss = F.cross_entropy(self.model(inputs), labels)
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        gradient = torch.cat([g.flatten() for g in gradients])  # float32 [P]
        self.numerics.update(self.weights, self.velocity, gradient, self.lr, self.momentum)
        low, high = self.velocity.aminmax()
        self.seen.index_copy_(0, self.slot, torch.stack((loss.detach(), torch.maximum(-low, high))).unsqueeze(0))
        self.position += len(offsets)
        self.slot += 1

    def look(self) -> list[list[float]]:
        """Wait for the device; loss and largest velocity of each step since the last look."""
        seen: list[list[float]] = self.seen[: int(self.slot)].tolist()
        self.slot.zero_()
        return seen

    def state(self) -> dict[str, np.ndarray]:
        """The weights and the velocity, float32, for a checkpoint."""
        return {"weights": self.weights.cpu().numpy(), "velocity": self.velocity.cpu().numpy()}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Take up a state that `state` gave, on this device or another."""
        self.weights.copy_(torch.from_numpy(state["weights"]))
        self.velocity.copy_(torch.from_numpy(state["velocity"]))

    def named_weights(self) -> dict[str, np.ndarray]:
        """The weights by name, float32."""
        return {name: part.cpu().numpy().copy() for name, part in self._views(self.weights).items()}


def train(
    data: Dataset, device: torch.device, seed: int, numerics: Numerics, settings: Train, checkpoint: Checkpoint | None = None
) -> Trained:
    """Train SimpleCNN; with a checkpoint, from where an unfinished training of the same stopped.

    Raises:
        UserError: the loss or a gradient is not finite; names the step.
        Interrupted: SIGINT or SIGTERM arrived; the state is saved.
    """
    trainer = Trainer(data, device, seed, numerics, settings)
    steps = trainer.steps_per_epoch
    total = steps * settings.epochs
    done, history = 0, list[run.Step]()
    if checkpoint and (found := checkpoint.load()):
        done, history = found.step, found.history
        trainer.load(found.state)
        print(f"resumes at step {done} of {total} from {checkpoint.folder}", file=sys.stderr, flush=True)
    clock = devices.Stopwatch(device)
    trained_here = total - done
    saved = time.monotonic()
    with _signals() as stop, progress("train", total, "steps", done) as show:
        while done < total:
            epoch, in_epoch = divmod(done, steps)
            trainer.begin_epoch(epoch, in_epoch)
            with clock.running():
                while in_epoch < steps:
                    until = min(steps, in_epoch + settings.log_every - done % settings.log_every)
                    first = done
                    while in_epoch < until and not stop():
                        trainer.step(in_epoch)
                        in_epoch, done = in_epoch + 1, done + 1
                    signal_number = stop()
                    _note(trainer.look(), first, epoch, total, settings, history)
                    show(done, f"epoch {epoch + 1} loss {history[-1].loss:.4f}" if history else "")
                    if checkpoint and (signal_number or time.monotonic() - saved >= SAVE_SECONDS):
                        checkpoint.save(Progress(done, history, trainer.state()))
                        saved = time.monotonic()
                    if signal_number:
                        raise Interrupted(f"at step {done} of {total}; the state is saved, the next run resumes", signal_number)
    images = len(trainer.labels) * trained_here / steps
    environment = {
        **devices.describe(device),
        "seconds_per_epoch": round(clock.seconds * steps / trained_here, 4) if trained_here else None,
        "images_per_second": round(images / clock.seconds, 1) if trained_here else None,
        "peak_memory_bytes": devices.peak_memory_bytes(device),
    }
    return Trained(trainer.named_weights(), history, environment)


def _note(seen: list[list[float]], first: int, epoch: int, total: int, settings: Train, history: list[run.Step]) -> None:
    """Add the logged ones of the steps from `first` (from 0) to the history; stop at one that is not finite."""
    for step, (loss, velocity) in enumerate(seen, first + 1):
        if not (math.isfinite(loss) and math.isfinite(velocity)):
            what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
            raise UserError(f"training stopped at step {step}: {what}; set a smaller lr than {settings.lr} in params.yaml")
        if step % settings.log_every == 0 or step == total:
            history.append(run.Step(step, epoch + 1, loss))


# --- the unfinished training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """An unfinished training after `step` steps."""

    step: int
    history: list[run.Step]
    state: dict[str, np.ndarray]


class Checkpoint:
    """Where an unfinished training is saved: two files in turn, so that the one not being written is always whole.

    `key` must name all that the bits depend on; a state with another key is not used.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder, self.key = folder, json.dumps(key, sort_keys=True)
        self.older, self.newer = folder / "one.safetensors", folder / "two.safetensors"

    def save(self, progress: Progress) -> None:
        """Save durably in the place of the older state; the newer stays."""
        import safetensors.numpy

        rows = np.array([(s.step, s.epoch, s.loss) for s in progress.history], np.float64).reshape(-1, 3)
        tensors = {**progress.state, "history": rows, "step": np.array(progress.step)}
        files.write_bytes(self.older, safetensors.numpy.save(tensors, {"key": self.key, "sha256": _sha256(self.key, tensors)}))
        self.older, self.newer = self.newer, self.older

    def load(self) -> Progress | None:
        """The newest state that is whole and of the same key, or None; says what it does not use, and why."""
        found, refused = {}, False
        for path in (self.older, self.newer):
            try:
                found[path] = self._read(path)
            except FileNotFoundError:
                continue
            except UserError as reason:
                refused = True
                print(f"{path}: {reason}: not used", file=sys.stderr, flush=True)
        if not found:
            if refused:
                print(f"no state in {self.folder} to resume: training starts again", file=sys.stderr, flush=True)
            return None
        if max(found, key=lambda path: found[path].step) == self.older:
            self.older, self.newer = self.newer, self.older
        return found[self.newer]

    def _read(self, path: Path) -> Progress:
        """Raises UserError with the reason not to use it, or FileNotFoundError."""
        import safetensors

        try:
            with safetensors.safe_open(files.plain(path), framework="numpy") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if metadata["sha256"] != _sha256(metadata["key"], tensors):
                raise ValueError("its checksum is another")
            theirs, ours = json.loads(metadata["key"]), json.loads(self.key)
            if other := [name for name in ours if theirs.get(name) != ours[name]]:
                raise UserError(f"of another training ({', '.join(other)})")
            history = [run.Step(int(step), int(epoch), float(loss)) for step, epoch, loss in tensors.pop("history")]
            return Progress(int(tensors.pop("step")), history, tensors)
        except FileNotFoundError:
            raise
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"corrupt ({error})") from None

    def remove(self) -> None:
        """The training is finished: its states go."""
        with files.explained(self.folder):
            self.older.unlink(missing_ok=True)
            self.newer.unlink(missing_ok=True)


def _sha256(key: str, tensors: dict[str, np.ndarray]) -> str:
    """Over every bit, zeros' signs too."""
    digest = hashlib.sha256(key.encode())
    for name in sorted(tensors):
        digest.update(f"\n{name} {tensors[name].dtype} {tensors[name].shape}\n".encode() + tensors[name].tobytes())
    return digest.hexdigest()


@contextmanager
def _signals() -> Iterator[Callable[[], int | None]]:
    """Note SIGINT and SIGTERM instead of dying of them; the yielded function gives the first, and the loop asks after each step.

    Once that has ended the training, they go on being noted: another signal must not take the place of what the first one says.
    DVC dies of a SIGTERM of its own without a word to its stage: a stage whose parent has changed counts as terminated.
    """
    received: list[int] = []
    parent = os.getppid() if "DVC_STAGE" in os.environ else None

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    def stop() -> int | None:
        if parent is not None and os.getppid() != parent:
            received.append(signal.SIGTERM)
        return received[0] if received else None

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except Interrupted:
        before.clear()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
