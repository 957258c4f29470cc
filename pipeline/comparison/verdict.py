"""Kept runs -> a report: is each run identical to the first, equivalent to it, or different, how far, and from which step on."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from pipeline.comparison import paired_statistics
from pipeline.errors import UserError
from pipeline.params import Compare
from pipeline.runs import kept
from pipeline.runs.kept import Run
from pipeline.runs.outputs import PREDICTIONS, Metrics

Verdict = Literal["identical", "equivalent", "different"]
ORDER: tuple[Verdict, ...] = ("identical", "equivalent", "different")
"""From the best to the worst; the worst decides."""


@dataclass(frozen=True)
class Summary:
    """A run's column in the table."""

    number: int
    """From 1, as the texts call it."""
    name: str
    """Its folder's; the whole path where two runs' folders have one name."""
    folder: str
    data: str
    images: int
    """Test images."""
    device: str | None
    """Where the weights were trained; None where they came from elsewhere."""
    hardware: str | None
    """The device's own name, where the environment tells it."""
    numerics: str
    seed: int
    loss: float
    accuracy: float
    worst_class: str
    worst_class_accuracy: float
    fingerprint: str
    seconds_per_epoch: float | None
    """None where the weights came from a cache and were not trained there."""


@dataclass(frozen=True)
class Difference:
    """A part of the identity that two runs do not share."""

    field: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Weights:
    """How far two models are apart."""

    largest_relative: float | None
    """The largest |a - b| of a tensor over its largest |a| or |b|, the most over all tensors; None where `unlike`."""
    tensor: str | None
    """Where that is; None where all weights are equal."""
    unlike: tuple[str, ...]
    """Tensors with other names, shapes or types."""


@dataclass(frozen=True)
class LossPair:
    """The losses of two runs at one logged step."""

    step: int
    first: float
    second: float
    relative: float
    """|first - second| over the larger of them."""


@dataclass(frozen=True)
class Losses:
    """Where two histories part, and how they part after; None each where they do not."""

    steps: int
    """Logged steps that both have."""
    unlike: str | None
    """What the histories do not share besides their losses."""
    parting: LossPair | None
    """The first logged step where they part."""
    middle: LossPair | None
    """The logged step half way from there to the end."""
    last: LossPair | None
    largest: LossPair | None
    """The logged step with the largest relative difference."""


@dataclass(frozen=True)
class Predictions:
    """Two runs' predictions of the same test images."""

    images: int
    equal_share: float
    """Of the images, those for which both predict the same class."""
    equal: bool
    """Whether all rows are equal, confidences too."""
    only_first: int
    """Images that only the first run gets right."""
    only_second: int
    difference_points: float
    """The second run's accuracy minus the first's, in percentage points."""
    low_points: float
    high_points: float
    """Tango's score interval of that difference (`paired_statistics.interval`)."""
    mcnemar_p: float


@dataclass(frozen=True)
class Pair:
    """A run against the first one."""

    first: int
    second: int
    """Their numbers in the table."""
    verdict: Verdict
    reason: str
    promise_broken: bool
    """Both exact, in the same version, with the same identity but for the device: and yet not identical."""
    differences: tuple[Difference, ...]
    """In the identity, the device and the numerics included."""
    code_differs: bool
    """Shown only: what counts is what the code made."""
    weights: Weights
    losses: Losses
    predictions: Predictions | None
    """None where the runs were evaluated on other images."""


@dataclass(frozen=True)
class Report:
    """The answer; `verdict` is the worst of the pairs'."""

    verdict: Verdict
    margin_points: float
    confidence: float
    runs: tuple[Summary, ...]
    pairs: tuple[Pair, ...]

    def as_json(self) -> dict[str, Any]:
        """All figures, as JSON's types."""
        return asdict(self)


def load(folders: list[Path]) -> list[Run]:
    """Read and check the runs to compare.

    Raises:
        UserError: fewer than two, one named twice, or one that `kept.load` refuses.
    """
    if len(folders) < 2:
        found = f"only {folders[0]}" if folders else "none"
        raise UserError(
            f"a comparison needs two kept runs, found {found}: set device, or another parameter, in params.yaml and run `dvc repro`, "
            f"or name the folders of runs kept elsewhere"
        )
    if twice := [folder for folder, count in Counter(map(os.path.realpath, folders)).items() if count > 1]:
        raise UserError(f"{twice[0]}: named twice; name each run once")
    return [kept.load(folder) for folder in folders]


def report(runs: list[Run], settings: Compare) -> Report:
    """Compare each run with the first one.

    Raises:
        UserError: two runs name the same data set but differ in its test labels or classes.
    """
    pairs = tuple(compare(runs[0], other, settings, second=number) for number, other in enumerate(runs[1:], 2))
    worst = max((pair.verdict for pair in pairs), key=ORDER.index)
    summaries = list(map(summarise, runs, range(1, len(runs) + 1)))
    alike = Counter(s.name for s in summaries)
    shown = tuple(replace(s, name=s.folder) if alike[s.name] > 1 else s for s in summaries)
    return Report(worst, settings.margin_points, settings.confidence, shown, pairs)


def summarise(made: Run, number: int) -> Summary:
    """A run's column in the table."""
    identity, metrics = made.identity, made.metrics
    per_class = metrics.accuracy_per_class
    worst = min(per_class, key=per_class.__getitem__)
    trained, evaluated = made.environment.train, made.environment.evaluate
    facts = trained or evaluated
    hardware = facts.hardware if facts else None
    return Summary(
        number=number,
        name=Path(os.path.realpath(made.folder)).name,
        folder=str(made.folder),
        data=identity.data.name,
        images=len(made.predictions),
        device=identity.device,
        hardware=hardware,
        numerics=identity.numerics,
        seed=identity.seed,
        loss=metrics.loss,
        accuracy=metrics.accuracy,
        worst_class=worst,
        worst_class_accuracy=per_class[worst],
        fingerprint=identity.fingerprint,
        seconds_per_epoch=trained.seconds_per_epoch if trained else None,
    )


def compare(first: Run, other: Run, settings: Compare, *, second: int = 2) -> Pair:
    """The verdict on `other`, run number `second`, against `first`, run number 1. Raises UserError as `report` does."""
    differences = _identity_differences(first, other)
    weights = _compare_weights(first, other)
    losses = _compare_losses(first, other)
    predictions = _compare_predictions(first, other, settings.confidence)
    apart = _first_inequality(first, other, weights, losses, predictions)
    deciding = [d for d in differences if d.field not in ("device", "numerics", "workers")]
    same_numerics = first.identity.numerics == other.identity.numerics
    broken = False
    verdict: Verdict = "different"
    if deciding:
        reason = "; ".join(f"{d.field} is {_short(d.first)} in 1, {_short(d.second)} in {second}" for d in deciding)
    elif same_numerics and apart is None:
        verdict = "identical"
        reason = "weights, logged losses, predictions and metrics are equal to the last bit"
    elif same_numerics and first.identity.numerics.startswith("exact-"):
        broken = True
        reason = f"the promise is broken: both are {first.identity.numerics}, with the same identity but for the device, yet {apart}"
    elif predictions is None or weights.unlike:  # without predictions the data differ, so there is something deciding
        reason = "the models are not alike: " + "; ".join(weights.unlike)
    else:
        low, high, margin = predictions.low_points, predictions.high_points, settings.margin_points
        within = -margin <= low and high <= margin
        verdict = "equivalent" if within else "different"
        reason = (
            f"the {100 * settings.confidence:g} % confidence interval of the difference in accuracy, {low:+.2f} to {high:+.2f} points, "
            f"{'lies' if within else 'does not lie'} within \N{PLUS-MINUS SIGN}{margin:g}"
        )
    code_differs = first.identity.code != other.identity.code
    return Pair(1, second, verdict, reason, broken, differences, code_differs, weights, losses, predictions)


def _short(value: object) -> str:
    """A value of the identity for a sentence: 12 digits of a digest are enough."""
    text = str(value)
    return f"{text:.12}..." if len(text) == 64 else text


def _identity_differences(first: Run, other: Run) -> tuple[Difference, ...]:
    def flat(made: Run) -> dict[str, Any]:
        identity = made.identity
        fields: dict[str, Any] = {"data.digest": identity.data.digest, "seed": identity.seed}
        fields |= {f"train.{key}": value for key, value in msgspec.to_builtins(identity.train).items()}
        return fields | {"numerics": identity.numerics, "workers": identity.workers, "device": identity.device}

    a, b = flat(first), flat(other)
    return tuple(Difference(key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key))


def _compare_weights(first: Run, other: Run) -> Weights:
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


def _compare_losses(first: Run, other: Run) -> Losses:
    a, b = ({s.step: s.loss for s in made.history} for made in (first, other))
    common = [step for step in a if step in b]
    unlike = None
    if a.keys() != b.keys():
        unlike = f"{len(common)} logged steps in common, of {len(a)} and {len(b)}"
    elif epochs := [(s, t) for s, t in zip(first.history, other.history, strict=True) if s.epoch != t.epoch]:
        unlike = f"step {epochs[0][0].step} is of epoch {epochs[0][0].epoch} and of epoch {epochs[0][1].epoch}"
    differing = [i for i, step in enumerate(common) if a[step] != b[step]]
    if not differing:
        return Losses(len(common), unlike, None, None, None, None)

    def at(index: int) -> LossPair:
        x, y = a[common[index]], b[common[index]]
        return LossPair(common[index], x, y, abs(x - y) / max(abs(x), abs(y), 1e-300))

    start, end = differing[0], len(common) - 1
    return Losses(len(common), unlike, at(start), at((start + end) // 2), at(end), max(map(at, differing), key=lambda p: p.relative))


def _compare_predictions(first: Run, other: Run, confidence: float) -> Predictions | None:
    a, b = first.predictions, other.predictions
    digest = first.identity.data.digest
    if digest != other.identity.data.digest:
        return None
    labels = {(p.actual, q.actual) for p, q in zip(a, b, strict=False)}
    if len(a) != len(b) or any(p != q for p, q in labels):
        if len(a) != len(b):
            what = f"{len(b)} predictions, {first.folder} has {len(a)}"
        elif len(labels) == len({p for p, _ in labels}) == len({q for _, q in labels}):
            p, q = min((p, q) for p, q in labels if p != q)
            raise UserError(f"{other.folder / PREDICTIONS}: the class names differ: {q!r:.40} is {p!r:.40} in {first.folder}, with the "
                            f"same images and labels ({_short(digest)}); make one of the runs again with the other's names")  # fmt: skip
        else:
            what = f"not the labels of {first.folder}"
        raise UserError(
            f"{other.folder / PREDICTIONS}: {what}, though both name the same data set "
            f"({_short(digest)}); one of them is damaged: make it again with `dvc repro`"
        )
    right_a = np.array([p.actual == p.predicted for p in a])
    right_b = np.array([p.actual == p.predicted for p in b])
    only_first, only_second = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    low, high = paired_statistics.interval(only_second, only_first, len(a), confidence)
    return Predictions(
        images=len(a),
        equal_share=sum(p.predicted == q.predicted for p, q in zip(a, b, strict=True)) / len(a),
        equal=a == b,
        only_first=only_first,
        only_second=only_second,
        difference_points=100 * (only_second - only_first) / len(a),
        low_points=100 * low,
        high_points=100 * high,
        mcnemar_p=paired_statistics.mcnemar(only_first, only_second),
    )


def _first_inequality(first: Run, other: Run, weights: Weights, losses: Losses, predictions: Predictions | None) -> str | None:
    """The first thing in the order of the work that two runs do not share, or None where they are equal."""
    if weights.unlike:
        return "the models are not alike: " + "; ".join(weights.unlike)
    if losses.parting:
        return f"their losses part at step {losses.parting.step}: {losses.parting.first!r} and {losses.parting.second!r}"
    logged = f" (their losses do not part within the {losses.steps} logged steps)"
    if first.identity.fingerprint != other.identity.fingerprint:
        name = next((n for n in sorted(first.weights) if not np.array_equal(first.weights[n], other.weights[n])), None)
        return f"their weights differ, first in {name}{logged}"
    if losses.unlike:
        return f"their histories differ: {losses.unlike}"
    if predictions is None:
        return "they were evaluated on other images"
    if not predictions.equal:
        image = next(p.index for p, q in zip(first.predictions, other.predictions, strict=True) if p != q)
        return f"their predictions differ, first for test image {image}, though the weights are equal"
    for key in Metrics.__struct_fields__:
        if getattr(first.metrics, key) != getattr(other.metrics, key):
            return f"their metrics differ in {key}, though the weights and predictions are equal"
    return None
