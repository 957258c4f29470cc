"""GitHub's workflows, as far as they can be tried without GitHub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT

FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
WORKFLOWS: dict[str, Any] = {path.stem: YAML(typ="safe").load(path) for path in FILES}


def steps(workflow: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]


def test_actionlint_finds_nothing():
    program = shutil.which("actionlint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("actionlint is not installed")
    done = subprocess.run([program, *FILES], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_checkout_has_the_whole_history_which_the_test_of_provenance_needs():
    checkouts = [
        step["with"]["fetch-depth"] for name in WORKFLOWS for step in steps(name) if step.get("uses", "").startswith("actions/checkout@")
    ]
    assert len(checkouts) >= len(WORKFLOWS) == 3
    assert set(checkouts) == {0}


def test_the_tests_run_on_x86_64_arm64_and_macos_with_the_oldest_python_that_is_supported():
    matrix = WORKFLOWS["ci"]["jobs"]["processors"]["strategy"]["matrix"]
    assert matrix["machine"] == ["ubuntu-latest", "ubuntu-24.04-arm", "macos-latest"]
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert min(matrix["python"]) == oldest == "3.11"


def test_no_job_that_runs_a_pull_requests_code_holds_a_token_that_may_write():
    of_pull_requests = {name: workflow for name, workflow in WORKFLOWS.items() if "pull_request" in workflow["on"]}
    assert set(of_pull_requests) == {"ci", "compare"}
    writing = []
    for name, workflow in of_pull_requests.items():
        for job, described in workflow["jobs"].items():
            allowed = {**workflow["permissions"], **described.get("permissions", {})}
            if "write" in allowed.values():
                writing.append((name, job))
                assert all("uses" not in step and "${{" not in step["run"] for step in described["steps"])
    assert writing == [("compare", "post")]
    assert all(
        step["with"]["persist-credentials"] is False for name in WORKFLOWS for step in steps(name) if "checkout" in step.get("uses", "")
    )


def test_a_workflow_that_never_ran_says_so():
    for path in FILES:
        assert "Never run so far" in path.read_text().split("name:")[0], path


@pytest.mark.parametrize(
    ("runs", "code", "ended", "posted"),
    [
        (0, 0, 0, "results/ holds fewer than two runs, so there is nothing to compare.\n"),
        (1, 0, 0, "results/ holds fewer than two runs, so there is nothing to compare.\n"),
        (2, 0, 0, "-m pipeline compare --markdown results/run0 results/run1\n"),
        (2, 3, 0, "-m pipeline compare --markdown results/run0 results/run1\n"),
        (2, 1, 1, "-m pipeline compare --markdown results/run0 results/run1\n"),
        (2, 2, 1, "-m pipeline compare --markdown results/run0 results/run1\n"),
    ],
)
def test_a_pull_request_is_answered_with_what_compare_says_and_only_an_error_fails(tmp_path, runs, code, ended, posted):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@"; exit {code}\n')
    python.chmod(0o755)
    (tmp_path / "results" / "machines").mkdir(parents=True)
    for number in range(runs):
        (tmp_path / "results" / f"run{number}").mkdir()
        (tmp_path / "results" / f"run{number}" / "run.json").touch()
    (script,) = (step["run"] for step in steps("compare") if step.get("name") == "Compare the kept runs")
    environment = {**os.environ, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    # as GitHub starts a step's script
    done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == ended, done.stderr
    assert (tmp_path / "comparison.md").read_text() == posted
    assert (tmp_path / "summary.md").exists() == (ended == 0)
