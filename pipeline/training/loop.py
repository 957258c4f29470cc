"""The loop of a training: step after step, the history, and a state that survives being killed."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

import numpy as np

from pipeline import device as devices
from pipeline.runs.outputs import Step
from pipeline.system.errors import Interrupted, UserError, printable
from pipeline.system.progress import progress
from pipeline.training import checkpoint as checkpoints
from pipeline.training import signals
from pipeline.training.checkpoint import Checkpoint, State
from pipeline.training.trainer import LoggedStep, Trainer


class Diverged(UserError):
    """A training came to a number that is not finite."""


@dataclass(frozen=True)
class Training:
    """What a finished training gives."""

    weights: dict[str, np.ndarray]
    """float32, by the names of the model's state_dict."""
    history: list[Step]
    seconds_per_epoch: float | None
    """None where nothing was left to train."""
    images_per_second: float | None


def train(trainer: Trainer, checkpoint: Checkpoint | None = None, checkpoint_seconds: float = checkpoints.SECONDS) -> Training:
    """Train to the end, from the state in `checkpoint` if there is one; save there every so many seconds, and on a signal.

    Of several workers the first has the checkpoint, and the others its state; a signal to any of them ends all after the same step.

    Raises:
        Diverged: a loss or gradient is not finite; names the step.
        Interrupted: a signal came; the state is saved first.
    """
    total, log_every, group = trainer.total_steps, trainer.settings.log_every, trainer.group
    history: list[Step] = []
    if checkpoint and (state := checkpoint.load()):
        history = state.history
        trainer.resume(state.step, state.tensors)
        print(printable(f"resumes at step {state.step} of {total} from {checkpoint.folder}"), file=sys.stderr, flush=True)
    trainer.follow_first()
    resumed_at, clock, saved = trainer.steps_completed, devices.Stopwatch(trainer.device), time.monotonic()
    with signals.noted() as stop, progress("train", total, "steps", resumed_at) as show, clock.running():
        while trainer.steps_completed < total:
            first = trainer.steps_completed
            until = min(total, first + log_every - first % log_every)
            while trainer.steps_completed < until and not group.stop_signal(stop()):
                trainer.step()
            signal_number = group.stop_signal(stop())
            _note(trainer.read_step_log(), first, trainer, history)
            show(trainer.steps_completed, f"epoch {history[-1].epoch} loss {history[-1].loss:.4f}" if history else "")
            if checkpoint and (signal_number or time.monotonic() - saved >= checkpoint_seconds):
                checkpoint.save(State(trainer.steps_completed, history, trainer.state()))
                saved = time.monotonic()
            if signal_number:
                said = "; the state is saved, the next run resumes" if checkpoint else ""
                raise Interrupted(f"at step {trainer.steps_completed} of {total}{said}", signal_number)
    epochs = (total - resumed_at) / trainer.steps_per_epoch
    return Training(
        trainer.named_weights(),
        history,
        round(clock.seconds / epochs, 4) if epochs else None,
        round(len(trainer.data) * epochs / clock.seconds, 1) if epochs else None,
    )


def _note(steps: list[LoggedStep], first: int, trainer: Trainer, history: list[Step]) -> None:
    """Add the logged ones of the steps from `first` (from 0) to the history; stop at one that is not finite."""
    for step, (loss, magnitude) in enumerate(steps, first + 1):
        if not (math.isfinite(loss) and math.isfinite(magnitude)):
            what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
            raise Diverged(f"training stopped at step {step}: {what}; set a smaller lr than {trainer.settings.lr} in params.yaml")
        if step % trainer.settings.log_every == 0 or step == trainer.total_steps:
            history.append(Step(step, (step - 1) // trainer.steps_per_epoch + 1, loss))
