"""`dvc repro` after SIGKILL: a short sweep of `make torture`, and each state that DVC's own files can be left in."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from pipeline.runs.outputs import OUTPUTS
from tests import torture
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # quicker for so little, and the same bits


@pytest.mark.long
@pytest.mark.fault(9)
@pytest.mark.fault(13)
@pytest.mark.fault(14)
@pytest.mark.fault(23)
def test_dvc_repro_killed_at_random_moments_ends_in_the_bits_of_one_that_was_not(tmp_path):
    torture.lay_out(tmp_path, small=True)
    lines = []
    figures = torture.sweep(tmp_path, 2, 1, None, lambda line, **_: lines.append(line))
    assert figures.moments.total() == 2
    assert len(lines) >= 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which `dvc repro` has run."""
    folder = tmp_path_factory.mktemp("finished")
    torture.lay_out(folder, small=True)
    code, said = torture.ended(torture.start(folder))
    assert code == 0, said
    return folder


@pytest.fixture
def workspace(finished, tmp_path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".site"))
    return tmp_path


def repro(folder: Path) -> tuple[int, str]:
    return torture.ended(torture.start(folder))


def assert_finished(folder: Path, finished: Path) -> None:
    torture.check_the_end(folder, torture.written(finished))


STATES = {
    "an empty rwlock": (".dvc/tmp/rwlock", lambda _: b"", "Unable to read RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted"),
    "half an rwlock": (".dvc/tmp/rwlock", lambda _: b'{"read": {"/tm', "Unable to read RWLock-file"),
    "an empty dvc.lock": ("dvc.lock", lambda _: b"", "dvc.lock' validation failed"),
    "a dvc.lock cut in a stage's name": ("dvc.lock", lambda whole: whole[: whole.index(b"  train:") + 4], "dvc.lock' is invalid"),
    "a dvc.lock cut after a checksum's first digit": (
        "dvc.lock",
        lambda whole: whole[: re.search(rb"md5: [1-9]", whole).end()],
        "dvc.lock' validation failed",
    ),
    "a dvc.lock cut in a checksum": ("dvc.lock", lambda whole: whole[: whole.rindex(b"md5: ") + 12], None),
    "a dvc.lock cut between two stages": ("dvc.lock", lambda whole: whole[: whole.index(b"  train:")], None),
    "an entry of a dead process in rwlock": (".dvc/tmp/rwlock", lambda _: rwlock(dead_pid()), None),
    "an entry of a PID that is another's now": (
        ".dvc/tmp/rwlock",
        lambda _: rwlock(os.getpid()),
        r"is busy, it is being blocked by:\n +\(PID",
    ),
}
"""What a kill can leave: the file, what is in it, what the next `dvc repro` says (None: it goes on by itself)."""


def rwlock(pid: int) -> bytes:
    return json.dumps({"write": {"FOLDER/outputs/metrics.json": {"pid": pid, "cmd": "dvc repro"}}, "read": {}}).encode()


def dead_pid() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


@pytest.mark.long
@pytest.mark.fault(23)
@pytest.mark.parametrize("state", STATES)
def test_a_dvc_killed_while_it_wrote_its_own_files_goes_on_or_says_what_to_delete(state, workspace, finished):
    path, damage, said_then = STATES[state]
    content = damage((finished / path).read_bytes() if (finished / path).exists() else b"")
    (workspace / path).write_bytes(content.replace(b"FOLDER", str(workspace).encode()))
    code, said = repro(workspace)
    if said_then:
        assert code != 0
        assert re.search(said_then, said), said
        assert torture.remedy(workspace, said) == path
        code, said = repro(workspace)
    assert code == 0, said
    assert "Running stage 'train'" not in said, "what was done is in DVC's cache"
    assert_finished(workspace, finished)


@pytest.mark.fault(23)
def test_an_empty_object_that_a_kill_left_in_dvcs_cache_is_not_taken_for_the_file(workspace, finished):
    """DVC tries a reflink at the object's final name first, so a kill can leave it there empty; but not yet write-protected."""
    objects = [path for path in (workspace / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    for path in objects:
        path.chmod(0o644)
        path.write_bytes(b"")
    shutil.rmtree(workspace / OUTPUTS)
    code, said = repro(workspace)
    assert code == 0, said
    assert_finished(workspace, finished)


@pytest.mark.fault(23)
def test_the_docs_name_each_message_of_dvcs_and_what_to_delete():
    docs = (ROOT / "docs" / "faults.md").read_text()
    for pattern, path in torture.REMEDIES.items():
        assert f"`{path}`" in docs
        assert re.search(pattern, docs)
