"""`make claims`: what was seen to give the same bits, from the records in results/machines/: the README's short table, and the page's."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.comparison import markdown
from pipeline.device import CPU
from pipeline.exact import VERSION
from pipeline.machine import demo
from pipeline.machine.records import RECORDS, Outcome, Record, read
from pipeline.system.errors import UserError
from tools import markers

README, PAGE = Path("README.md"), Path("docs/machines.md")
DEFINITION = "exact-numerics.md"
NOT_SEEN = "not seen yet"
SHOWN = 3
"""Machines a row at most."""


class Claim(NamedTuple):
    """What is said to change nothing, and what of a record shows it."""

    text: str
    reason: str
    section: str
    """Of the definition."""
    outcomes: Callable[[Record], list[Outcome]]
    """Those whose equality shows the claim; none where the record does not show it."""
    unseen: str = NOT_SEEN
    """What stands where no record shows it."""


def _on_cpu(record: Record) -> list[Outcome]:
    return [outcome for outcome in record.outcomes if outcome.device == CPU and not outcome.resumed_from]


def _twice(record: Record) -> list[Outcome]:
    """Outcomes of one setting, where there are at least two."""
    plain = [o for o in _on_cpu(record) if not o.settings and o.workers == 1 and o.evaluation_batch in (None, _first_batch(record))]
    same = [o for o in plain if o.threads == plain[0].threads]
    return same if len(same) > 1 else []


def _first_batch(record: Record) -> int | None:
    return next((o.evaluation_batch for o in record.outcomes if o.evaluation_batch), None)


def _several(value: Callable[[Outcome], object]) -> Callable[[Record], list[Outcome]]:
    """Outcomes on the CPU, where they have more than one value of this."""

    def outcomes(record: Record) -> list[Outcome]:
        known = [o for o in _on_cpu(record) if value(o) is not None]
        return known if len({value(o) for o in known}) > 1 else []

    return outcomes


def _if(condition: Callable[[Record], bool]) -> Callable[[Record], list[Outcome]]:
    return lambda record: _on_cpu(record) if condition(record) else []


def _x86(avx512: bool) -> Callable[[Record], list[Outcome]]:
    return _if(lambda record: record.architecture in ("x86_64", "AMD64") and ("avx512f" in record.instruction_sets) == avx512)


def _arm(macos: bool = False, emulated: bool = False) -> Callable[[Record], list[Outcome]]:
    return _if(
        lambda record: (
            record.architecture in ("aarch64", "arm64")
            and record.system.startswith("macOS") == macos
            and (record.emulator is not None) == emulated
        )
    )


def _on_gpu(resumed: bool) -> Callable[[Record], list[Outcome]]:
    return lambda record: [o for o in record.outcomes if o.device != CPU and bool(o.resumed_from) == resumed]


SUMS = "sums are exact in any order"
CLAIMS = (
    Claim("a second training", "nothing is drawn but by rule", "draws-the-order-of-the-images", _twice),
    Claim("any number of threads", SUMS, "the-bound-with-its-proof", _several(lambda o: o.threads)),
    Claim("PyTorch, oneDNN and MKL set to their oldest instructions", SUMS, "the-bound-with-its-proof",
          lambda record: [o for o in _on_cpu(record) if o.settings]),
    Claim("x86-64 with AVX-512", SUMS, "the-bound-with-its-proof", _x86(avx512=True)),
    Claim("x86-64 without AVX-512", SUMS, "the-bound-with-its-proof", _x86(avx512=False)),
    Claim("ARM64, emulated", "all that rounds is IEEE 754", "the-bound-with-its-proof", _arm(emulated=True)),
    Claim("ARM64, Linux", "all that rounds is IEEE 754", "the-bound-with-its-proof", _arm()),
    Claim("ARM64, macOS", "all that rounds is IEEE 754", "the-bound-with-its-proof", _arm(macos=True)),
    Claim("an NVIDIA GPU", SUMS, "the-bound-with-its-proof", _on_gpu(resumed=False),
          unseen="[read in PyTorch's machine code](gpu.md), not yet run"),
    Claim("begun on the CPU, ended on a GPU", "a checkpoint is all that a step reads", "the-update", _on_gpu(resumed=True)),
    Claim("any batch size in evaluation", "an image has grids of its own", "grids", _several(lambda o: o.evaluation_batch)),
    Claim("any number of workers", "integers are added, and rounded once", "backward", _several(lambda o: o.workers)),
    Claim("the project's container image", SUMS, "the-bound-with-its-proof", _if(lambda record: record.image is not None)),
)  # fmt: skip


def main() -> None:
    """Put the tables into their pages; exit code 2 if that cannot be."""
    try:
        records = load(Path(RECORDS))
        markers.replace(README, "claims", short(records))
        markers.replace(PAGE, "claims", table(records))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{README} and {PAGE}: the tables are those of {len(records)} records in {RECORDS}/")


def load(folder: Path) -> list[Record]:
    """The records in a folder that are of this version's numerics, the newest first; says which are not.

    Raises:
        UserError: one is damaged.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        record = read(path)
        if (record.numerics, record.expected) == (VERSION, demo.FINGERPRINT):
            records.append(record)
        else:
            print(f"{path}: of {record.numerics}, fingerprint {record.expected:.12}: no evidence for this version", file=sys.stderr)
    return sorted(records, key=lambda record: record.date, reverse=True)


def short(records: list[Record]) -> str:
    """The README's table: a row for every claim, and on how many machines it was seen."""
    evaluation = _usual(outcome.evaluation for record in records for outcome in record.outcomes)
    rows = []
    for claim in CLAIMS:
        same, other = _machines(claim, records, evaluation)
        count = len({name.rpartition(",")[0] for name in same})
        seen = f"on {count} machine{'s' * (count > 1)}" if count else claim.unseen.replace("](", "](docs/")
        rows.append([claim.text, f"**NOT on {len(other)}**" if other else seen])
    rows.append(["another release of PyTorch", _seen_releases(records, evaluation)])
    return "\n".join(markdown.table(["the same bits for", f"[seen]({PAGE})"], rows))


def table(records: list[Record]) -> str:
    """The page's table: a row for every claim, seen or not, why it holds, and the machines."""
    evaluation = _usual(outcome.evaluation for record in records for outcome in record.outcomes)
    rows = [
        [claim.text, f"[{claim.reason}]({DEFINITION}#{claim.section})", _seen(claim, records, evaluation)]
        for claim in CLAIMS
    ]  # fmt: skip
    rows.append(["another release of PyTorch", f"[{SUMS}]({DEFINITION}#the-bound-with-its-proof)", _seen_releases(records, evaluation)])
    return "\n".join(markdown.table(["the same bits for", "why it holds", "seen on"], rows))


def _seen_releases(records: list[Record], evaluation: str | None) -> str:
    releases = sorted({_release(record) for record in records if _right(record.outcomes, evaluation)}, key=_numbers)
    return f"PyTorch {', '.join(releases)}" if len(releases) > 1 else NOT_SEEN


def _machines(claim: Claim, records: list[Record], evaluation: str | None) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The machines that show the claim, and those that contradict it, the newest first, each with releases of PyTorch."""
    same: dict[str, set[str]] = {}
    other: dict[str, set[str]] = {}
    for record in records:
        if outcomes := claim.outcomes(record):
            seen = same if _right(outcomes, evaluation) else other
            seen.setdefault(_machine(record, outcomes[0]), set()).add(_release(record))
    return same, other


def _seen(claim: Claim, records: list[Record], evaluation: str | None) -> str:
    """The machines that show the claim; those that contradict it before all others, by name."""
    same, other = _machines(claim, records, evaluation)
    names = [*(f"**NOT on** {name}" for name in _with_releases(other)), *_with_releases(same)[:SHOWN]]
    more = [f"and {len(same) - SHOWN} more"] if len(same) > SHOWN else []
    return "<br>".join([*names, *more]) or claim.unseen


def _with_releases(seen: dict[str, set[str]]) -> list[str]:
    """Machines and dates, with the releases of PyTorch."""
    return [f"{machine}, PyTorch {', '.join(sorted(releases, key=_numbers))}" for machine, releases in seen.items()]


def _right(outcomes: Iterable[Outcome], evaluation: str | None) -> bool:
    return all(outcome.fingerprint == demo.FINGERPRINT and outcome.evaluation in (None, evaluation) for outcome in outcomes)


def _usual(evaluations: Iterable[str | None]) -> str | None:
    counted = Counter(filter(None, evaluations)).most_common(1)
    return counted[0][0] if counted else None


def _machine(record: Record, outcome: Outcome) -> str:
    """The processor or GPU, without what its maker adds to every name, and the date."""
    name = re.sub(r"\((R|TM)\)| (CPU|Processor)\b", "", record.accelerators.get(outcome.device, record.processor))
    emulated = "emulated: " if record.emulator else ""
    return markdown.escaped(f"{emulated}{name}, {record.date}")


def _release(record: Record) -> str:
    return markdown.escaped(record.torch.partition("+")[0])


def _numbers(release: str) -> list[int]:
    return [int(part) for part in release.split(".") if part.isdigit()]


if __name__ == "__main__":
    main()
