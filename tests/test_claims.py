"""The tables of machines: a row for every claim, seen only where a record shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pipeline.exact import VERSION
from pipeline.machine import demo, records
from pipeline.machine.records import OLDEST_INSTRUCTIONS, Outcome, Record
from pipeline.system.errors import UserError
from tools import claims, markers

ROOT = Path(__file__).parent.parent
RIGHT, WRONG = demo.FINGERPRINT, "0" * 64


def outcome(name: str = "a", **given) -> Outcome:
    return Outcome(**{"name": name, "device": "cpu", "threads": 2, "fingerprint": RIGHT, **given})


def record(*outcomes: Outcome, **given) -> Record:
    return Record(**{
        "format": 1, "date": "2026-01-02", "revision": "0123456789ab", "numerics": VERSION, "expected": RIGHT, "architecture": "x86_64",
        "processor": "Z80", "instruction_sets": ["avx2"], "cpus": 2, "system": "Plan 9", "python": "3.11.0", "torch": "2.14.1+cu130",
        "outcomes": list(outcomes) or [outcome()], **given,
    })  # fmt: skip


def seen(*records: Record) -> dict[str, str]:
    """Claim -> where it was seen, of the claims that were."""
    rows = [line.split(" | ") for line in claims.table(list(records)).splitlines()[2:]]
    unseen = {claims.NOT_SEEN, *(claim.unseen for claim in claims.CLAIMS)}
    return {row[0].removeprefix("| "): where for row in rows if (where := row[2].removesuffix(" |")) not in unseen}


HERE = "Z80, 2026-01-02, PyTorch 2.14.1"


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        (record(), {"x86-64 without AVX-512": HERE}),
        (record(instruction_sets=["avx2", "avx512f"]), {"x86-64 with AVX-512": HERE}),
        (record(architecture="aarch64"), {"ARM64, Linux": HERE}),
        (record(architecture="aarch64", emulator="QEMU", processor="QEMU"), {"ARM64, emulated": f"emulated: QEMU{HERE[3:]}"}),
        (record(architecture="arm64", system="macOS 15.1"), {"ARM64, macOS": HERE}),
        (record(outcome(), outcome(), architecture="riscv"), {"a second training": HERE}),
        (record(outcome(), outcome(evaluation="e", evaluation_batch=1), architecture="riscv"), {"a second training": HERE}),
        (record(outcome(), outcome(threads=1), architecture="riscv"), {"any number of threads": HERE}),
        (record(outcome(threads=None), outcome(threads=1), architecture="riscv"), {}),
        (record(outcome(settings=OLDEST_INSTRUCTIONS), architecture="riscv"),
         {"PyTorch, oneDNN and MKL set to their oldest instructions": HERE}),
        (record(outcome(workers=3), outcome(), architecture="riscv"), {"any number of workers": HERE}),
        (record(outcome(evaluation="e", evaluation_batch=1), outcome(evaluation="e", evaluation_batch=7, threads=2), architecture="riscv"),
         {"any batch size in evaluation": HERE}),
        (record(outcome(device="cuda:0", threads=None), architecture="riscv", accelerators={"cuda:0": "H100"}),
         {"an NVIDIA GPU": f"H100{HERE[3:]}"}),
        (record(outcome(device="cuda:0", threads=None, resumed_from="cpu"), architecture="riscv", accelerators={"cuda:0": "H100"}),
         {"begun on the CPU, ended on a GPU": f"H100{HERE[3:]}"}),
        (record(architecture="riscv", image="cpu"), {"the project's container image": HERE}),
        (record(processor="Zilog(R) Z80(TM) CPU 4 MHz Processor"), {"x86-64 without AVX-512": f"Zilog Z80 4 MHz{HERE[3:]}"}),
    ],
)  # fmt: skip
def test_a_record_shows_exactly_its_claims(given, rows):
    assert seen(given) == rows


def test_another_release_of_pytorch_is_seen_once_two_gave_the_same():
    assert "another release of PyTorch" not in seen(record(), record(date="2026-01-03"))
    assert "another release of PyTorch" not in seen(record(), record(outcome(fingerprint=WRONG), torch="2.9.1"))
    both = seen(record(), record(torch="2.9.1"))
    assert both["another release of PyTorch"] == "PyTorch 2.9.1, 2.14.1"
    assert both["x86-64 without AVX-512"] == "Z80, 2026-01-02, PyTorch 2.9.1, 2.14.1", "one machine is shown once"


def test_a_record_that_contradicts_a_claim_is_named_before_all_others():
    other = record(outcome(fingerprint=WRONG), processor="6502")
    assert seen(record(), other)["x86-64 without AVX-512"] == f"**NOT on** 6502{HERE[3:]}<br>{HERE}"


def test_an_evaluation_that_is_not_that_of_the_other_machines_contradicts_the_claim():
    one = [outcome(evaluation="e", evaluation_batch=batch) for batch in (1, 7)]
    two = [outcome(evaluation="f", evaluation_batch=batch) for batch in (1, 7)]
    table = seen(record(*one), record(*one, processor="8080"), record(*two, processor="6502"))
    assert table["any batch size in evaluation"].startswith("**NOT on** 6502")


def test_a_row_shows_each_machine_once_and_three_at_most():
    records = [record(processor=f"CPU {number}") for number in (1, 2, 3, 4, 5, 5)]
    assert seen(*records)["x86-64 without AVX-512"] == "<br>".join(f"CPU {n}{HERE[3:]}" for n in (1, 2, 3)) + "<br>and 2 more"


def test_records_of_another_version_are_no_evidence_and_said(tmp_path, capsys):
    for name, given in {"old": record(numerics="exact-1"), "b": record(date="2026-02-01"), "a": record()}.items():
        records.write(tmp_path / f"{name}.json", given)
    assert [each.date for each in claims.load(tmp_path)] == ["2026-02-01", "2026-01-02"]
    assert capsys.readouterr().err == f"{tmp_path}/old.json: of exact-1, fingerprint {RIGHT:.12}: no evidence for this version\n"
    (tmp_path / "old.json").write_text("{")
    with pytest.raises(UserError, match=r"old\.json: damaged"):
        claims.load(tmp_path)


def test_what_a_record_says_is_shown_as_it_is_and_does_nothing():
    hostile = record(processor="a|b <img src=x> @someone https://example.com [x](y)", torch="2.14.1|<b>")
    (row,) = (line for line in claims.table([hostile]).splitlines() if "example" in line)
    assert row.replace("\\|", "").count("|") == 4
    assert r"a\|b \<img src=x\> \@&#8203;someone https:&#8203;//example.com \[x\](y), 2026-01-02, PyTorch 2.14.1\|\<b\>" in row


def test_the_tables_are_those_of_the_records():
    found = claims.load(ROOT / records.RECORDS)
    assert markers.read(ROOT / claims.README, "claims") == claims.short(found)
    assert markers.read(ROOT / claims.PAGE, "claims") == claims.table(found)


def test_the_short_table_counts_machines_and_says_what_contradicts_a_claim():
    def row(*records: Record, text: str = "x86-64 without AVX-512") -> str:
        (found,) = (line for line in claims.short(list(records)).splitlines() if line.startswith(f"| {text} |"))
        return found.removeprefix(f"| {text} | ").removesuffix(" |")

    assert row() == "not seen yet"
    assert row(text="an NVIDIA GPU") == "[read in PyTorch's machine code](docs/gpu.md), not yet run"
    assert row(record()) == row(record(), record(date="2026-01-03")) == "on 1 machine"
    assert row(record(), record(processor="8080")) == "on 2 machines"
    assert row(record(), record(outcome(fingerprint=WRONG), processor="6502")) == "**NOT on 1**"


def test_every_section_that_a_claim_refers_to_is_in_the_definition():
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / claims.DEFINITION).read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert {claim.section for claim in claims.CLAIMS} - anchors == set()


def test_every_record_in_results_is_whole_and_right():
    for path in (ROOT / records.RECORDS).glob("*.json"):
        given = records.read(path)
        assert {each.fingerprint for each in given.outcomes} == {given.expected}, path


def test_a_record_says_nothing_of_whose_machine_it_is(monkeypatch):
    for name, value in {"HOSTNAME": "secret-host", "USER": "secret-user", "HOME": "/secret-home"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("platform.node", lambda: "secret-host")
    given = records.describe(RIGHT, [outcome()])
    text = msgspec.json.encode(given).decode()
    assert "secret" not in text
    assert str(Path.cwd()) not in text
    assert (given.numerics, given.cpus > 0, given.emulator, bool(given.processor)) == (VERSION, True, None, True)
    assert re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)*", given.slug())


def test_a_record_is_read_as_it_was_written(tmp_path):
    given = record(outcome(settings=OLDEST_INSTRUCTIONS, evaluation="e", evaluation_batch=7), accelerators={"cuda:0": "H100"})
    records.write(tmp_path / "record.json", given)
    assert records.read(tmp_path / "record.json") == given


def test_on_macos_a_record_names_the_processor_and_the_system_as_apple_does(monkeypatch):
    asked = []

    def sysctl(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "Apple M9\n", "")

    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(records.subprocess, "run", sysctl)
    monkeypatch.setattr(records.revision, "describe", lambda folder: None)
    given = records.describe(RIGHT, [outcome()])
    assert (given.processor, given.system, asked) == ("Apple M9", "macOS 15.1", [["sysctl", "-n", "machdep.cpu.brand_string"]])


def test_every_module_is_imported_where_linuxs_own_calls_and_files_are_missing():
    code = """
import os, pathlib, pkgutil, importlib, sys
del os.sched_getaffinity, os.sched_setaffinity, os.posix_fadvise, os.posix_fallocate, os.pipe2, os.sendfile
for name in ("spwd", "nis", "ossaudiodev"):
    sys.modules[name] = None
import pipeline
def opened(path, *_, open=open, **__):
    assert not str(path).startswith(("/proc", "/sys")), path
    return open(path, *_, **__)
importlib.import_module("builtins").open = opened
for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from pipeline import device
assert device.cpu_limit() >= 1
print("imported")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr
