"""The revision of the sources decorates a run: whatever Git answers, or does not, nothing fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.system import revision

pytestmark = pytest.mark.fault(53)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit, with Git's settings its own."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "source.py").write_text("pass\n")
    for words in (["init", "--quiet"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def test_a_commit_without_a_tag_is_its_hash_and_changes_make_it_dirty(repository):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True).stdout
    assert revision.describe(repository) == head[:12]
    (repository / "source.py").write_text("changed\n")
    assert revision.describe(repository) == f"{head[:12]}-dirty"


@pytest.mark.fault(81)
def test_sources_are_edited_where_one_of_them_is_new_or_another_and_not_where_the_settings_are(repository, tmp_path, monkeypatch):
    package = repository / "package"
    package.mkdir()
    (repository / "source.py").write_text("changed\n")
    assert not revision.is_edited(package)
    (package / "new.py").write_text("new\n")
    assert revision.is_edited(package)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["add", "package"], [*who, "commit", "--quiet", "-m", "two"]):
        subprocess.run(["git", *words], cwd=repository, check=True)
    assert not revision.is_edited(package)
    (package / "new.py").write_text("changed\n")
    assert revision.is_edited(package)
    monkeypatch.setenv("PATH", "")
    assert not revision.is_edited(package), "nothing can tell"


@pytest.mark.parametrize("tag", ["v1", "v1-\N{LATIN SMALL LETTER E WITH ACUTE}", b"v1-\xe9t\xe9"])
def test_a_commit_is_named_by_its_hash_whatever_tags_there_are(repository, tag):
    expected = revision.describe(repository)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, "tag", "--annotate", "-m", "x", tag], cwd=repository, check=True)
    assert revision.describe(repository) == expected


@pytest.mark.parametrize("git_is_there", [True, False])
def test_a_carried_copy_says_itself_which_commit_it_is_of(git_is_there, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    if not git_is_there:
        monkeypatch.setenv("PATH", "")
    package = tmp_path / "copy" / "pipeline"
    package.mkdir(parents=True)
    assert revision.describe(package) is None
    (package.parent / revision.CARRIED).write_text("0123456789ab\n")
    assert revision.describe(package) == "0123456789ab"


def test_variables_of_a_hook_that_name_another_repository_do_not_count(repository, tmp_path, monkeypatch):
    expected = revision.describe(repository)
    for name in revision.OF_A_REPOSITORY:
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert revision.describe(repository) == expected is not None


@pytest.mark.parametrize(
    "variables",
    [
        {"PATH": "/nowhere"},
        {"GIT_CONFIG_COUNT": "nonsense"},
        {"GIT_CONFIG_PARAMETERS": "nonsense"},
        {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"},  # as in a container: "dubious ownership"
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_where_git_refuses_or_is_not_there_there_is_no_revision(repository, variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert revision.describe(repository) is None


def test_a_folder_without_a_repository_or_none_at_all_has_no_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    assert [revision.describe(tmp_path / name) for name in ("plain", "missing", "nul\0byte")] == [None] * 3


def test_a_git_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(revision, "SECONDS", 0.2)
    assert revision.describe(tmp_path) is None
