"""The command line: what is printed for what went wrong, and the exit code, which is a verdict only where there is one."""

from __future__ import annotations

import os

import pytest

from pipeline import cli, params
from pipeline.system.errors import UserError


def answer(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    return cli.answer(list(words)), capsys.readouterr().err


def test_no_variable_of_the_environment_takes_a_commands_place(monkeypatch, capsys):
    monkeypatch.setattr("typer._click.utils._detect_program_name", lambda: "pipeline")
    monkeypatch.setenv("_PIPELINE_COMPLETE", "complete_bash")  # Typer's, by which a shell asks how words go on
    assert answer("fingerprint", "nowhere", capsys=capsys)[0] == 2


def raising(error: BaseException):
    def load(*_: object) -> None:
        raise error

    return load


@pytest.mark.fault(59)
@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["compare", "--html", ""], "--html has an empty value"),
        (["compare", "--html="], "--html has an empty value"),
        (["compare", "a", ""], "an argument is empty"),
        (["evaluate", "--run", "", "--device", "cpu"], "--run has an empty value"),
        (["demo", "--folder="], "--folder has an empty value"),
        ([""], "an argument is empty"),
    ],
)
def test_an_empty_argument_is_not_taken_for_the_current_folder(words, what, capsys):
    expected = f"error: {what}: give it a value or leave it out (see python -m pipeline --help)\n"
    assert answer(*words, capsys=capsys) == (2, expected)


def test_the_remedies_of_a_mistake_stand_on_lines_of_their_own(monkeypatch, capsys):
    error = UserError("no network")
    error.remedies = ("put the file there", "work\x1b[2J offline")
    monkeypatch.setattr(params, "load", raising(error))
    assert answer("compare", capsys=capsys) == (2, "error: no network\n  put the file there\n  work\ufffd[2J offline\n")


@pytest.mark.fault(54)
@pytest.mark.parametrize("error", [ValueError("ours"), RecursionError(), AssertionError()])
def test_a_mistake_of_ours_is_no_verdict(error, monkeypatch, capsys):
    monkeypatch.setattr(params, "load", raising(error))
    code, said = answer("compare", capsys=capsys)
    assert code == 70
    assert said.startswith("Traceback")
    assert said.endswith("error: this is a mistake of the pipeline's: please report it with the lines above\n")


@pytest.mark.fault(54)
def test_a_refusal_of_the_operating_system_that_nobody_explained_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(params, "load", raising(PermissionError(13, "Permission denied", "params.yaml")))
    assert answer("compare", capsys=capsys) == (2, "error: [Errno 13] Permission denied: 'params.yaml'\n")


def test_memory_that_is_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(params, "load", raising(MemoryError()))
    assert answer("compare", capsys=capsys) == (2, "error: this takes more memory than there is; free some, or give it less\n")


def test_a_name_that_no_terminal_shows_is_shown_as_far_as_it_can_be(capsys):
    code, said = answer("fingerprint", os.fsdecode(b"run\xff\x07"), capsys=capsys)
    assert (code, said) == (2, "error: run\ufffd\ufffd/model.safetensors: not found; run `dvc repro` first, or name a folder under runs/\n")
