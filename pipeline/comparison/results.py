"""The README's table of results, from the kept runs in results/: no row that was not measured."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from pipeline import files
from pipeline.comparison import terminal, verdict
from pipeline.errors import UserError
from pipeline.params import Compare
from pipeline.runs import kept
from pipeline.runs.kept import Run

RESULTS = Path("results")
README = Path("README.md")
BEGIN, END = "<!-- results: made by `make results` -->", "<!-- /results -->"
NONE = "Nothing was measured yet."


def block(results: Path, settings: Compare) -> str:
    """What stands between the markers: a table for each set of runs that share all but device and numerics.

    Raises:
        UserError: a run is damaged.
    """
    sets: dict[str, list[Run]] = {}
    for folder in kept.listed(results):
        made = kept.load(folder)
        identity = made.identity
        shared = [identity.seed, msgspec.to_builtins(identity.train), identity.data.digest]
        sets.setdefault(json.dumps(shared, sort_keys=True), []).append(made)
    return "\n\n".join(_table(runs, settings) for runs in sets.values()) or NONE


def _table(runs: list[Run], settings: Compare) -> str:
    """A row a run; those with exact numerics first, each with its verdict against the first."""
    runs = sorted(runs, key=lambda made: (not made.identity.numerics.startswith("exact-"), made.identity.device or "", made.folder.name))
    verdicts = ["", *(verdict.compare(runs[0], other, settings).verdict for other in runs[1:])]
    identity, one = runs[0].identity, terminal.escaped
    settings_of_training = msgspec.to_builtins(identity.train)
    heading = (
        f"{one(identity.data.name)}, {len(runs[0].predictions):,} test images, seed {identity.seed}, "
        + ", ".join(f"{one(str(key))} {one(str(value))}" for key, value in settings_of_training.items() if key != "log_every")
        + ":"
    )
    names = ["device", "numerics", "accuracy", "loss", "fingerprint", "seconds an epoch"]
    rows = []
    for number, (made, word) in enumerate(zip(runs, verdicts, strict=True), 1):
        summary = verdict.summarise(made, number)
        cells = {name: terminal.FIELDS[name](summary) for name in names}
        shown = [terminal.code(v) if k == "fingerprint" else one(v) for k, v in cells.items()]
        rows.append([shown[0], one(_trained_with(made)), *shown[1:], word])
    return "\n".join([heading, "", *terminal.table([names[0], "threads, instructions", *names[1:], "against the first"], rows)])


def _trained_with(made: Run) -> str:
    """The CPU threads and instruction set of a run's training; they change the time, and native's bits."""
    facts = made.environment.train
    return ", ".join(str(fact) for fact in (facts and facts.threads, facts and facts.cpu_capability) if fact is not None)


def in_readme(text: str) -> tuple[str, str, str]:
    """The README before the block, the block, and the README after it, markers left out. Raises UserError."""
    before, begin, rest = text.partition(BEGIN)
    found, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{README}: the markers '{BEGIN}' and '{END}' are missing; put them where the table goes")
    return before, found.strip("\n"), after


def rewrite(settings: Compare, readme: Path = README, results: Path = RESULTS) -> None:
    """Put the block into the README. Raises UserError as the others do."""
    before, _, after = in_readme(readme.read_text(encoding="utf-8"))
    files.write_text(readme, f"{before}{BEGIN}\n{block(results, settings)}\n{END}{after}")
