"""How far two runs are apart: identity, weights, losses, predictions, and the first thing that they do not share."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np

from pipeline.comparison import paired_statistics
from pipeline.comparison.report import Difference, Divergence, Inequality, Losses, LossPair, Predictions, Weights
from pipeline.runs.environments import MEASURED
from pipeline.runs.kept import Run
from pipeline.runs.outputs import PREDICTIONS, Metrics, again
from pipeline.runs.provenance import abbreviated, flattened
from pipeline.system.errors import UserError

COMPARED_BY_RESULT = ("device", "workers", "numerics")
"""Parts of the identity that do not decide: what they gave is compared."""
LABELS = ("data.name", "data.classes", "code")
"""Parts of the provenance that are not compared: names of the same images, and the code, for what counts is what it made."""


def identity(first: Run, other: Run) -> tuple[Difference, ...]:
    """The parts of their identities that two runs do not share."""

    def compared(run: Run) -> dict[str, Any]:
        parts = {key: value for key, value in flattened(run.identity.provenance).items() if key not in LABELS}
        return parts | {"workers": workers(run), "device": run.identity.device}

    a, b = compared(first), compared(other)
    differing = [key for key in a | b if a.get(key) != b.get(key)]
    not_known = [key for key in ("device", "workers") if a[key] is None or b[key] is None]  # nothing records it, so nothing differs
    return tuple(Difference(key, a.get(key), b.get(key), key not in COMPARED_BY_RESULT) for key in differing if key not in not_known)


def given(run: Run) -> dict[str, Any]:
    """What a run's training was given, by the names that a report shows, besides what `Summary` has of its own."""
    facts = msgspec.to_builtins(run.environment.train) if run.environment.train else {}
    own = ("device", "hardware", "workers", *MEASURED)
    network = run.identity.provenance.network
    chosen = [f"{network.arguments}"] if network.arguments else []
    if network.normalize:
        chosen.append("normalized" if network.normalize is True else f"normalized by {network.normalize.mean} and {network.normalize.std}")
    settings = {"model": " ".join([network.name, *chosen])}
    if run.identity.train is None:
        settings["trained"] = "elsewhere"
    else:
        settings |= flattened(run.identity.train)
    return {**settings, **{name.replace("_", " "): fact for name, fact in facts.items() if name not in own}}


def workers(run: Run) -> int | None:
    """How many processes trained together, from the identity (native) or the environment; None where nothing records it."""
    trained = run.environment.train
    return run.identity.workers or (trained.workers if trained else None)


def weights(first: Run, other: Run) -> Weights:
    """How far two models are apart."""
    unlike = []
    largest, where = 0.0, None
    for name in sorted({**first.weights, **other.weights}):
        a, b = first.weights.get(name), other.weights.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            unlike.append(f"{name} is {_form(a)} in one and {_form(b)} in the other")
            continue
        if not a.size or np.array_equal(a, b):
            continue
        scale = max(np.abs(a.astype(np.float64)).max(), np.abs(b.astype(np.float64)).max())
        relative = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max() / scale)
        if where is None or relative > largest:
            largest, where = relative, name
    return Weights(None, None, tuple(unlike)) if unlike else Weights(largest, where, ())


def _form(array: np.ndarray | None) -> str:
    return "missing" if array is None else f"{array.dtype} {list(array.shape)}"


def losses(first: Run, other: Run) -> Losses:
    """Whether two histories have the same steps, and where their losses part."""
    a, b = ({row.step: row.loss for row in run.history} for run in (first, other))
    common = [step for step in a if step in b]
    unlike = None
    if a.keys() != b.keys():
        unlike = f"{len(common)} logged steps in common, of {len(a)} and {len(b)}"
    elif epochs := [(s, t) for s, t in zip(first.history, other.history, strict=True) if s.epoch != t.epoch]:
        unlike = f"step {epochs[0][0].step} is of epoch {epochs[0][0].epoch} and of epoch {epochs[0][1].epoch}"
    differing = [i for i, step in enumerate(common) if a[step] != b[step]]
    if not differing:
        return Losses(len(common), unlike, None)

    def at(index: int) -> LossPair:
        x, y = a[common[index]], b[common[index]]
        return LossPair(common[index], x, y, abs(x - y) / max(abs(x), abs(y), 1e-300))

    start, end = differing[0], len(common) - 1
    largest = max(map(at, differing), key=lambda pair: pair.relative)
    return Losses(len(common), unlike, Divergence(at(start), at((start + end) // 2), at(end), largest))


def predictions(first: Run, other: Run, confidence: float) -> Predictions | None:
    """Two runs' predictions of the same test images; None where they are of other images.

    Raises:
        UserError: the runs name the same data set but differ in its test labels or classes.
    """
    if first.identity.data.digest != other.identity.data.digest:
        return None
    _check_labels(first, other)
    images = len(first.predictions)
    right = [(p.actual == p.predicted, q.actual == q.predicted) for p, q in zip(first.predictions, other.predictions, strict=True)]
    only_first, only_second = right.count((True, False)), right.count((False, True))
    low, high = paired_statistics.interval(only_second, only_first, images, confidence)
    return Predictions(
        images=images,
        equal_share=sum(p.predicted == q.predicted for p, q in zip(first.predictions, other.predictions, strict=True)) / images,
        equal=first.predictions == other.predictions,
        only_first=only_first,
        only_second=only_second,
        difference_points=100 * (only_second - only_first) / images,
        low_points=100 * low,
        high_points=100 * high,
        mcnemar_p=paired_statistics.mcnemar(only_first, only_second),
    )


def _check_labels(first: Run, other: Run) -> None:
    """Raise UserError where two runs of the same data set differ in its test labels or in the names of its classes."""
    digest = abbreviated(first.identity.data.digest)
    classes, others = first.identity.data.classes, other.identity.data.classes
    if classes != others:
        number, (name, theirs) = next((i, pair) for i, pair in enumerate(itertools.zip_longest(classes, others)) if pair[0] != pair[1])
        raise UserError(
            f"{other.folder}: the class names differ: class {number} is {theirs!r:.40}, but {name!r:.40} in {first.folder}, with the "
            f"same images and labels ({digest}); make one of the runs again with the other's names"
        )
    contradiction = None
    if len(first.predictions) != len(other.predictions):
        contradiction = f"{len(other.predictions)} predictions, {first.folder} has {len(first.predictions)}"
    elif any(p.actual != q.actual for p, q in zip(first.predictions, other.predictions, strict=True)):
        contradiction = f"not the labels of {first.folder}"
    if contradiction:
        raise UserError(
            f"{other.folder / PREDICTIONS}: {contradiction}, though both name the same data set ({digest}); one of them is damaged: "
            f"{again(other.folder)}"
        )


def inequality(first: Run, other: Run, weights: Weights, losses: Losses, predictions: Predictions | None) -> Inequality | None:
    """The first thing, in the order of the work, that two runs do not share; None where they are equal."""
    if weights.unlike:
        return Inequality("tensors")
    if losses.divergence:
        return Inequality("losses", losses.divergence.first.step)
    if weights.tensor:
        return Inequality("weights", next(n for n in sorted(first.weights) if not np.array_equal(first.weights[n], other.weights[n])))
    if losses.unlike:
        return Inequality("history")
    if predictions is None:
        return Inequality("test images")
    if not predictions.equal:
        pairs = zip(first.predictions, other.predictions, strict=True)
        return Inequality("predictions", next(p.index for p, q in pairs if p != q))
    unequal = (key for key in Metrics.__struct_fields__ if getattr(first.metrics, key) != getattr(other.metrics, key))
    metric = next(unequal, None)
    return Inequality("metrics", metric) if metric else None
