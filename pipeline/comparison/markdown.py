"""The report as markdown, for a pull request."""

from __future__ import annotations

import re

from pipeline.comparison import wording
from pipeline.comparison.report import Report, Verdict
from pipeline.system.errors import printable

_COMMIT = re.compile(r"(?i)(?<![0-9a-z])(?:(?<!\.)|(?=\d*[a-f]))[0-9a-f]{7,}(?![0-9a-z])")
"""What may be a commit's name; the digits behind a point are a number's."""
MARKS: dict[Verdict, str] = {"identical": "✅", "equivalent": "🟰", "undecided": "❔", "different": "❌"}


def render(report: Report) -> str:
    """The table and each pair's verdict."""
    head = ["run", *(str(run.number) for run in report.runs)]
    body = [[name, *map(code if name in ("name", "fingerprint") else escaped, cells)] for name, cells in wording.rows(report.runs).items()]
    lines = [f"**Verdict: {MARKS[report.verdict]} {report.verdict}**", "", *table(head, body)]
    for pair in report.pairs:
        lines += ["", f"**{pair.second} against {pair.first}: {MARKS[pair.verdict]} {pair.verdict}**", ""]
        lines += [f"- {escaped(line)}" for line in wording.details(pair, report)]
    return "\n".join(lines) + "\n"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table whose cells are markdown already."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def escaped(text: str) -> str:
    """`text` as markdown that shows it as it is, and does nothing on GitHub: no link, no mention, no reference to an issue or a commit.

    GitHub looks for those in the text that is shown, where no backslash stands any more, so they are broken by a space without width.
    """
    text = re.sub(r"([\\`*_{}\[\]<>#|~&@])", r"\\\1", printable(text))
    text = re.sub(r"(?i)([@#]|:(?=//)|www(?=\.)|gh-(?=\d))", r"\1&#8203;", text)
    return _COMMIT.sub(lambda found: re.sub(r"(.{6})(?=.)", r"\1&#8203;", found[0]), text)


def code(text: str) -> str:
    """`text` as code; what would end it, or a table's cell, is replaced."""
    return "`" + re.sub(r"[`|]", "\N{REPLACEMENT CHARACTER}", printable(text)) + "`"
