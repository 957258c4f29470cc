"""The page's plots: what plotly.js draws, and the same in words."""

from __future__ import annotations

import html
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.comparison import wording
from pipeline.comparison.report import Pair, Report
from pipeline.runs.kept import Run
from pipeline.runs.outputs import Step

DRAWN_STEPS = 2000
"""Of a history; the report's figures are from all steps."""
LABEL = 14
"""Characters of a class's name on an axis."""
LEGEND = 60
"""Characters of a run's name beside a plot."""
MOST_CLASSES = 100
"""Of a plot by class: a matrix of so many in both directions can be read, and has a bounded size."""
COLOURS = 8
"""Runs' colours in page.html; they come again after that."""


@dataclass(frozen=True)
class Figure:
    """What plotly.js draws; `var(--name)` stands for a colour of the page's style sheet, light or dark."""

    key: str
    title: str
    text: str
    """What the figure shows, in words: the alternative text."""
    data: list[dict[str, Any]]
    """Empty where there is nothing to draw and `text` says why."""
    layout: dict[str, Any]
    wide: bool = True


def of(report: Report, runs: list[Run]) -> list[Figure]:
    """All figures of the page."""
    names = wording.legends(report.runs)
    curves, differences = losses(runs, names), loss_differences(report.pairs, runs, names)
    return [curves, differences, per_class(runs, names), *(confusion(run, number, names) for number, run in enumerate(runs, 1))]


def colour(number: int) -> str:
    """The name of a run's colour in the style sheet."""
    return f"--run-{(number - 1) % COLOURS + 1}"


def losses(runs: list[Run], names: list[str]) -> Figure:
    """Every run's loss by step."""
    every = _every(runs)
    curves, ends = [], []
    for number, run in enumerate(runs, 1):
        if not run.history:
            ends.append(f"run {number} was trained elsewhere")
            continue
        drawn = run.history[::every]
        curves.append(_line(number, names, drawn, [row.loss for row in drawn]))
        first, last = run.history[0], run.history[-1]
        ends.append(f"run {number} goes from {first.loss:.4g} at step {first.step} to {last.loss:.4g} at step {last.step}")
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "loss of the batch"}}}
    return Figure("losses", "Loss", f"The loss of the batch by step: {'; '.join(ends)}.{_thinned(every)}", curves, layout)


def loss_differences(pairs: tuple[Pair, ...], runs: list[Run], names: list[str]) -> Figure:
    """How far every other run's loss is from the first run's, by step."""
    every, reference = _every(runs), {row.step: row.loss for row in runs[0].history}
    curves, sentences = [], []
    for pair, run in zip(pairs, runs[1:], strict=True):
        if pair.losses.divergence is None:
            sentences.append(f"run {pair.second} and run 1 are equal at all {pair.losses.steps} logged steps that both have")
            continue
        drawn = [row for row in run.history if row.step in reference][::every]
        line = _line(pair.second, names, drawn, [abs(row.loss - reference[row.step]) or None for row in drawn])  # a logarithm has no 0
        curves.append(line | {"mode": "lines+markers", "marker": {"size": 4, "color": _variable(pair.second)}})
        sentences.append(f"run {pair.second} parts from run 1 at step {pair.losses.divergence.first.step}")
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"title": {"text": "difference from run 1"}, "type": "log", "exponentformat": "power"},
    }
    sizes = [size for line in curves for size in line["y"] if size]
    if sizes and (decades := math.log10(max(sizes)) - math.log10(min(sizes))) > 2:
        layout["yaxis"]["dtick"] = math.ceil(decades / 8)  # whole powers of ten
    said = "; ".join(sentences)
    text = f"There is no difference to draw: {said}."
    if curves:
        text = f"The size of the difference from run 1's loss, on a logarithmic scale: {said}. Equal losses are not drawn.{_thinned(every)}"
    return Figure("loss-differences", "Difference of the losses", text, curves, layout)


def per_class(runs: list[Run], names: list[str]) -> Figure:
    """Every run's accuracy for each class."""
    classes = class_names(runs)
    if len(classes) > MOST_CLASSES:
        return Figure("per-class", "Accuracy by class", f"The table below gives the accuracy for each of {len(classes)} classes.", [], {})
    bars = []
    for number, run in enumerate(runs, 1):
        accuracies = run.metrics.accuracy_per_class
        bars.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": _legend(names[number - 1]),
                "y": [_literal(name) for name in classes],
                "x": [100 * accuracies[name] if name in accuracies else None for name in classes],
                "marker": {"color": _variable(number)},
                "hovertemplate": "%{y}: %{x:.2f} %",
            }
        )
    layout = {
        "barmode": "group",
        "bargap": 0.25,
        "height": 110 + len(classes) * (12 + 11 * len(runs)),
        "xaxis": {"title": {"text": "accuracy, %"}, "range": [0, 100]},
        "yaxis": {**_class_axis(classes), "autorange": "reversed"},
    }
    text = "The accuracy of each run for each class; the table below gives the figures."
    return Figure("per-class", "Accuracy by class", text, bars, layout)


def confusion(run: Run, number: int, names: list[str]) -> Figure:
    """A run's test images by their class and the predicted one."""
    named = (name for p in run.predictions for name in (p.actual, p.predicted))
    classes = list(dict.fromkeys([*run.metrics.accuracy_per_class, *named]))
    mistakes = Counter((p.actual, p.predicted) for p in run.predictions if p.actual != p.predicted)
    text = f"Run {number}: no image was taken for another class."
    if mistakes:
        (actual, predicted), count = mistakes.most_common(1)[0]
        text = f"R{names[number - 1][1:]}; its most frequent mistake: {actual} taken for {predicted}, {count} times."
    key, title = f"confusion-{number}", f"Confusion, run {number}"
    if len(classes) > MOST_CLASSES:
        return Figure(key, title, f"{text} There are {len(classes)} classes, and only up to {MOST_CLASSES} are drawn.", [], {}, wide=False)
    place = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), int)
    for p in run.predictions:
        counts[place[p.actual], place[p.predicted]] += 1
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labels = [_literal(name) for name in classes]
    heat = {
        "type": "heatmap",
        "x": labels,
        "y": labels,
        "z": shares.round(4).tolist(),
        "text": counts.tolist(),
        "texttemplate": "%{text}",
        "textfont": {"size": 10, "color": "var(--ink)"},
        "hovertemplate": "%{y} taken for %{x}: %{text}",
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "var(--heat-0)"], [1, "var(--heat-1)"]],
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "name": "",
    }
    layout = {
        "height": 400,
        "xaxis": {**_class_axis(classes), "title": {"text": "predicted"}, "tickangle": -60, "showgrid": False},
        "yaxis": {**_class_axis(classes), "title": {"text": "actual"}, "autorange": "reversed", "showgrid": False},
    }
    return Figure(key, title, text, [heat], layout, wide=False)


def class_names(runs: list[Run]) -> list[str]:
    """The classes of all runs, each once."""
    return list(dict.fromkeys(name for run in runs for name in run.metrics.accuracy_per_class))


def _every(runs: list[Run]) -> int:
    """Which of the logged steps are drawn: one in so many."""
    return max(1, max(-(-len(run.history) // DRAWN_STEPS) for run in runs))


def _thinned(every: int) -> str:
    return "" if every == 1 else f" One logged step in {every} is drawn."


def _line(number: int, names: list[str], drawn: list[Step], y: list[Any]) -> dict[str, Any]:
    """Runs that lie on each other must all be seen: the first is broad and pale, the others are thin and dashed."""
    style = {"width": 6} if number == 1 else {"width": 2, "dash": ("solid", "dash", "dot", "dashdot")[number % 4]}
    return {
        "type": "scatter",
        "mode": "lines",
        "name": _legend(names[number - 1]),
        "x": [row.step for row in drawn],
        "y": y,
        "opacity": 0.5 if number == 1 else 1,
        "line": {"color": _variable(number), **style},
    }


def _class_axis(names: list[str]) -> dict[str, Any]:
    """An axis with a tick a class; a long name is cut, so that it leaves room for the plot."""
    cut = [name if len(name) <= LABEL else name[: LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}" for name in names]
    return {"type": "category", "tickmode": "array", "tickvals": [_literal(name) for name in names], "ticktext": list(map(_literal, cut))}


def _legend(name: str) -> str:
    """A run's name beside a plot, cut to leave room for it."""
    return _literal(name if len(name) <= LEGEND else name[: LEGEND - 1] + "\N{HORIZONTAL ELLIPSIS}")


def _variable(number: int) -> str:
    return f"var({colour(number)})"


def _literal(text: str) -> str:
    """`text` in a plot as it is: plotly.js reads some HTML in labels."""
    return html.escape(text, quote=False)
