"""`make results`: the table of results in results/README.md, from the kept runs in results/."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from pipeline import params
from pipeline.comparison import markdown, verdict, wording
from pipeline.params import Compare
from pipeline.runs import kept, provenance
from pipeline.runs.kept import Run
from pipeline.system.errors import UserError, printable
from tools import markers

RESULTS = Path("results")
PAGE = RESULTS / "README.md"
NAME = "results"
"""Of the block in that page."""
COLUMNS = ("device", "workers", "numerics", "accuracy", "loss", "fingerprint", "seconds an epoch")
NONE = "Nothing was measured yet."


def main() -> None:
    """Put the table into its page."""
    try:
        markers.replace(PAGE, NAME, block(RESULTS, params.load().compare))
    except UserError as error:
        sys.exit(f"error: {printable(str(error))}")
    print(f"{PAGE}: the table is that of {RESULTS}/")


def block(results: Path, settings: Compare) -> str:
    """A table for each set of runs that share data, seed, network and settings.

    Raises:
        UserError: a run is damaged.
    """
    sets: dict[str, list[Run]] = {}
    for folder in kept.listed(results):
        run = kept.load(folder)
        identity = run.identity
        shared = [identity.seed, msgspec.to_builtins(identity.train), msgspec.to_builtins(identity.network), identity.data.digest]
        sets.setdefault(json.dumps(shared, sort_keys=True), []).append(run)
    return "\n\n".join(_table(runs, settings) for runs in sets.values()) or NONE


def _table(runs: list[Run], settings: Compare) -> str:
    """A row a run; those with exact numerics first, each with its verdict against the first."""
    runs = sorted(runs, key=lambda run: (not run.identity.numerics.startswith("exact-"), run.identity.device or "", run.folder.name))
    verdicts = ["", *(verdict.compare(runs[0], other, settings).verdict for other in runs[1:])]
    shown = wording.rows([verdict.summarise(run, number) for number, run in enumerate(runs, 1)])
    columns = {
        name: list(map(markdown.code if name == "fingerprint" else markdown.escaped, shown[name])) for name in COLUMNS if name in shown
    }
    columns = {"device": columns.pop("device"), "threads, instructions": list(map(_trained_with, runs)), **columns}
    columns["against the first"] = list(verdicts)
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return "\n".join([_heading(runs[0]), "", *markdown.table(list(columns), rows)])


def _heading(run: Run) -> str:
    train = provenance.chosen(run.identity.recipe)
    said = [provenance.in_words(run.identity.network), run.identity.data.name, f"{len(run.predictions):,} test images"]
    said.append(f"seed {run.identity.seed}")
    return markdown.escaped(", ".join([*said, *(f"{key} {value}" for key, value in train.items() if key != "log_every")])) + ":"


def _trained_with(run: Run) -> str:
    """The CPU threads and instruction set of a run's training; they change the time, and native's bits."""
    trained = run.environment.train
    facts = (trained.threads, trained.cpu_capability) if trained else ()
    return markdown.escaped(", ".join(str(fact) for fact in facts if fact is not None))


if __name__ == "__main__":
    main()
