"""The report as JSON, for a program: all its figures, and the reason for each verdict."""

from __future__ import annotations

import json

import msgspec

from pipeline.comparison import wording
from pipeline.comparison.report import Report


def render(report: Report) -> str:
    """The report's fields by their names; each pair has its reason in words too."""
    content = msgspec.to_builtins(report)
    pairs = [fields | {"reason": wording.reason(pair, report)} for fields, pair in zip(content["pairs"], report.pairs, strict=True)]
    return json.dumps(content | {"pairs": pairs}, indent=2, allow_nan=False)
