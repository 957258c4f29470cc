"""The audit of the requirements never calls good what it could not look up, and never waits for ever."""

from __future__ import annotations

import subprocess

import pytest

from tools import audit

KNOWN = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([KNOWN], 0, "audit: 0 known vulnerabilities in 1 packages; 0 could not be looked up\n"),
        ([KNOWN, UNKNOWN], 0, "audit: 0 known vulnerabilities in 1 packages; 1 could not be looked up\n"),
        (
            [KNOWN, BAD, UNKNOWN],
            1,
            "audit: b 2: CVE-2026-1, fixed in 3\naudit: 1 known vulnerabilities in 2 packages; 1 could not be looked up\n",
        ),
        ([UNKNOWN, UNKNOWN], 0, "audit: skipped, nothing was checked: not found on PyPI\n"),
    ],
)
def test_only_a_known_vulnerability_fails_and_what_was_not_looked_up_is_counted(packages, code, said, capsys):
    assert audit.judge(packages) == code
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: subprocess.CompletedProcess([], 1, "", "Traceback\nConnectionError: no route\n"), "ConnectionError: no route"),
        (lambda: subprocess.CompletedProcess([], 1, "", ""), "pip-audit said nothing"),
    ],
)
def test_advisories_that_cannot_be_reached_skip_the_check_with_the_reason(answer, said, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer())
    with pytest.raises(SystemExit) as end:
        audit.main()
    assert (end.value.code, capsys.readouterr().out) == (0, f"audit: skipped, nothing was checked: {said}\n")


def test_every_locked_package_is_asked_for_without_hashes_which_torch_has_not(monkeypatch):
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda *_, **named: asked.append(named["input"]) or subprocess.CompletedProcess([], 1, "", ""))
    with pytest.raises(SystemExit):
        audit.main()
    assert "--hash" not in asked[0]
    names = [line.split("==")[0] for line in asked[0].splitlines()]
    assert {"dvc", "numpy", "pytest", "torch", "torchvision"} <= set(names)
    assert len(names) > 100


def test_an_audit_that_gets_no_answer_ends_by_itself(monkeypatch, capsys):
    def hang(*_, timeout, **__):
        raise subprocess.TimeoutExpired("pip-audit", timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(SystemExit) as end:
        audit.main()
    assert (end.value.code, capsys.readouterr().out) == (0, "audit: skipped, nothing was checked: no answer in 60 seconds\n")
