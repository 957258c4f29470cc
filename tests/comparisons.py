"""What the tests of `compare` share: its reports of made-up runs, and runs that were changed so that only their content tells."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import params
from pipeline.comparison import verdict, wording
from pipeline.comparison.report import Pair, Report
from pipeline.runs import outputs
from pipeline.runs.kept import IDENTITY
from pipeline.runs.outputs import HISTORY, METRICS, MODEL, PARTS
from pipeline.system import tensors
from pipeline.system.errors import UserError
from tests.conftest import ROOT
from tests.kept_runs import DATA, replaced

SETTINGS = params.load(ROOT / params.PARAMS).compare
OTHER_DATA = replaced(DATA, {"digest": "e" * 64})
Compare = Callable[..., tuple[int, str, str]]


def report_of(*folders: Path) -> Report:
    return verdict.report(verdict.load(list(folders)), SETTINGS)


def pair_of(first: Path, second: Path) -> Pair:
    return report_of(first, second).pairs[0]


def reason_of(first: Path, second: Path) -> str:
    report = report_of(first, second)
    return wording.reason(report.pairs[0], report)


def agree(folder: Path) -> None:
    """Make all that vouches for a run's files agree with what can be read of them, so that only their content can give it away."""
    metrics, identity = ({"path": folder / name, "content": _object(folder / name)} for name in (METRICS, IDENTITY))
    with contextlib.suppress(tensors.Damaged, KeyError, ValueError):
        layers, metadata = tensors.read(folder / MODEL)
        training = json.loads(metadata["training"])
        training["provenance"] = {key: identity["content"].get(key, value) for key, value in training["provenance"].items()}
        training["history"] = hashlib.sha256((folder / HISTORY).read_bytes()).hexdigest()
        tensors.write(folder / MODEL, layers, ("training", json.dumps(training)))
        for noted in (metrics, identity):
            noted["content"] |= {"fingerprint": tensors.fingerprint(layers)} if noted["content"] else {}
    with contextlib.suppress(UserError):
        rows = outputs.read_predictions(folder)
        hits = {name: [p.predicted == name for p in rows if p.actual == name] for name in {p.actual for p in rows}}
        of_class = {name: sum(of) / len(of) for name, of in hits.items()}
        if metrics["content"]:
            metrics["content"] |= {"accuracy": sum(map(sum, hits.values())) / len(rows), "accuracy_per_class": of_class}
    if metrics["content"]:
        metrics["path"].write_text(json.dumps(metrics["content"]))
    if identity["content"]:
        sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in PARTS}
        identity["path"].write_text(json.dumps(identity["content"] | {"files": sums}))


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one."""
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    return {}
