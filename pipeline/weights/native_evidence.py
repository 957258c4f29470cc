"""What a native run says of itself, against what its training and its own weights give here: bounds where no bits can be compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.comparison import bits
from pipeline.data.dataset import Dataset
from pipeline.evaluation import Evaluation, may_change
from pipeline.runs import environments
from pipeline.runs.kept import Run
from pipeline.runs.outputs import Step

SCORES = 1e-3
"""How far apart native numerics of two machines may score one image with the same weights: in probability, and in a loss relative to
1 + the loss. Float32 sums in another order differ by a thousandth of that; a GPU's reduced precision, which is off here, by about that."""
EARLY_STEPS, EARLY_LOSS, LATER_LOSS = 100, 0.01, 0.5
"""How far apart the logged losses of two native trainings of the same may be: relative in the first steps, then times 0.1 + the loss.
Of the runs in results/ they were 3e-5 in the first 80 steps, and at most 0.25 in 7,820 steps (native with 1 and 2 threads, and exact)."""


def history_apart(claimed: list[Step], computed: list[Step]) -> str | None:
    """Where a history is none that this training can give, on whatever machine; None where it may be."""
    for number, (theirs, ours) in enumerate(itertools.zip_longest(claimed, computed), 1):
        if theirs is None or ours is None or theirs[:2] != ours[:2]:
            return bits.first_step_apart(claimed[number - 1 :], computed[number - 1 :])
        larger = max(theirs.loss, ours.loss)
        bound = EARLY_LOSS * larger if ours.step <= EARLY_STEPS else LATER_LOSS * (0.1 + larger)
        if not (theirs.loss >= 0 and abs(theirs.loss - ours.loss) <= bound):
            return f"the loss of step {ours.step} is {theirs.loss:.6g} in the run, here it is {ours.loss:.6g}: more than {bound:.2g} apart"
    return None


def evaluation_apart(run: Run, again: Run, data: Dataset, evaluated: Callable[[Dataset], Evaluation]) -> str | None:
    """What the run's own weights do not give here of its predictions and its loss, within SCORES; None where they give all.

    `evaluated` evaluates the run's weights on a data set, as `again` was evaluated on `data`.
    """
    scores = 0.0 if run.environment.evaluate and _same_machine(run, again) else SCORES
    own = evaluated(data)
    changed = sum(theirs.predicted != ours.predicted for theirs, ours in zip(run.predictions, own.predictions, strict=True))
    too_many = None
    if changed > (most := may_change(len(own.predictions))):
        too_many = f"{changed} of {len(own.predictions)} images are predicted otherwise here by the run's weights, and {most} may be"
    for theirs, ours in zip(run.predictions, own.predictions, strict=True):
        apart = abs(float(np.float32(theirs.confidence)) - float(np.float32(ours.confidence)))
        if theirs.predicted != ours.predicted and apart <= scores > 0:  # two classes may be nearly as likely: how likely is theirs here?
            if too_many:  # each would be evaluated again
                return too_many
            label = np.array([data.classes.index(theirs.predicted)], data.test_labels.dtype)
            one = replace(data, test_images=data.test_images[ours.index : ours.index + 1], test_labels=label)
            apart = abs(theirs.confidence - math.exp(-evaluated(one).metrics.loss))
        elif theirs.predicted != ours.predicted:
            apart = math.inf
        if not apart <= scores:
            forms = [f"{p.predicted} with {np.float32(p.confidence)!s}" for p in (theirs, ours)]
            return f"test image {ours.index} is {forms[0]} in the run, here {forms[1]}"
    if not abs(run.metrics.loss - own.metrics.loss) <= scores * (1 + abs(own.metrics.loss)):
        return f"the test loss is {run.metrics.loss:.9g} in the run, here {own.metrics.loss:.9g}"
    return None


def _same_machine(run: Run, again: Run) -> bool:
    """Whether the run says that it was evaluated by this code, where all that its bits may depend on is as here."""
    theirs, ours = environments.lasting(run.environment.evaluate), environments.lasting(again.environment.evaluate)
    return theirs == ours and run.identity.evaluation_code == again.identity.evaluation_code
