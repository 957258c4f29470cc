"""Workers that wait for others that do not come, or that cannot reach them: a word about whom, a signal heeded, a remedy that can help."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from pipeline.system.errors import UserError
from pipeline.workers import rank, store
from tests.conftest import ROOT, command
from tests.steps import drawn_set


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    """A folder with two workers in its params.yaml, and a small set."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    drawn_set(64).save(tmp_path / "data" / "dataset.safetensors")


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.mark.fault(67)
@pytest.mark.parametrize(("rank", "for_whom"), [("0", "the others"), ("1", "worker 0")])
def test_a_worker_that_waits_alone_says_for_whom_and_heeds_a_signal_at_once(rank, for_whom):
    port = free_port()
    alone = {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "pipeline", "train"], stderr=subprocess.PIPE, text=True, env=os.environ | alone)
    try:
        where = f"MASTER_ADDR=127.0.0.1 MASTER_PORT={port} in the environment"
        assert process.stderr.readline() == f"worker {rank} of 2 waits for {for_whom}, up to 300 seconds: {where}\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() in ("stopped: by SIGTERM\n", "")  # worker 0 speaks
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()


@pytest.mark.fault(67)
def test_a_wait_has_a_bound_and_ends_in_one_line(monkeypatch):
    monkeypatch.setattr(store, "SAY_SECONDS", 0.1)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^worker 0 of 2 waited for the others in vain \(.*\): MASTER_ADDR=127.0.0.1 .* to train alone$"):
        store._reached(rank.here(1, "exact"), 1)


@pytest.mark.fault(68)
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MASTER_ADDR": "no-such-host.invalid"}, "worker 0 of 2 finds no such host ("),
        ({"MASTER_ADDR": "no-such-host.invalid", "RANK": "1"}, "worker 1 of 2 finds no such host ("),  # no other can tell it
        ({"GLOO_SOCKET_IFNAME": "eth9"}, "GLOO_SOCKET_IFNAME names 'eth9'; this machine's networks are lo"),
    ],
    ids=str,
)
def test_what_running_again_cannot_help_has_another_remedy(variables, said):
    group = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    done = command("train", folder=".", **group | variables)
    assert (done.returncode, done.stderr.count("\n"), done.stderr[7 : 7 + len(said)]) == (2, 1, said)
    assert "run again" not in done.stderr


@pytest.mark.fault(56)
def test_a_number_of_workers_that_is_set_to_nothing_is_not_set():
    done = command("train", folder=".", WORLD_SIZE="", RANK="")
    assert (done.returncode, "worker" in done.stderr) == (0, False), done.stderr
