"""Two runs that claim the same training -> the first bit in which they differ, in the order in which they were computed."""

from __future__ import annotations

import itertools

import numpy as np

from pipeline.runs.kept import Run
from pipeline.runs.outputs import Metrics, Prediction, Step
from pipeline.system.tensors import Tensors


def first_difference(claimed: Run, computed: Run) -> str | None:
    """What differs first: a logged loss, a weight, a prediction or a metric, with both values; None where all bits are equal."""
    return (
        first_step_apart(claimed.history, computed.history)
        or _first_weight_apart(claimed.weights, computed.weights)
        or _first_prediction_apart(claimed.predictions, computed.predictions)
        or _first_metric_apart(claimed.metrics, computed.metrics)
    )


def zeros_apart(first: Run, other: Run) -> int:
    """In how many zeros two runs that are equal differ by the sign, on which no result depends: in losses, weights, predictions, loss."""

    def numbers(run: Run) -> np.ndarray:
        losses, confidences = (
            [getattr(row, name) for row in rows] for rows, name in ((run.history, "loss"), (run.predictions, "confidence"))
        )
        weights = (np.signbit(run.weights[name]).ravel() for name in sorted(run.weights))
        return np.concatenate([np.signbit([*losses, *confidences, run.metrics.loss]), *weights])

    return int(np.count_nonzero(numbers(first) != numbers(other)))


def to_the_last_bit(zeros: int) -> str:
    """How equal two runs are."""
    return "equal to the last bit" + (f", but for the sign of {zeros:,} zero{'s' if zeros > 1 else ''}" if zeros else "")


def first_step_apart(claimed: list[Step], computed: list[Step]) -> str | None:
    """The first row in which two histories differ, with both losses in full; None where all are equal."""
    for number, (theirs, ours) in enumerate(itertools.zip_longest(claimed, computed), 1):
        if theirs is None or ours is None or theirs[:2] != ours[:2]:
            return f"first in row {number} of the history: the run has {_row(theirs)}, here is {_row(ours)}"
        if np.float32(theirs.loss) != np.float32(ours.loss):
            losses = f"the run's loss is {_in_full(theirs.loss)}, here it is {_in_full(ours.loss)}"
            return f"first at step {ours.step}, row {number} of the history: {losses}"
    return None


def _row(row: Step | None) -> str:
    return f"step {row.step} of epoch {row.epoch}" if row else "no more"


def _in_full(value: float) -> str:
    """A float32 in its shortest exact decimal form, and its bits."""
    return f"{np.float32(value)!s} ({float(np.float32(value)).hex()})"


def _first_weight_apart(claimed: Tensors, computed: Tensors) -> str | None:
    """The first tensor, by name, in which two models differ, and where in it; None where all are equal."""
    for name in sorted({**claimed, **computed}):
        theirs, ours = claimed.get(name), computed.get(name)
        if theirs is None or ours is None or theirs.shape != ours.shape:
            forms = ["missing" if array is None else str(list(array.shape)) for array in (theirs, ours)]
            return f"all logged losses are equal, but the run's {name!r:.80} is {forms[0]}, here it is {forms[1]}"
        if len(places := np.argwhere(theirs != ours)):
            at = tuple(map(int, places[0]))
            return (
                f"all logged losses are equal, but the weights are not, first in {name}: {len(places):,} of {ours.size:,} differ; at "
                f"{list(at)} the run has {_in_full(theirs[at])}, here is {_in_full(ours[at])}"
            )
    return None


def _first_prediction_apart(claimed: list[Prediction], computed: list[Prediction]) -> str | None:
    """The first test image of which two evaluations differ; None where they do not."""
    if len(claimed) != len(computed):
        return f"the weights are equal, but the run has {len(claimed):,} predictions, here are {len(computed):,}"
    for theirs, ours in zip(claimed, computed, strict=True):
        if _bits(theirs) != _bits(ours):
            forms = [f"{p.actual} taken for {p.predicted} with {_in_full(p.confidence)}" for p in (theirs, ours)]
            return f"the weights are equal, but the predictions are not, first for test image {ours.index}: {forms[0]}, here {forms[1]}"
    return None


def _bits(row: Prediction) -> tuple[int, str, str, np.float32]:
    return row.index, row.actual, row.predicted, np.float32(row.confidence)


def _first_metric_apart(claimed: Metrics, computed: Metrics) -> str | None:
    """The first metric in which two evaluations differ; None where they do not."""
    for name in Metrics.__struct_fields__:
        theirs, ours = getattr(claimed, name), getattr(computed, name)
        if theirs != ours:
            return f"the weights and predictions are equal, but {name} is {theirs!r} in the run, here {ours!r}"
    return None
