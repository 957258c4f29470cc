"""Every run and every machine's record in results/ comes from a commit of this history, as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.machine.records import RECORDS

ROOT = Path(__file__).parent.parent
STAGES = {"code": "train", "evaluation_code": "evaluate"}
"""Key of run.json -> the stage whose sources it is the digest of."""


def git(repository: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", repository, *arguments], capture_output=True, check=False)


def why_no_history(repository: Path) -> str | None:
    """Why commits cannot be looked up here, or None."""
    shallow = git(repository, "rev-parse", "--is-shallow-repository").stdout.strip()
    if shallow == b"true":
        return "this clone is shallow: git fetch --unshallow"
    return None if shallow == b"false" else "this is no Git repository"


def revision_problem(revision: str | None, repository: Path) -> str | None:
    """Why `revision` is not a clean commit of the history that HEAD has, or None."""
    if revision is None or revision.endswith("-dirty"):
        return f"{revision} is no clean commit"
    if git(repository, "merge-base", "--is-ancestor", "--end-of-options", f"{revision}^{{commit}}", "HEAD").returncode:
        return f"{revision} is no commit of this history"
    return None


def digests_at(revision: str, repository: Path, folder: Path) -> dict[str, str]:
    """Stage -> the digest of its sources as that commit defines and computes it."""
    if not folder.exists():
        archive = git(repository, "archive", revision, "pipeline")
        folder.mkdir()
        subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
    code = f"from pipeline import sources\nfor stage in {list(STAGES.values())}: print(sources.digest(stage))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return dict(zip(STAGES.values(), done.stdout.split(), strict=True))


def run_problem(identity: dict, repository: Path, scratch: Path) -> str | None:
    """Why a run's identity is not that of its commit's sources, or None."""
    if problem := revision_problem(identity["revision"], repository):
        return problem
    digests = digests_at(identity["revision"], repository, scratch / identity["revision"])
    for key, stage in STAGES.items():
        if identity[key] != digests[stage]:
            return f"{key} is {identity[key]:.12}, but the sources of {stage} at {identity['revision']} give {digests[stage]:.12}"
    return None


@pytest.fixture
def history():
    if reason := why_no_history(ROOT):
        pytest.skip(reason)


def test_every_run_in_results_names_a_clean_commit_of_this_history_whose_sources_give_its_digests(history, tmp_path):
    problems = {path.parent.name: run_problem(json.loads(path.read_text()), ROOT, tmp_path) for path in ROOT.glob("results/*/run.json")}
    assert {name: problem for name, problem in problems.items() if problem} == {}


def test_the_digests_of_a_commit_of_this_project_are_read_from_its_own_sources(history, tmp_path):
    assert [re.fullmatch("[0-9a-f]{64}", digest) is not None for digest in digests_at("HEAD", ROOT, tmp_path / "head").values()] == [
        True
    ] * 2


def test_every_machines_record_names_a_clean_commit_of_this_history(history):
    problems = {path.name: revision_problem(json.loads(path.read_text())["revision"], ROOT) for path in (ROOT / RECORDS).glob("*.json")}
    assert {name: problem for name, problem in problems.items() if problem} == {}


@pytest.fixture
def repository(tmp_path):
    """A history of two commits and one beside it, each with sources of its own."""
    folder = tmp_path / "repository"
    (folder / "pipeline").mkdir(parents=True)
    source = folder / "pipeline" / "sources.py"
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", folder], check=True)

    def commit(name: str) -> str:
        source.write_text(f"def digest(stage): return f'{{stage}}-{name}'\n")
        who = ["-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false"]
        git(folder, "add", ".")
        git(folder, *who, "commit", "--quiet", "--message", name)
        return git(folder, "rev-parse", "--short=12", "HEAD").stdout.decode().strip()

    first = commit("first")
    git(folder, "switch", "--quiet", "--create", "beside")
    beside = commit("beside")
    git(folder, "switch", "--quiet", "main")
    return folder, {"first": first, "beside": beside, "second": commit("second")}


def identity_of(name: str, revision: str | None) -> dict:
    return {"revision": revision, "code": f"train-{name}", "evaluation_code": f"evaluate-{name}"}


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_run_with_the_digests_of_its_commit_is_accepted(repository, name, tmp_path):
    folder, commits = repository
    assert run_problem(identity_of(name, commits[name]), folder, tmp_path) is None


def test_a_run_whose_commit_or_digests_do_not_hold_is_refused(repository, tmp_path):
    folder, commits = repository
    first = commits["first"]

    def problem(identity: dict) -> str | None:
        return run_problem(identity, folder, tmp_path)

    assert problem(identity_of("first", None)) == "None is no clean commit"
    assert problem(identity_of("first", f"{first}-dirty")) == f"{first}-dirty is no clean commit"
    assert problem(identity_of("first", "0" * 12)) == "000000000000 is no commit of this history"
    assert problem(identity_of("beside", commits["beside"])) == f"{commits['beside']} is no commit of this history"
    assert problem(identity_of("second", first)) == f"code is train-second, but the sources of train at {first} give train-first"
    other_evaluation = {**identity_of("first", first), "evaluation_code": "evaluate-second"}
    assert problem(other_evaluation) == f"evaluation_code is evaluate-sec, but the sources of evaluate at {first} give evaluate-fir"


def test_without_the_history_the_reason_is_said(repository, tmp_path):
    folder, _ = repository
    assert why_no_history(folder) is None
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{folder}", tmp_path / "shallow"], check=True)
    assert why_no_history(tmp_path / "shallow") == "this clone is shallow: git fetch --unshallow"
    (tmp_path / "plain").mkdir()
    assert why_no_history(tmp_path / "plain") == "this is no Git repository"
