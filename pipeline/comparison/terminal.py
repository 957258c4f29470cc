"""The report on a terminal, at any width."""

from __future__ import annotations

import textwrap

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.comparison import wording
from pipeline.comparison.report import Report, Verdict
from pipeline.system.errors import printable

STYLES: dict[Verdict, str] = {"identical": "bold green", "equivalent": "bold cyan", "undecided": "bold yellow", "different": "bold red"}
COLUMN = 18
"""Characters that a run's column needs at least."""
NARROWEST = 40
"""Characters of a line; a terminal that is narrower breaks it."""


def show(report: Report) -> None:
    """Print the table, a column a run, in as many blocks as the width asks for, then each pair's verdict."""
    console = Console(highlight=False)
    console.width = max(console.width, NARROWEST)
    rows = wording.rows(report.runs)
    label = max(map(len, rows)) + 2
    per_block = max(1, (console.width - label) // (COLUMN + 2))
    for start in range(0, len(report.runs), per_block):
        block = slice(start, start + per_block)
        width = min((console.width - label) // len(report.runs[block]) - 2, 48)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
        for heading in ("run", *(str(run.number) for run in report.runs[block])):
            table.add_column(heading, overflow="fold")
        for name, cells in rows.items():
            table.add_row(name, *(Text(_wrapped(cell, width)) for cell in cells[block]))
        console.print(table)
        console.print()
    for pair in report.pairs:
        console.print(Text(f"{pair.second} against {pair.first}: "), Text(pair.verdict, STYLES[pair.verdict]), sep="")
        for line in wording.details(pair, report):
            console.print(Text(textwrap.fill(printable(line), console.width, initial_indent="  ", subsequent_indent="    ")))
    if len(report.pairs) > 1:
        console.print(Text("\nall: "), Text(report.verdict, STYLES[report.verdict]), sep="")


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(printable(text), max(width, 8)))
