"""`check`: what a network is, and its proof on this machine; what keeps it from being exact is said before any training."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import cli, params
from pipeline.machine import check
from pipeline.models import trial
from pipeline.params import Model
from pipeline.system.errors import UserError
from tests.conftest import ROOT, command

OWN = """
import random

import torch
from torch import nn

class Random(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(48, classes)

    def forward(self, x):
        return self.fc(x.flatten(1)) * (random.random() if self.training else 1.0)

class Seeing(Random):
    seen = 0

    def forward(self, x):
        self.seen += 1
        return self.fc(x.flatten(1)) * self.seen

class Unused(Random):
    def __init__(self, classes):
        super().__init__(classes)
        self.spare = nn.Linear(3, 3)
        self.where = "cpu"

    def forward(self, x):
        if self.where == "a GPU":
            x = x.cuda()
        return self.fc(x.flatten(1))

class Sorted(Random):
    def forward(self, x):
        return self.fc(x.flatten(1).sort(1).values)
"""


def subject(name: str) -> check.Subject:
    return check.Subject(Model(name=name), (3, 4, 4), 5, 0, "cpu")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has networks/own.py, and no process is started."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "own.py").write_text(OWN)
    monkeypatch.setattr(check, "_elsewhere", lambda subject, **_: check.ways_here(subject, check.built(subject), "elsewhere"))


def test_the_command_says_what_the_network_is_and_proves_it_with_the_oldest_instructions_too(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "networks", tmp_path / "networks")
    done = command("check", "networks/my_net.py:Net", folder=tmp_path, OMP_NUM_THREADS="2")
    assert (done.returncode, done.stderr) == (0, "")
    said = re.sub(r"took [\d.e-]+ s", "took # s", done.stdout)
    assert said.startswith(
        "networks/my_net.py:Net for images of 3 x 32 x 32 and 10 classes\n"
        "  14,746 weights in 11 tensors, 9 buffers, 8 layers\n"
        "  operations a step: conv2d 3, batch_norm 3, relu 3, add, mean, dropout, linear\n"
        "  several workers exchange 8 times a step\n"
        "  a step of 3 images took # s here\n\n"
    )
    ways = re.findall(r"^  ([0-9a-f]{16})  ([0-9a-f]{16})  (.+)$", said, re.MULTILINE)
    assert [way for *_, way in ways] == [
        "three images at once", "two shares; each image alone", "1 thread in place of 2", "set to the oldest instructions",
    ]  # fmt: skip
    assert len({hashes for *hashes, _ in map(lambda way: (way[:2], way[2]), ways) for hashes in hashes}) == 1
    assert said.endswith("\nthe same bits in every way\n")


def test_what_python_decides_in_a_network_is_found(own, monkeypatch):
    with pytest.raises(UserError, match="draws random numbers that no rule gives"):
        check.check(subject("networks/own.py:Random"), lambda line: None)
    monkeypatch.setattr(trial, "try_out", lambda *given: None)  # of what that trial does not see, such as of a third image
    said: list[str] = []
    assert not check.check(subject("networks/own.py:Random"), said.append)
    assert any(line.endswith("<- differs") for line in said)
    assert said[-1] == "\nNOT the same: something in the network mixes images, keeps what it has seen, or is not deterministic"


def test_a_network_whose_answer_depends_on_those_before_it_is_refused_before_anything_is_computed(own):
    with pytest.raises(UserError, match=r"learns something else when it sees the same images again: it computes with how many"):
        check.check(subject("networks/own.py:Seeing"), lambda line: None)


def test_weights_without_a_part_in_the_loss_and_lines_bound_to_a_device_are_named(own):
    said: list[str] = []
    assert check.check(subject("networks/own.py:Unused"), said.append)
    assert "  spare.weight takes no part in the loss" in said
    (bound,) = [line for line in said if "networks/own.py:" in line and "own.py:Unused" not in line]
    line = OWN.splitlines().index("            x = x.cuda()") + 1
    assert bound.startswith(f"  networks/own.py:{line}: ")


def test_an_operation_without_a_form_is_one_line_with_its_own_line(own):
    line = OWN.splitlines().index("        return self.fc(x.flatten(1).sort(1).values)") + 1
    with pytest.raises(UserError, match=rf"sort.*own\.py:{line};"):
        check.check(subject("networks/own.py:Sorted"))


def test_bits_that_differ_are_an_answer_of_no(own, folder_with_params, monkeypatch, capsys):
    monkeypatch.setattr(check, "evaluated", lambda network, of, at_once: f"{at_once:064}")
    assert cli.answer(["check", "simple_cnn"]) == 3
    assert "NOT the same" in capsys.readouterr().out


def test_the_images_are_those_of_the_data_set_or_of_params(folder_with_params):
    given = params.load()
    assert check.subject_of(given, None).model == given.model
    assert (check.subject_of(given, "resnet18").shape, check.subject_of(given, "resnet18").classes) == ((3, 32, 32), 10)


def test_workers_that_part_are_found(own, monkeypatch):
    of = subject("networks/own.py:Unused")
    network, real = check.built(of), check.SGD.step
    monkeypatch.setattr(check.SGD, "step", lambda self: (real(self), self.param_groups[0]["params"][0].data.add_(float(torch.rand(())))))
    hashed, _ = check.trained_in_shares(network, of, 2)
    assert hashed == "the workers have other weights than each other"
