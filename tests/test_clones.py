"""A copy of the project, however it was made, holds the same bytes as everybody's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from pipeline.machine import doctor
from pipeline.system import files
from tests.conftest import ROOT, git


@pytest.mark.fault(50)
@pytest.mark.parametrize(
    "settings",
    [
        {"core.autocrlf": "true"},
        {"core.autocrlf": "true", "core.eol": "crlf", "core.safecrlf": "false"},
        {"core.autocrlf": "input"},
        {"core.attributesFile": "attributes"},
    ],
    ids=str,
)
def test_every_file_comes_out_of_any_clone_with_its_bytes_and_none_counts_as_changed(settings, origin, tmp_path):
    (tmp_path / "attributes").write_text("* text eol=crlf\n*.py ident\n")
    options = [
        word for key, value in settings.items() for word in ("--config", f"{key}={value.replace('attributes', f'{tmp_path}/attributes')}")
    ]
    git("clone", "--quiet", *options, str(origin), "clone", folder=tmp_path)
    clone = tmp_path / "clone"
    names = git("ls-files", "-z", folder=origin).split("\0")[:-1]
    assert {"params.yaml", "dvc.yaml", "Makefile", ".ci/run"} <= set(names)
    assert [name for name in names if (clone / name).read_bytes() != (origin / name).read_bytes()] == []
    assert git("status", "--porcelain", folder=clone) == ""
    assert {"export PIPELINE_TEST_LONG=1", "required=(index long)"} <= set((clone / ".ci/run").read_text().splitlines())
    assert subprocess.run(["bash", "-n", ".ci/run"], cwd=clone).returncode == 0
    assert subprocess.run(["make", "--silent", "help"], cwd=clone, capture_output=True).returncode == 0


@pytest.mark.fault(50)
def test_a_file_with_other_line_ends_is_committed_as_it_is(origin, tmp_path):
    git("clone", "--quiet", "--config", "core.autocrlf=true", str(origin), "clone", folder=tmp_path)
    (tmp_path / "clone" / "results" / "table.csv").write_bytes(b"a,b\r\n1,2\n")
    git("add", "--force", "results/table.csv", folder=tmp_path / "clone")
    stored = subprocess.run(["git", "show", ":results/table.csv"], cwd=tmp_path / "clone", capture_output=True, check=True).stdout
    assert stored == b"a,b\r\n1,2\n"


@pytest.mark.fault(76)
def test_dvcs_views_of_a_fresh_clone_are_what_the_page_says_and_without_what_it_drops_show_no_digest(origin, tmp_path):
    git("clone", "--quiet", str(origin), "clone", folder=tmp_path)
    page, clone, dvc = (ROOT / "docs" / "dvc.md").read_text(), tmp_path / "clone", [sys.executable, "-m", "dvc"]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
    (dropped,) = re.findall(r"`dvc exp show --drop '(.*)'` leaves out the digests", page)
    for words in (["metrics", "diff"], ["exp", "show", "--csv", "--drop", dropped]):
        done = subprocess.run([*dvc, *words], cwd=clone, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert ("failed to load" in done.stderr) == (words[0] == "metrics")
    header = done.stdout.splitlines()[0].split(",")
    assert {"train.lr", "model.name", "data.source"} <= set(header)
    assert [name for name in header if "/" in name or "mirror" in name or "sha" in name or name in ("networks", "photos")] == []
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    assert [dep for stage in stages for dep in stage["deps"] if not re.match(dropped, dep) and dep != "${data.folder}"] == []


@pytest.mark.fault(58)
def test_a_copy_without_git_is_told_by_doctor_with_the_line_that_lets_dvc_run(origin, tmp_path, monkeypatch):
    """A ZIP of the project, as code hosts offer it, has no .git."""
    archive, folder = tmp_path / "project.zip", tmp_path / "project"
    git("archive", "--format=zip", f"--output={archive}", "HEAD", folder=origin)
    shutil.unpack_archive(archive, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    dvc = [sys.executable, "-m", "dvc"]
    refused = subprocess.run([*dvc, "repro", "--dry", "download"], capture_output=True, text=True)
    assert (refused.returncode != 0, "is not a git repository" in refused.stderr) == (True, True)
    (told,) = doctor.examine("cache")
    remedy = "dvc config --local core.no_scm true"
    assert told == doctor.Finding(
        "cache", False, f"DVC cannot run, for {folder} is not a git repository; tell it to do without: {remedy} (or: git init)"
    )
    subprocess.run([*dvc, *remedy.split()[1:]], check=True)
    accepted = subprocess.run([*dvc, "repro", "--dry", "download"], capture_output=True, text=True)
    assert (accepted.returncode, "Running stage 'download'" in accepted.stdout) == (0, True), accepted.stderr
    assert doctor.examine("cache")[0].ok


@pytest.mark.fault(58)
def test_what_else_dvc_refuses_is_told_as_dvc_does(tmp_path, monkeypatch):
    files.write_text(tmp_path / ".dvc" / "config", "[core]\n    no_scm = perhaps\n")
    monkeypatch.chdir(tmp_path)
    (told,) = doctor.examine("cache")
    assert told.ok is False
    assert told.text.startswith("DVC cannot run: ")
    assert "no_scm" in told.text or "configuration" in told.text
