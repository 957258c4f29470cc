"""The commands, signalled: Ctrl-C, SIGTERM and SIGKILL, before the work and in it, alone and under DVC, and two at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ruamel.yaml

from pipeline import device as devices
from pipeline import inputs, numerics, params
from pipeline.machine import demo
from pipeline.params import Train
from pipeline.runs import outputs
from pipeline.runs.outputs import OUTPUTS
from pipeline.system import tensors
from pipeline.system.errors import Interrupted
from pipeline.training import checkpoint, loop, stage
from pipeline.training.checkpoint import UNFINISHED
from pipeline.training.trainer import Trainer
from tests.conftest import ROOT
from tests.pausing import PAUSE, PAUSE_BEFORE
from tests.processes import start
from tests.settings import set_params
from tests.steps import CPU, drawn_set
from tests.torture import init_dvc

pytestmark = pytest.mark.usefixtures("nothing_outlives_its_test")

LIMIT_SECONDS = 300
"""No test takes long; this is for one that hangs."""


SMALL = {**demo.SETTINGS["train"], "batch_size": 16}
"""Ten steps an epoch in `folder`, 30 in all."""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A workspace with a small set whose stages pause where a file says so (tests/pausing.py); DVC needs no Git there."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    demo.lay_out(tmp_path)
    set_params(tmp_path, train=SMALL)
    stages = (tmp_path / "dvc.yaml").read_text()
    (tmp_path / "dvc.yaml").write_text(stages.replace("exec python -m pipeline train", f"exec python {' '.join(TRAIN[1:])}"))
    drawn_set(160).save(tmp_path / "data" / "dataset.safetensors")
    init_dvc(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def fingerprint() -> str:
    """Of the weights that an uninterrupted training in `folder` gives."""
    trainer = Trainer(drawn_set(160), CPU, 0, numerics.select("exact", CPU), Train(**SMALL))
    return tensors.fingerprint(loop.train(trainer).weights)


TRAIN = [sys.executable, "-m", "tests.pausing", "train", "--checkpoint-seconds", "0"]
REPRO = [sys.executable, "-m", "dvc", "repro", "--single-item", "train"]


def paused(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """The command, once the training that it began has saved a state."""
    (folder / PAUSE).touch()
    process = start(folder, *command)
    while not list((folder / UNFINISHED).glob("*.safetensors")):
        assert process.poll() is None, process.communicate(timeout=LIMIT_SECONDS)
        time.sleep(0.01)
    return process


def finished(command: list[str], folder: Path, fingerprint: str) -> str:
    """Run a command that must succeed, with the right weights and no state left; what it said."""
    (folder / PAUSE).unlink()
    process = start(folder, *command)
    out, said = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, said
    assert tensors.fingerprint(outputs.read_weights(folder / OUTPUTS)) == fingerprint
    assert list((folder / UNFINISHED).iterdir()) == [], "when the stage succeeds, the state goes"
    assert not list(folder.rglob(".*.part"))
    return out + said


@pytest.mark.fault(14)
@pytest.mark.fault(15)
@pytest.mark.fault(16)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_train_command_stops_with_the_signals_code_and_the_next_one_resumes(number, code, folder, fingerprint):
    process = paused(TRAIN, folder)
    while process.poll() is None:  # Ctrl-C again and again, as an impatient user does
        process.send_signal(number)
        time.sleep(0.002)
    said = process.communicate(timeout=LIMIT_SECONDS)[1]
    assert process.returncode == code
    assert "Traceback" not in said
    again = finished(TRAIN, folder, fingerprint)
    if number == signal.SIGKILL:
        assert re.search(r"^resumes at step \d+ of 30 from .cache/training$", again, re.MULTILINE)
    else:
        step = re.fullmatch(r"stopped: at step (\d+) of 30; the state is saved, the next run resumes", said.splitlines()[-1])[1]
        assert f"resumes at step {step} of 30 from .cache/training\n" in again


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("number", "to_all", "shell"),
    [
        (signal.SIGINT, True, "/bin/bash"),
        (signal.SIGTERM, False, "/bin/bash"),
        (signal.SIGTERM, True, "/bin/sh"),
        (signal.SIGTERM, False, "/bin/sh"),
    ],
)
def test_dvc_repro_that_is_stopped_leaves_a_state_and_no_lock(number, to_all, shell, folder, fingerprint, monkeypatch):
    """Ctrl-C and a stopped service signal all processes; `kill PID` signals DVC alone, which tells its stage nothing.

    DVC starts a stage in $SHELL, else in /bin/sh; some shells stay in between, as Debian's sh does.
    """
    monkeypatch.setenv("SHELL", shell)
    process = paused(REPRO, folder)
    (os.killpg if to_all else os.kill)(process.pid, number)
    said = process.communicate(timeout=LIMIT_SECONDS)[1]
    assert process.returncode != 0
    assert re.search("stopped: at step .* of 30; the state is saved, the next run resumes", said)
    again = finished(REPRO, folder, fingerprint)
    assert re.search(r"^resumes at step \d+ of 30 from .cache/training$", again, re.MULTILINE)
    assert not re.search("busy|lock is held|Unable to acquire", again)


@pytest.mark.fault(15)
@pytest.mark.parametrize(("stage", "number"), [("train", signal.SIGTERM), ("evaluate", signal.SIGINT)])
def test_a_signal_before_the_work_begins_ends_it_with_one_line(stage, number, folder):
    if stage == "evaluate":
        start(folder, *TRAIN).communicate(timeout=LIMIT_SECONDS)
    (folder / PAUSE_BEFORE).touch()
    process = start(folder, sys.executable, "-m", "tests.pausing", stage)
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    assert process.communicate(timeout=LIMIT_SECONDS)[1] == f"stopped: by {number.name}\n"
    assert process.returncode == 128 + number


@pytest.mark.fault(15)
def test_a_signal_is_not_taken_for_a_mistake_in_what_is_being_read(monkeypatch):
    def interrupted(*_):
        raise Interrupted("by SIGTERM", signal.SIGTERM)

    monkeypatch.setattr(ruamel.yaml.YAML, "load", interrupted)
    with pytest.raises(Interrupted):
        params.parse("device: cpu")


@pytest.mark.fault(24)
def test_of_two_trainings_at_once_the_second_is_refused_and_the_first_is_not_harmed(folder, fingerprint):
    first = paused(TRAIN, folder)
    second = start(folder, *TRAIN)
    assert second.communicate(timeout=LIMIT_SECONDS) == (
        "",
        "error: a stage is already running in this folder (lock .cache/stage.lock): wait for it or stop it\n",
    )
    assert second.returncode == 2
    (folder / PAUSE).unlink()
    first.communicate(timeout=LIMIT_SECONDS)
    assert first.returncode == 0
    assert tensors.fingerprint(outputs.read_weights(folder / OUTPUTS)) == fingerprint


def test_an_evaluation_is_refused_while_a_training_replaces_its_weights(folder):
    paused(TRAIN, folder)
    second = start(folder, sys.executable, "-m", "pipeline", "evaluate")
    assert second.communicate(timeout=LIMIT_SECONDS)[1] == (
        "error: a stage is already running in this folder (lock .cache/stage.lock): wait for it or stop it\n"
    )


@pytest.mark.fault(24)
def test_of_two_dvc_repros_at_once_the_second_is_refused_and_the_first_is_not_harmed(folder, fingerprint):
    first = paused(REPRO, folder)
    second = start(folder, *REPRO)
    said = second.communicate(timeout=LIMIT_SECONDS)[1]
    assert second.returncode != 0
    assert re.search(rf"is busy, it is being blocked by:\n +\(PID {first.pid}\): ", said), said
    (folder / PAUSE).unlink()
    first.communicate(timeout=LIMIT_SECONDS)
    assert first.returncode == 0
    assert tensors.fingerprint(outputs.read_weights(folder / OUTPUTS)) == fingerprint


@pytest.mark.fault(19)
def test_the_key_names_all_that_the_bits_depend_on(folder, monkeypatch):
    """For exact numerics the device, the threads and PyTorch's version are not among it: that is what exact means."""
    keys = {}
    for name in ("exact", "native"):
        monkeypatch.chdir(folder)
        set_params(folder, numerics=name)
        given = []
        real = checkpoint.Checkpoint
        monkeypatch.setattr(
            stage, "Checkpoint", lambda folder, key, *secret, given=given, real=real: given.append(key) or real(folder, key, *secret)
        )
        stage.train(inputs.read("train"))
        (keys[name],) = given
        monkeypatch.undo()
    assert set(keys["exact"]) == set(keys["native"]) == {"seed", "numerics", "train", "data", "code", "workers", "machine"}
    assert keys["exact"]["machine"] is None
    assert keys["exact"]["numerics"] == "exact-3"
    assert keys["native"]["machine"] == devices.describe(CPU)
    assert {"torch", "threads", "cpu_capability", "hardware"} <= set(keys["native"]["machine"])
    assert set(keys["exact"]["train"]) == {"epochs", "batch_size", "lr", "momentum", "log_every"}
