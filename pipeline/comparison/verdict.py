"""Kept runs -> a report: is each run identical to the first, equivalent to it, or different."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import msgspec

from pipeline.comparison import bits, measures, paired_statistics
from pipeline.comparison.report import ORDER, Pair, Report, Summary, Verdict
from pipeline.params import Compare
from pipeline.runs import kept
from pipeline.runs.kept import Run
from pipeline.system.errors import UserError


def load(folders: list[Path]) -> list[Run]:
    """Read and check the runs to compare.

    Raises:
        UserError: fewer than two, one named twice, or one that `kept.load` refuses.
    """
    if len(folders) < 2:
        given = f"only {folders[0]}" if folders else "none"
        raise UserError(
            f"a comparison needs two kept runs, found {given}: set device, or another parameter, in params.yaml and run `dvc repro`, "
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
    summaries = [summarise(run, number) for number, run in enumerate(runs, 1)]
    alike = Counter(summary.name for summary in summaries)
    named = tuple(msgspec.structs.replace(s, name=s.folder) if alike[s.name] > 1 else s for s in summaries)
    return Report(worst, settings.margin_points, settings.confidence, named, pairs)


def summarise(run: Run, number: int) -> Summary:
    """A run's column in the table."""
    identity, metrics, trained = run.identity, run.metrics, run.environment.train
    worst = min(metrics.accuracy_per_class, key=metrics.accuracy_per_class.__getitem__)
    return Summary(
        number=number,
        name=Path(os.path.realpath(run.folder)).name,
        folder=str(run.folder),
        data=identity.data.name,
        images=len(run.predictions),
        device=identity.device,
        hardware=trained.hardware if trained else None,
        workers=measures.workers(run),
        numerics=identity.numerics,
        seed=identity.seed,
        loss=metrics.loss,
        accuracy=metrics.accuracy,
        worst_class=worst,
        worst_class_accuracy=metrics.accuracy_per_class[worst],
        fingerprint=identity.fingerprint,
        seconds_per_epoch=trained.seconds_per_epoch if trained else None,
        given=measures.given(run),
    )


def compare(first: Run, other: Run, settings: Compare, *, second: int = 2) -> Pair:
    """The verdict on `other`, run number `second`, against `first`, run number 1. Raises UserError as `report` does."""
    differences = measures.identity(first, other)
    weights = measures.weights(first, other)
    losses = measures.losses(first, other)
    predictions = measures.predictions(first, other, settings.confidence)
    inequality = measures.inequality(first, other, weights, losses, predictions)
    same_numerics = first.identity.numerics == other.identity.numerics
    promise_broken, deciding_images = False, None
    verdict: Verdict = "different"
    if any(difference.decides for difference in differences):
        pass
    elif same_numerics and inequality is None:
        verdict = "identical"
    elif same_numerics and first.identity.numerics.startswith("exact-"):
        promise_broken = True
    elif predictions and not weights.unlike:
        margin = settings.margin_points
        if -margin <= predictions.low_points and predictions.high_points <= margin:
            verdict = "equivalent"
        elif predictions.low_points <= margin and predictions.high_points >= -margin:
            verdict = "undecided"
            deciding_images = paired_statistics.deciding_images(
                predictions.only_second, predictions.only_first, predictions.images, settings.confidence, margin / 100
            )
    return Pair(
        first=1,
        second=second,
        verdict=verdict,
        promise_broken=promise_broken,
        deciding_images=deciding_images,
        differences=differences,
        code_differs=first.identity.code != other.identity.code,
        networks_differ=not weights.unlike and None not in (first.network, other.network) and first.network != other.network,
        inequality=inequality,
        weights=weights,
        losses=losses,
        predictions=predictions,
        zeros=bits.zeros_apart(first, other) if verdict == "identical" else 0,
    )
