"""Which commit sources are of."""

from __future__ import annotations

import subprocess

import pytest

from pipeline import revision


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder of sources in no repository."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "copy" / "pipeline"
    folder.mkdir(parents=True)
    (folder / "sources.py").touch()
    return folder


def git(folder, *arguments):
    who = ["-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_a_commit_is_named_by_its_hash_whatever_tags_there_are_and_dirty_where_it_was_changed(package):
    git(package.parent, "init", "--quiet")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "--quiet", "--message", "first")
    git(package.parent, "tag", "--annotate", "v1", "--message", "v1")
    commit = git(package.parent, "rev-parse", "--short=12", "HEAD")
    assert revision.describe(package) == commit
    (package / "sources.py").write_text("changed")
    (package.parent / revision.CARRIED).write_text("0123456789ab\n")
    assert revision.describe(package) == f"{commit}-dirty"


@pytest.mark.parametrize("git_is_there", [True, False])
def test_a_carried_copy_says_itself_which_commit_it_is_of(package, git_is_there, monkeypatch):
    if not git_is_there:
        monkeypatch.setenv("PATH", "")
    assert revision.describe(package) is None
    (package.parent / revision.CARRIED).write_text("0123456789ab\n")
    assert revision.describe(package) == "0123456789ab"
