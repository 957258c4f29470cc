"""The report in words: the table's cells, and the sentences beside each pair's verdict. Plain text, for every way to show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.comparison.bits import to_the_last_bit
from pipeline.comparison.report import Inequality, LossPair, Pair, Report, Summary
from pipeline.runs.provenance import abbreviated

NOT_KNOWN = "not known"


def _device(run: Summary) -> str:
    return ": ".join(filter(None, (run.device, run.hardware))) if run.device else NOT_KNOWN


def _seconds(value: float | None) -> str:
    return NOT_KNOWN if value is None else f"{value:.3g}"


FIELDS: dict[str, Callable[[Summary], str]] = {
    "name": lambda run: run.name,
    "data": lambda run: f"{run.data}, {run.images:,} test images",
    "device": _device,
    "workers": lambda run: known(run.workers),
    "numerics": lambda run: run.numerics,
    "seed": lambda run: str(run.seed),
    "loss": lambda run: f"{run.loss:.6f}",
    "accuracy": lambda run: f"{run.accuracy:.2%}",
    "worst class": lambda run: f"{run.worst_class} {run.worst_class_accuracy:.2%}",
    "fingerprint": lambda run: run.fingerprint[:12],
    "seconds an epoch": lambda run: _seconds(run.seconds_per_epoch),
}
"""The table's rows."""


RESULTS = ("loss", "accuracy", "worst class", "fingerprint", "seconds an epoch")
"""The rows that a training gave; the others are what it was given."""


def rows(runs: Sequence[Summary]) -> dict[str, list[str]]:
    """The table: the name of a row -> a cell for each run. What was given and differs comes first, then what all share, then results.

    Workers are a row only where some run had more than one, and settings, threads and versions only where they differ.
    """
    table = {name: [cell(run) for run in runs] for name, cell in FIELDS.items()}
    if all(run.workers in (None, 1) for run in runs):
        del table["workers"]
    for name in dict.fromkeys(name for run in runs for name in run.given):
        cells = [known(run.given.get(name)) for run in runs]
        if len(set(cells)) > 1:
            table[name] = cells
    return {name: table[name] for name in sorted(table, key=lambda name: (name != "name", name in RESULTS or len(set(table[name])) == 1))}


def legends(runs: Sequence[Summary]) -> list[str]:
    """What each run is called beside a curve: its number, and what it was given that another was not."""
    differing = {name: cells for name, cells in rows(runs).items() if name not in ("name", *RESULTS) and len(set(cells)) > 1}
    own = [", ".join(f"{name} {cells[place]}" for name, cells in differing.items()) for place in range(len(runs))]
    return [f"run {run.number} ({text})" if text else f"run {run.number}" for run, text in zip(runs, own, strict=True)]


def known(value: Any) -> str:
    """A value as text, or that it is not known."""
    return NOT_KNOWN if value is None else str(value)


def details(pair: Pair, report: Report) -> list[str]:
    """What stands beside a pair's verdict, a sentence a line: the reason first."""
    lines = [reason(pair, report)]
    shown = [f"{d.field} {known(d.first)} and {known(d.second)}" for d in pair.differences if not d.decides]
    if pair.code_differs:
        shown.append("the code that trained them")
    if pair.networks_differ:
        shown.append("the operations in their network.json, with which predict answers")
    if shown:
        lines.append("apart by: " + ", ".join(shown))
    return [*lines, _weights(pair), _losses(pair), _predictions(pair)]


def reason(pair: Pair, report: Report) -> str:
    """Why the verdict on a pair of `report` is what it is."""
    if deciding := [d for d in pair.differences if d.decides]:
        return "; ".join(
            f"{d.field} is {abbreviated(d.first) or 'nothing'} in {pair.first}, {abbreviated(d.second) or 'nothing'} in {pair.second}"
            for d in deciding
        )
    if pair.inequality is None and pair.verdict == "identical":
        return f"weights, logged losses, predictions and metrics are {to_the_last_bit(pair.zeros)}"
    if pair.inequality and pair.promise_broken:
        both = f"both are {report.runs[pair.first - 1].numerics}, on the same data, with the same seed and settings"
        return f"the promise is broken: {both}, yet {_inequality(pair.inequality, pair)}"
    if pair.predictions is None or pair.weights.unlike:
        return f"the models are {_unlike(pair)}"
    margin = f"\N{PLUS-MINUS SIGN}{report.margin_points:g}"
    lies = {"equivalent": f"lies within {margin}", "different": f"lies beyond {margin}"}.get(pair.verdict)
    interval = (
        f"the {100 * report.confidence:g} % confidence interval of the difference in accuracy, {pair.predictions.low_points:+.2f} to "
        f"{pair.predictions.high_points:+.2f} points, "
    )
    return interval + (lies or f"lies partly within {margin}: {_would_decide(pair)}")


def _would_decide(pair: Pair) -> str:
    if pair.deciding_images is None:
        return "the difference is about the margin, and no number of test images would decide soon"
    return f"about {pair.deciding_images:,} test images more would decide, if they came out like these"


def _unlike(pair: Pair) -> str:
    """How two models are not alike: in many ways, where they are of different networks."""
    unlike = pair.weights.unlike
    return "not alike: " + "; ".join(unlike[:3]) + (f"; and {len(unlike) - 3} tensors more" if len(unlike) > 3 else "")


def _inequality(inequality: Inequality, pair: Pair) -> str:
    """The first thing that two runs do not share, as the end of a sentence."""
    at = inequality.at
    if inequality.part == "losses" and pair.losses.divergence:
        parting = pair.losses.divergence.first
        return f"their losses part at step {at}: {parting.first!r} and {parting.second!r}"
    return {
        "tensors": f"the models are {_unlike(pair)}",
        "weights": f"their weights differ, first in {at} (their losses do not part within the {pair.losses.steps} logged steps)",
        "history": f"their histories differ: {pair.losses.unlike}",
        "test images": "they were evaluated on other images",
        "predictions": f"their predictions differ, first for test image {at}, though the weights are equal",
        "metrics": f"their metrics differ in {at}, though the weights and predictions are equal",
    }[inequality.part]


def _weights(pair: Pair) -> str:
    weights = pair.weights
    if weights.unlike:
        return f"weights: {_unlike(pair)}"
    if weights.tensor is None:
        return "weights: equal"
    return f"weights: largest relative difference {weights.largest_relative:.2g}, in {weights.tensor}"


def _losses(pair: Pair) -> str:
    losses, divergence = pair.losses, pair.losses.divergence
    if divergence is None:
        line = f"losses: equal at all {losses.steps} logged steps" if losses.steps else "losses: not compared"
    else:

        def at(losses: LossPair) -> str:
            return f"{losses.relative:.2g} at step {losses.step}"

        line = (
            f"losses: part at step {divergence.first.step} ({divergence.first.first!r} and {divergence.first.second!r}); relative "
            f"difference {at(divergence.first)}, {at(divergence.middle)}, {at(divergence.last)}, at most {at(divergence.largest)}"
        )
    return line + (f"; {losses.unlike}" if losses.unlike else "")


def _predictions(pair: Pair) -> str:
    predictions = pair.predictions
    if predictions is None:
        return "predictions: of other test images, so not compared one by one"
    p = f"= {predictions.mcnemar_p:.3g}" if predictions.mcnemar_p >= 1e-300 else "< 1e-300"
    return (
        f"predictions: {share(predictions.equal_share)} equal; accuracy {predictions.difference_points:+.2f} points "
        f"({predictions.low_points:+.2f} to {predictions.high_points:+.2f}); right only in {pair.first}: {predictions.only_first}, "
        f"only in {pair.second}: {predictions.only_second}; McNemar's exact test p {p}"
    )


def share(part: float) -> str:
    """A share in percent that says 100 % only where it is all, and 0 % only where it is none."""
    if part in (0, 1):
        return f"{part:.0%}".replace("%", " %")
    return f"{min(max(100 * part, 0.01), 99.99):.2f} %"
