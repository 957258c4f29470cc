"""A report -> one HTML file that opens offline: plotly.js inside, and a policy in the page that forbids any request.

What comes from a run's files is text: Jinja escapes it in the page, `_literal` in the plots, and no script can come of it,
for the policy names the page's own scripts by their SHA-256.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import io
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline import files
from pipeline.comparison import terminal
from pipeline.comparison.verdict import Report
from pipeline.data import dataset
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError, printable
from pipeline.runs.kept import Run
from pipeline.runs.outputs import Prediction

SHOWN_DISAGREEMENTS = 60
DRAWN_STEPS = 2000
"""Of a history; the report's figures are from all steps."""
LABEL = 14
"""Characters of a class's name on an axis."""
COLOURS = 8
"""Runs' colours in page.html; they come again after that."""


def write(path: Path, report: Report, runs: list[Run]) -> None:
    """Write the page; the pictures come from data/ where it holds the first run's data set. Raises UserError."""
    # Not every string of JSON, nor every name of a folder, can be written as UTF-8.
    files.write_bytes(path, render(report, runs, _pictured(runs[0])).encode(errors="replace"))


def _pictured(first: Run) -> Dataset | None:
    """The data set in data/ if it is the run's; says so when it is damaged, for pictures are no must."""
    if not dataset.DATASET.exists():
        return None
    try:
        data = dataset.load()
    except UserError as damaged:
        print(f"no pictures: {printable(str(damaged))}", file=sys.stderr)
        return None
    same = data.digest == first.identity.data.digest and len(data.test_labels) == len(first.predictions)
    return data if same else None


def render(report: Report, runs: list[Run], data: Dataset | None) -> str:
    """The page; `data` must be the first run's data set, or None: then images are named by their numbers only."""
    import jinja2
    import plotly.offline

    folder = Path(__file__).parent
    scripts = [plotly.offline.get_plotlyjs(), (folder / "page.js").read_text(encoding="utf-8")]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    figures = [*_losses(report, runs), _per_class(runs), *map(_confusion, range(1, len(runs) + 1), runs)]
    cards, disagreements = _disagreements(runs, data)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((folder / "page.html").read_text(encoding="utf-8")).render(
        report=report,
        fields=terminal.FIELDS,
        details=terminal.details,
        colour=lambda number: _colour(number).removeprefix("var(").removesuffix(")"),
        figures=figures,
        drawn=_in_script([{"key": f.key, "data": f.data, "layout": f.layout, "wide": f.wide} for f in figures if f.data]),
        scripts=scripts,
        policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
        cards=cards,
        disagreements=disagreements,
        comparable=[number for number, made in enumerate(runs, 1) if _same_images(runs[0], made)],
        classes=_class_names(runs),
        runs=runs,
        environments=_environments(runs),
    )


def _in_script(content: Any) -> str:
    """JSON for a script element, which only a "<" could end early."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


# --- figures -----------------------------------------------------------------------------------------------------


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


def _colour(number: int) -> str:
    return f"var(--run-{(number - 1) % COLOURS + 1})"


def _literal(text: str) -> str:
    """`text` in a plot as it is: plotly.js reads some HTML in labels."""
    return html.escape(text, quote=False)


def _named(number: int, made: Run) -> str:
    return f"run {number} ({_literal(made.identity.device or 'not known')})"


def _class_names(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(name for made in runs for name in made.metrics.accuracy_per_class))


def _classes(names: list[str]) -> dict[str, Any]:
    """An axis with a tick a class; a long name is cut, so that it leaves room for the plot."""
    cut = [name if len(name) <= LABEL else name[: LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}" for name in names]
    return {"type": "category", "tickmode": "array", "tickvals": [_literal(name) for name in names], "ticktext": list(map(_literal, cut))}


def _line(number: int, made: Run, x: list[int], y: list[float | None]) -> dict[str, Any]:
    """Runs that lie on each other must all be seen: the first is broad and pale, the others are thin and dashed."""
    style = {"width": 6} if number == 1 else {"width": 2, "dash": ("solid", "dash", "dot", "dashdot")[number % 4]}
    return {
        "type": "scatter",
        "mode": "lines",
        "name": _named(number, made),
        "x": x,
        "y": y,
        "opacity": 0.5 if number == 1 else 1,
        "line": {"color": _colour(number), **style},
    }


def _losses(report: Report, runs: list[Run]) -> list[Figure]:
    every = max(1, max(-(-len(made.history) // DRAWN_STEPS) for made in runs))
    thinned = "" if every == 1 else f" One logged step in {every} is drawn."
    curves, ends = [], []
    for number, made in enumerate(runs, 1):
        drawn = made.history[::every]
        curves.append(_line(number, made, [s.step for s in drawn], [s.loss for s in drawn]))
        first, last = made.history[0], made.history[-1]
        ends.append(f"run {number} goes from {first.loss:.4g} at step {first.step} to {last.loss:.4g} at step {last.step}")
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "loss of the batch"}}}
    figures = [Figure("losses", "Loss", f"The loss of the batch by step: {'; '.join(ends)}.{thinned}", curves, layout)]
    reference = {step.step: step.loss for step in runs[0].history}
    apart, words = [], []
    for pair, made in zip(report.pairs, runs[1:], strict=True):
        if pair.losses.parting is None:
            words.append(f"run {pair.second} and run 1 are equal at all {pair.losses.steps} logged steps that both have")
            continue
        drawn = [s for s in made.history if s.step in reference][::every]
        gaps = [abs(s.loss - reference[s.step]) or None for s in drawn]  # a logarithm has no place for 0
        line = _line(pair.second, made, [s.step for s in drawn], gaps)
        apart.append(line | {"mode": "lines+markers", "marker": {"size": 4, "color": _colour(pair.second)}})
        words.append(f"run {pair.second} parts from run 1 at step {pair.losses.parting.step}")
    apart_layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"title": {"text": "difference from run 1"}, "type": "log", "exponentformat": "power"},
    }
    sizes = [gap for line in apart for gap in line["y"] if gap]
    if sizes and (decades := math.log10(max(sizes) / min(sizes))) > 2:
        apart_layout["yaxis"]["dtick"] = math.ceil(decades / 8)  # whole powers of ten
    text = f"The size of the difference from run 1's loss, on a logarithmic scale: {'; '.join(words)}. Equal losses are not drawn.{thinned}"
    if not apart:
        text = f"There is no difference to draw: {'; '.join(words)}."
    return [*figures, Figure("loss-differences", "Difference of the losses", text, apart, apart_layout)]


def _per_class(runs: list[Run]) -> Figure:
    classes = _class_names(runs)
    bars = []
    for number, made in enumerate(runs, 1):
        per_class = made.metrics.accuracy_per_class
        bars.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": _named(number, made),
                "y": [_literal(name) for name in classes],
                "x": [None if name not in per_class else 100 * per_class[name] for name in classes],
                "marker": {"color": _colour(number)},
                "hovertemplate": "%{y}: %{x:.2f} %",
            }
        )
    layout = {
        "barmode": "group",
        "bargap": 0.25,
        "height": 110 + len(classes) * (12 + 11 * len(runs)),
        "xaxis": {"title": {"text": "accuracy, %"}, "range": [0, 100]},
        "yaxis": {**_classes(classes), "autorange": "reversed"},
    }
    text = "The accuracy of each run for each class; the table below gives the figures."
    return Figure("per-class", "Accuracy by class", text, bars, layout)


def _confusion(number: int, made: Run) -> Figure:
    named = (name for p in made.predictions for name in (p.actual, p.predicted))
    classes = list(dict.fromkeys([*made.metrics.accuracy_per_class, *named]))
    place = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), int)
    for p in made.predictions:
        counts[place[p.actual], place[p.predicted]] += 1
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mistakes = Counter((p.actual, p.predicted) for p in made.predictions if p.actual != p.predicted)
    text = f"Run {number}: no image was taken for another class."
    if mistakes:
        (actual, predicted), count = mistakes.most_common(1)[0]
        device = made.identity.device or "not known"
        text = f"Run {number} ({device}); its most frequent mistake: {actual} taken for {predicted}, {count} times."
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
        "xaxis": {**_classes(classes), "title": {"text": "predicted"}, "tickangle": -60, "showgrid": False},
        "yaxis": {**_classes(classes), "title": {"text": "actual"}, "autorange": "reversed", "showgrid": False},
    }
    return Figure(f"confusion-{number}", f"Confusion, run {number}", text, [heat], layout, wide=False)


# --- images ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """A test image on which runs disagree."""

    index: int
    actual: str
    picture: str | None
    """A data URI."""
    predictions: list[tuple[int, Prediction]]
    """By the runs' numbers."""


def _same_images(first: Run, other: Run) -> bool:
    return bool(first.identity.data.digest == other.identity.data.digest)


def _disagreements(runs: list[Run], data: Dataset | None) -> tuple[list[Card], int]:
    """The images on which runs of the first one's test set disagree, those that cost one of them a hit first; and how many."""
    numbers = [number for number, made in enumerate(runs, 1) if _same_images(runs[0], made)]
    rows = zip(*(runs[number - 1].predictions for number in numbers), strict=True)
    found = [row for row in rows if len({p.predicted for p in row}) > 1]
    found.sort(key=lambda row: (all(p.predicted != p.actual for p in row), row[0].index))
    cards = [
        Card(
            row[0].index,
            row[0].actual,
            None if data is None else _picture(data.test_images[row[0].index]),
            list(zip(numbers, row, strict=True)),
        )
        for row in found[:SHOWN_DISAGREEMENTS]
    ]
    return cards, len(found)


def _picture(image: np.ndarray) -> str:
    """An image, uint8 [3, 32, 32], as the data URI of a PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# --- environments ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A fact side by side."""

    name: str
    cells: list[str]

    @functools.cached_property
    def differs(self) -> bool:
        """Whether the runs do not share it."""
        return len(set(self.cells)) > 1


def _environments(runs: list[Run]) -> dict[str, list[Row]]:
    """What the runs were made of and where: group -> rows."""
    groups: dict[str, list[dict[str, Any]]] = {
        "identity": [_flat(msgspec.to_builtins(made.identity)) for made in runs],
        "trained in": [msgspec.to_builtins(made.environment.train) or {} for made in runs],
        "evaluated in": [msgspec.to_builtins(made.environment.evaluate) or {} for made in runs],
    }
    return {
        group: [Row(key, [_fact(key, facts.get(key)) for facts in columns]) for key in dict.fromkeys(k for f in columns for k in f)]
        for group, columns in groups.items()
    }


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _fact(key: str, value: Any) -> str:
    if value is None:
        return "not known"
    return f"{value / 1e6:,.0f} MB" if key == "peak_memory_bytes" else str(value)
