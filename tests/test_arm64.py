"""The goldens on another processor, which QEMU plays, and what is said where that cannot be had."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tools import arm64

SET = "PIPELINE_TEST_ARM64"
SHORT = ("functions", "evaluation", "edges")


@pytest.mark.arm64
@pytest.mark.skipif(os.environ.get(SET) != "1", reason=f"{SET} is not 1: it loads some 250 MB and takes minutes (make test-arm64)")
def test_an_emulated_arm64_gives_the_goldens_and_the_weights_of_this_machine_and_native_others():
    """The goldens without those of whole batches, which take minutes and which `make test-arm64` has too."""
    done = subprocess.run([sys.executable, "-m", "tools.arm64", "--goldens", *SHORT], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^exact is the same, native is another, the goldens are met; all in \d+ s$", done.stdout, re.MULTILINE)
    assert {line for line in done.stdout.splitlines() if line.startswith("  ")} == {f"  exact-3-{case}: the golden" for case in SHORT}


@pytest.mark.parametrize(
    ("system", "processor", "programs", "said"),
    [
        ("Darwin", "arm64", True, "this is Darwin on arm64, not Linux on x86_64; on an ARM64 machine `make test` does it"),
        ("Linux", "aarch64", True, "this is Linux on aarch64, not Linux on x86_64; on an ARM64 machine `make test` does it"),
        ("Linux", "x86_64", False, "apt-get and dpkg-deb and tar not found; use Debian, or its container"),
    ],
)
def test_a_machine_that_cannot_do_it_is_told_in_one_line(system, processor, programs, said, monkeypatch, capsys):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr("shutil.which", lambda name: name if programs else None)
    with pytest.raises(SystemExit) as ended:
        arm64.main([])
    assert (ended.value.code, capsys.readouterr().err) == (2, f"error: make test-arm64: {said}\n")


def test_without_debians_archive_the_reason_is_one_line_and_the_next_try_starts_anew(tmp_path, monkeypatch, capsys):
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text("#!/bin/sh\necho 'W: later' >&2; echo 'E: no route to the archive' >&2; exit 100\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(arm64, "FOLDER", tmp_path / "arm64")
    monkeypatch.setattr(arm64, "missing", lambda: None)
    with pytest.raises(SystemExit) as ended:
        arm64.main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: make test-arm64: cannot fetch Debian's list of packages for arm64 (E: no route to the archive); "
        "it needs Debian's archive and a package index\n"
    )
    assert not list((tmp_path / "arm64").glob("system-*"))
