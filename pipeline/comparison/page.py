"""The report as one HTML file that opens offline: plotly.js inside, and a policy in the page that forbids any request.

What comes from a run's files is text: Jinja escapes it in the page, `figures` in the plots, and no script can come of it,
for the policy names the page's own scripts by their SHA-256.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import numpy as np
import plotly.offline

from pipeline import files
from pipeline.comparison import figures, wording
from pipeline.comparison.report import Report
from pipeline.data import dataset
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError, printable
from pipeline.runs.kept import Run
from pipeline.runs.outputs import Prediction
from pipeline.runs.provenance import flattened

SHOWN_DISAGREEMENTS = 60


def write(path: Path, report: Report, runs: list[Run]) -> None:
    """Write the page; the pictures come from data/ where it holds the first run's data set. Raises UserError."""
    # Not every name of a folder can be written as UTF-8.
    files.write_output(path, render(report, runs, _data_set_of(runs[0])).encode(errors="replace"))


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


def render(report: Report, runs: list[Run], data: Dataset | None) -> str:
    """The page; `data` must be the first run's data set, or None: then images are named by their numbers only."""
    folder = Path(__file__).parent
    scripts = [plotly.offline.get_plotlyjs(), (folder / "page.js").read_text(encoding="utf-8")]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    drawings = figures.of(report, runs)
    comparable = [number for number, run in enumerate(runs, 1) if run.identity.data.digest == runs[0].identity.data.digest]
    cards, disagreements = _disagreements(runs, comparable, data)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((folder / "page.html").read_text(encoding="utf-8")).render(
        report=report,
        rows=wording.rows(report.runs),
        details=functools.partial(wording.details, report=report),
        colour=figures.colour,
        figures=drawings,
        drawn=_in_script([{"key": f.key, "data": f.data, "layout": f.layout, "wide": f.wide} for f in drawings if f.data]),
        scripts=scripts,
        policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
        cards=cards,
        disagreements=disagreements,
        comparable=comparable,
        classes=figures.class_names(runs),
        runs=runs,
        environments=_environments(runs),
    )


def _in_script(content: Any) -> str:
    """JSON for a script element, which only a "<" could end early."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


@dataclass(frozen=True)
class Card:
    """A test image on which runs disagree."""

    index: int
    actual: str
    picture: str | None
    """A data URI."""
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
            None if data is None else _picture(data.test_images[row[0].index]),
            list(zip(comparable, row, strict=True)),
        )
        for row in disputed[:SHOWN_DISAGREEMENTS]
    ]
    return cards, len(disputed)


def _picture(image: np.ndarray) -> str:
    """An image, uint8 [3, 32, 32], as the data URI of a PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


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
    return ", ".join(value) if isinstance(value, list | tuple) else wording.known(value)
