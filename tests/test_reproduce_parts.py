"""`reproduce`: the beginning of a run alone, and a reproduction that is killed, stopped or started twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from msgspec import structs

from pipeline.params import Model, Schedule
from pipeline.system.errors import UserError
from pipeline.training import stage
from pipeline.weights import reproduce
from tests.conftest import ROOT, command
from tests.reproductions import claim, loss_changed, said, stopped_at, trained_with

# --- a beginning ----------------------------------------------------------------------------------------------------


def test_a_beginning_is_checked_against_the_rows_of_its_epochs_and_says_so(original, here, capsys):
    assert reproduce.reproduce(original["exact"], epochs=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "only its beginning is checked: the first 1 of 2 epochs"
    assert lines[-1] == (
        "identical: all 1 logged losses of the first 1 of 2 epochs are equal to the last bit; "
        "the rest of the training, the weights, predictions and metrics were not checked"
    )
    assert not list(reproduce.REPRODUCED.rglob("*.csv"))


def test_a_beginning_finds_what_was_changed_in_it_and_not_what_was_changed_after_it(original, here, capsys):
    assert not reproduce.reproduce(claim(original["exact"], here / "early", history=loss_changed(3)), epochs=1)
    assert said(capsys).startswith("different: first at step 3, row 1 of the history: ")
    assert reproduce.reproduce(claim(original["exact"], here / "late", history=loss_changed(6)), epochs=1)


def test_rows_left_out_of_a_beginning_are_different(original, here, capsys):
    assert not reproduce.reproduce(claim(original["exact"], here / "forged", history=lambda h: h[1:]), epochs=1)
    assert said(capsys) == "different: first in row 1 of the history: the run has no more, here is step 3 of epoch 1"


def test_all_epochs_are_the_whole_run(original, here, capsys):
    assert reproduce.reproduce(original["exact"], epochs=2)
    assert "40 predictions" in said(capsys)


def test_a_beginning_leaves_the_unfinished_training_of_the_whole_run_alone(original, here, capsys):
    stopped_at(7, original["exact"])
    assert reproduce.reproduce(original["exact"], epochs=1)
    capsys.readouterr()
    assert reproduce.reproduce(original["exact"])
    assert "resumes at step 7 of 10" in capsys.readouterr().err


# --- killed ---------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pipeline import cli, evaluation
from pipeline.runs import keeping
from pipeline.training.trainer import LoggedStep, Trainer

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def die_at_step_8(self, step=Trainer.step):
    if self.steps_completed == 7:
        die()
    step(self)

match sys.argv.pop(1):
    case "training": Trainer.step = die_at_step_8
    case "evaluation": evaluation.evaluate = die
    case "keeping": keeping.put = die
cli.main()
"""


@pytest.mark.parametrize(
    ("where", "resumed", "true"), [("training", 6, True), ("training", 6, False), ("evaluation", 10, True), ("keeping", 10, False)]
)
def test_killed_and_started_again_the_answer_is_the_same(where, resumed, true, original, here):
    run, code, answer = original["exact"], 0, "identical: all 4 logged losses, "
    if not true:
        run, code, answer = claim(run, here / "forged", history=loss_changed(9)), 3, "different: first at step 9, row 3 of the history: "
    words = ["reproduce", str(run), "--checkpoint-seconds", "0"]
    project = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED, where, *words], cwd=here, capture_output=True, text=True, env=project)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = command(*words, folder=here)
    assert f"resumes at step {resumed} of 10" in done.stderr
    assert (done.returncode, done.stdout.splitlines()[-1][: len(answer)]) == (code, answer)


def test_stopped_by_a_signal_the_next_one_resumes_at_that_step(original, here, capsys):
    stopped_at(7, original["exact"])
    assert reproduce.reproduce(original["exact"])
    read = capsys.readouterr()
    assert "resumes at step 7 of 10" in read.err
    assert read.out.splitlines()[-1].startswith("identical: ")


def test_two_runs_of_one_name_do_not_take_each_others_unfinished_training(original, here, capsys):
    stopped_at(7, original["exact"])
    other = claim(original["exact"], here / original["exact"].name, provenance=trained_with(lr=0.04))
    assert not reproduce.reproduce(other)
    assert "of another training (train): not used" in capsys.readouterr().err


def test_the_unfinished_training_of_another_network_is_not_the_tutorials_whose_run_leaves_its_name_out(original, here, capsys):
    (here / "sent").mkdir()
    network = lambda p: structs.replace(p, model=Model(auxiliary=0.2))  # noqa: E731 - as trained_with gives
    stopped_at(7, claim(original["exact"], here / "sent" / original["exact"].name, provenance=network))
    assert reproduce.reproduce(original["exact"])
    assert "of another training (model): not used" in capsys.readouterr().err


def test_what_is_said_of_an_unfinished_training_steers_no_terminal_whatever_the_run_is_called(original, here, capsys):
    run = claim(original["exact"], here / "theirs\x1b[2J")
    stopped_at(7, run)
    assert reproduce.reproduce(run)
    stopped_at(7, run)
    for path in here.rglob("epochs-2/*.safetensors"):
        path.write_bytes(b"damaged")
    assert reproduce.reproduce(run)
    said = capsys.readouterr()
    assert "resumes at step 7 of 10 from .cache/reproduce/theirs\N{REPLACEMENT CHARACTER}[2J/" in said.err
    assert "no state in .cache/reproduce/theirs\N{REPLACEMENT CHARACTER}[2J/" in said.err
    assert "\x1b" not in said.out + said.err


def test_the_beginning_of_a_longer_training_is_not_the_unfinished_whole_of_a_shorter_one_of_its_name(original, here, capsys):
    """Their schedules differ, and all else that is said of the two is equal."""
    (here / "sent").mkdir()
    schedule = {"schedule": Schedule(name="cosine")}
    stopped_at(3, claim(original["exact"], here / "sent" / "theirs", provenance=trained_with(epochs=1, **schedule)), total=5)
    reproduce.reproduce(claim(original["exact"], here / "theirs", provenance=trained_with(**schedule)), epochs=1)
    assert "of another training (whole training's epochs): not used" in capsys.readouterr().err


def test_of_two_reproductions_of_one_run_at_once_the_second_is_refused(original, here, monkeypatch):
    fit = stage.fit

    def meanwhile(*arguments):
        with pytest.raises(UserError, match="a reproduction of this run is already running in this folder"):
            reproduce.reproduce(original["exact"])
        return fit(*arguments)

    monkeypatch.setattr(stage, "fit", meanwhile)
    assert reproduce.reproduce(original["exact"])
