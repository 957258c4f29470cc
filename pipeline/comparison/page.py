"""The report as one HTML file that opens offline (`pipeline/system/offline.py`), with plotly.js inside.

What comes from a run's files is text, in the plots too, where `figures` escapes it.
"""

from __future__ import annotations

import base64
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import plotly.offline

from pipeline.comparison import figures, wording
from pipeline.comparison.report import Report
from pipeline.data import dataset, pictures
from pipeline.data.dataset import Dataset
from pipeline.runs.kept import Run
from pipeline.runs.outputs import Prediction
from pipeline.runs.provenance import flattened
from pipeline.system import files, offline
from pipeline.system.errors import UserError, printable

SHOWN_DISAGREEMENTS = 60


def write(path: Path, report: Report, runs: list[Run]) -> None:
    """Write the page; the pictures come from data/ where it holds the first run's data set. Raises UserError."""
    files.write_output(path, render(report, runs, _data_set_of(runs[0])))


def _data_set_of(run: Run) -> Dataset | None:
    """The data set in data/ if it is the run's; a damaged one only costs the pictures, and is said on standard error."""
    if not dataset.DATASET.exists():
        return None
    try:
        data = dataset.load()
    except UserError as damaged:
        print(f"no pictures: {printable(str(damaged))}", file=sys.stderr)
        return None
    same = data.digest == run.identity.data.digest and len(data.test_labels) == len(run.predictions)
    return data if same else None


def render(report: Report, runs: list[Run], data: Dataset | None) -> bytes:
    """The page; `data` must be the first run's data set, or None: then images are named by their numbers only."""
    drawings = figures.of(report, runs)
    comparable = [number for number, run in enumerate(runs, 1) if run.identity.data.digest == runs[0].identity.data.digest]
    cards, disagreements = _disagreements(runs, comparable, data)
    return offline.render(
        Path(__file__).parent,
        [plotly.offline.get_plotlyjs(), Path(__file__).with_name("page.js").read_text(encoding="utf-8")],
        [{"key": f.key, "data": f.data, "layout": f.layout, "wide": f.wide} for f in drawings if f.data],
        inline_styles=True,  # plotly.js gives every mark of a plot its own
        report=report,
        rows=wording.rows(report.runs),
        details=functools.partial(wording.details, report=report),
        colour=figures.colour,
        figures=drawings,
        cards=cards,
        disagreements=disagreements,
        comparable=comparable,
        classes=figures.class_names(runs),
        runs=runs,
        environments=_environments(runs),
    )


@dataclass(frozen=True)
class Card:
    """A test image on which runs disagree."""

    index: int
    actual: str
    picture: str | None
    """A PNG, in base64."""
    predictions: list[tuple[int, Prediction]]
    """By the runs' numbers."""


def _disagreements(runs: list[Run], comparable: list[int], data: Dataset | None) -> tuple[list[Card], int]:
    """The images on which runs of the same test set disagree, those that cost one of them a hit first; and how many they are.

    `comparable` has the numbers of those runs.
    """
    rows = zip(*(runs[number - 1].predictions for number in comparable), strict=True)
    disputed = [row for row in rows if len({p.predicted for p in row}) > 1]
    disputed.sort(key=lambda row: (all(p.predicted != p.actual for p in row), row[0].index))
    cards = [
        Card(
            row[0].index,
            row[0].actual,
            None if data is None else base64.b64encode(pictures.png(data.test_images[row[0].index])).decode(),
            list(zip(comparable, row, strict=True)),
        )
        for row in disputed[:SHOWN_DISAGREEMENTS]
    ]
    return cards, len(disputed)


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
    """What the runs are and where they computed: group -> rows."""
    groups: dict[str, list[dict[str, Any]]] = {
        "identity": [flattened(run.identity) for run in runs],
        "trained in": [msgspec.to_builtins(run.environment.train) or {} for run in runs],
        "evaluated in": [msgspec.to_builtins(run.environment.evaluate) or {} for run in runs],
    }
    return {
        group: [Row(key, [_fact(key, facts.get(key)) for facts in columns]) for key in dict.fromkeys(k for f in columns for k in f)]
        for group, columns in groups.items()
    }


def _fact(key: str, value: Any) -> str:
    if key == "peak_memory_bytes" and value is not None:
        return f"{value / 1e6:,.0f} MB"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else wording.known(value)
