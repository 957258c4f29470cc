"""Standard output and standard error that are closed, full or broken: no verdict that is not one, and the work goes on."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runs.outputs import HISTORY, MODEL, OUTPUTS
from pipeline.system import streams
from tests import kept_runs
from tests.conftest import ROOT
from tests.steps import drawn_set

PIPELINE = f"{sys.executable} -m pipeline"


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """A folder with params.yaml, a small data set, two runs that are identical and one that is different."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    settings = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(settings.replace("log_every: 10 ", "log_every: 1 "))
    drawn_set(64).save(tmp_path / "data" / "dataset.safetensors")
    for name, changes in {"A": {}, "B": {"hardware": "Another processor"}, "C": {"seed": 1}}.items():
        shutil.move(kept_runs.keep(**changes), tmp_path / name)
    return tmp_path


def shell(command: str, **environment: str) -> tuple[int, str, str]:
    """The exit code of `command`, whatever follows it in a pipe, and what it printed."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


COMPARE = {"identical": f"{PIPELINE} compare A B", "different": f"{PIPELINE} compare A C"}


@pytest.mark.fault(54)
@pytest.mark.parametrize("verdict", COMPARE)
def test_a_reader_that_has_gone_is_no_verdict(verdict, workspace):
    assert shell(f"{COMPARE[verdict]}")[0] == {"identical": 0, "different": 3}[verdict]
    code, out, said = shell(f"(sleep 0.2; {COMPARE[verdict]}) | true", PYTHONUNBUFFERED="1" if verdict == "identical" else "")
    assert (code, out, said) == (streams.BROKEN_PIPE, "", "")
    assert streams.BROKEN_PIPE == 141


@pytest.mark.fault(54)
@pytest.mark.parametrize("command", [f"{PIPELINE} compare A B", f"{PIPELINE} compare A C --json", f"{PIPELINE} --help"])
def test_what_cannot_be_printed_for_want_of_space_is_told_and_is_no_verdict(command, workspace):
    code, _, said = shell(f"{command} >/dev/full")
    assert (code, said) == (74, "error: cannot write to standard output: No space left on device\n")


@pytest.mark.fault(55)
@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_training_goes_on_where_nobody_can_see_it(closed, workspace):
    code, _, _ = shell(f"{PIPELINE} train {closed}")
    assert code == 0
    assert (workspace / OUTPUTS / MODEL).stat().st_size > 200_000
    assert len((workspace / OUTPUTS / HISTORY).read_text().splitlines()) == 3


@pytest.mark.fault(55)
def test_a_stage_that_dvc_runs_does_not_lose_its_outputs_because_its_words_are_not_heard(workspace):
    settings = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(settings.replace("source: cifar10", "source: synthetic"))
    assert shell(f"{PIPELINE} download >/dev/full", DVC_STAGE="download")[0] == 0
    assert shell(f"{PIPELINE} download >/dev/full")[0] == 74


@pytest.mark.fault(55)
@pytest.mark.parametrize("verdict", COMPARE)
def test_a_verdict_that_is_asked_for_as_an_exit_code_alone_is_the_right_one(verdict, workspace):
    expected = {"identical": 0, "different": 3}[verdict]
    assert [shell(f"{COMPARE[verdict]} {closed}") for closed in (">&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/null")] == [
        (expected, "", "")
    ] * 4


@pytest.mark.fault(55)
def test_no_file_takes_the_place_of_a_stream_that_is_closed(workspace):
    (workspace / "opens.py").write_text(
        "import os\nfrom pipeline.system import streams\nstreams.prepare()\n"
        "handle = os.open('file', os.O_CREAT | os.O_WRONLY)\n"
        "os.write(1, b'x'), os.write(2, b'x'), print('x', flush=True)\nos._exit(handle)"
    )
    assert shell(f"{sys.executable} opens.py <&- >&- 2>&-")[0] == 3
    assert (workspace / "file").read_bytes() == b""


def test_a_librarys_warning_is_one_line_that_steers_no_terminal(workspace):
    (workspace / "warns.py").write_text(
        "import warnings\nfrom pipeline.system import streams\nstreams.prepare()\nwarnings.warn('a\\n  b\\x1b[2J https://u:p@host')\n"
    )
    code, out, said = shell(f"{sys.executable} warns.py")
    assert (code, out, said) == (0, "", f"warning: a b\ufffd[2J https://***@host ({workspace / 'warns.py'}:4)\n")


@pytest.mark.fault(55)
@pytest.mark.fault(61)
def test_the_terminal_of_a_training_may_be_closed(workspace):
    """Its progress bar is on that terminal, which is gone when the signal arrives."""
    terminal, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    settings = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(settings.replace("epochs: 2", "epochs: 100000"))
    process = subprocess.Popen([sys.executable, "-m", "pipeline", "train"], stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    try:
        assert os.read(terminal, 1)  # the bar
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == 128 + signal.SIGHUP
    finally:
        process.kill()
    assert [p.suffix for p in (workspace / ".cache" / "training").iterdir()] == [".safetensors"], "the state is saved"
    assert not (workspace / OUTPUTS).exists()


@pytest.mark.fault(61)
def test_nohup_is_heeded(workspace):
    code = (
        "import signal\nfrom pipeline.system.errors import STOP_SIGNALS\n"
        "print(signal.SIGHUP in STOP_SIGNALS, signal.SIGTERM in STOP_SIGNALS)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "True True\n"
    assert subprocess.run(["nohup", *command], capture_output=True, text=True).stdout == "False True\n"
