"""A report -> the terminal, at any width, and markdown for a pull request."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.comparison.verdict import LossPair, Pair, Report, Summary, Verdict
from pipeline.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

STYLES: dict[Verdict, str] = {"identical": "bold green", "equivalent": "bold cyan", "different": "bold red"}
COLUMN = 18
"""Characters that a run's column needs at least."""


def seconds(value: float | None) -> str:
    """The seconds that an epoch took, as text."""
    return "not known" if value is None else f"{value:.3g}"


FIELDS: dict[str, Callable[[Summary], str]] = {
    "name": lambda s: s.name,
    "data": lambda s: f"{s.data}, {s.images:,} test images",
    "device": lambda s: ": ".join([s.device or "not known", *filter(None, [s.hardware if s.device else None])]),
    "numerics": lambda s: s.numerics,
    "seed": lambda s: str(s.seed),
    "loss": lambda s: f"{s.loss:.6f}",
    "accuracy": lambda s: f"{s.accuracy:.2%}",
    "worst class": lambda s: f"{s.worst_class} {s.worst_class_accuracy:.2%}",
    "fingerprint": lambda s: s.fingerprint[:12],
    "seconds an epoch": lambda s: seconds(s.seconds_per_epoch),
}
"""The table's rows."""


def show(report: Report, console: Console) -> None:
    """Print the table, a column a run, in as many blocks as the width asks for, then each pair's verdict."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    label = max(map(len, FIELDS)) + 2
    per_block = max(1, (console.width - label) // (COLUMN + 2))
    for start in range(0, len(report.runs), per_block):
        block = report.runs[start : start + per_block]
        width = min((console.width - label) // len(block) - 2, 48)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
        for heading in ("run", *(str(summary.number) for summary in block)):
            table.add_column(heading, overflow="fold")
        for name, text in FIELDS.items():
            table.add_row(name, *(Text(_wrapped(text(summary), width)) for summary in block))
        console.print(table)
        console.print()
    for pair in report.pairs:
        console.print(Text(f"{pair.second} against {pair.first}: "), Text(pair.verdict, STYLES[pair.verdict]), sep="")
        for line in details(pair):
            console.print(Text(textwrap.fill(printable(line), console.width, initial_indent="  ", subsequent_indent="    ")))
    if len(report.pairs) > 1:
        console.print(Text("\nall: "), Text(report.verdict, STYLES[report.verdict]), sep="")


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(printable(text), max(width, 8)))


def details(pair: Pair) -> list[str]:
    """What stands beside a pair's verdict, a sentence a line."""
    lines = [pair.reason]
    shown = [f"{d.field} {d.first} and {d.second}" for d in pair.differences if d.field in ("device", "numerics")]
    if pair.code_differs:
        shown.append("the code that made them")
    if shown:
        lines.append("apart by: " + ", ".join(shown))
    return [*lines, _weights(pair), _losses(pair), _predictions(pair)]


def _weights(pair: Pair) -> str:
    weights = pair.weights
    if weights.unlike:
        return "weights: not alike: " + "; ".join(weights.unlike)
    if weights.tensor is None:
        return "weights: equal"
    return f"weights: largest relative difference {weights.largest_relative:.2g}, in {weights.tensor}"


def _losses(pair: Pair) -> str:
    losses = pair.losses
    if losses.parting is None or losses.middle is None or losses.last is None or losses.largest is None:
        line = f"losses: equal at all {losses.steps} logged steps"
    else:

        def at(found: LossPair) -> str:
            return f"{found.relative:.2g} at step {found.step}"

        line = (
            f"losses: part at step {losses.parting.step} ({losses.parting.first!r} and {losses.parting.second!r}); relative difference "
            f"{at(losses.parting)}, {at(losses.middle)}, {at(losses.last)}, at most {at(losses.largest)}"
        )
    return line + (f"; {losses.unlike}" if losses.unlike else "")


def _predictions(pair: Pair) -> str:
    found = pair.predictions
    if found is None:
        return "predictions: of other test images, so not compared one by one"
    p = f"= {found.mcnemar_p:.3g}" if found.mcnemar_p >= 1e-300 else "< 1e-300"
    return (
        f"predictions: {share(found.equal_share)} equal; accuracy {found.difference_points:+.2f} points "
        f"({found.low_points:+.2f} to {found.high_points:+.2f}); right only in {pair.first}: {found.only_first}, "
        f"only in {pair.second}: {found.only_second}; McNemar's exact test p {p}"
    )


def share(part: float) -> str:
    """A share in percent that says 100 % only where it is all, and 0 % only where it is none."""
    if part in (0, 1):
        return f"{part:.0%}".replace("%", " %")
    return f"{min(max(100 * part, 0.01), 99.99):.2f} %"


MARKS: dict[Verdict, str] = {"identical": "✅", "equivalent": "🟰", "different": "❌"}


def markdown(report: Report) -> str:
    """The report for a pull request."""
    head = ["run", *(f"{s.number}" for s in report.runs)]
    rows = []
    for name, text in FIELDS.items():
        cells = [text(s) for s in report.runs]
        rows.append([name, *(map(code, cells) if name in ("name", "fingerprint") else map(escaped, cells))])
    lines = [f"**Verdict: {MARKS[report.verdict]} {report.verdict}**", "", *table(head, rows)]
    for pair in report.pairs:
        lines += ["", f"**{pair.second} against {pair.first}: {MARKS[pair.verdict]} {pair.verdict}**", ""]
        lines += [f"- {escaped(line)}" for line in details(pair)]
    return "\n".join(lines) + "\n"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a markdown table whose cells are markdown already."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def escaped(text: str) -> str:
    """`text` as markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&@])", r"\\\1", printable(text))


def code(text: str) -> str:
    """`text` as code in markdown; what would end it, or a table's cell, goes."""
    return "`" + re.sub(r"[`|]", "\N{REPLACEMENT CHARACTER}", printable(text)) + "`"
