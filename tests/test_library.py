"""The script of docs/library.md: what it prints, alone and with workers, is what the trainer's numerics give."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from pipeline import exact
from pipeline.models.simple_cnn import SimpleCNN
from tests.conftest import ROOT
from tests.steps import drawn_set, run_steps, trainer

SCRIPT = ROOT / "docs/examples/library.py"


def said(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command, str(SCRIPT)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_gives_one_fingerprint_alone_with_three_workers_and_with_the_oldest_instructions():
    alone = said()
    assert alone in (ROOT / "docs/library.md").read_text()
    workers = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node=3")
    assert said(*workers) == said(OMP_NUM_THREADS="1", ATEN_CPU_CAPABILITY="default") == alone


def test_a_script_of_ones_own_gives_the_trainers_bits():
    given = trainer(data=drawn_set(192), batch_size=64, lr=0.01)
    run_steps(given, 3)
    with exact.initial_values(0):
        model = SimpleCNN()
    optimizer = exact.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.from_numpy(drawn_set(192).train_images), torch.from_numpy(drawn_set(192).train_labels).long()
    for rows in torch.split(given.order[:192], 64):
        loss = exact.cross_entropy(model, images[rows], labels[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert exact.fingerprint(model) == exact.fingerprint(given.model)
    assert torch.equal(exact.logits(model.eval(), images[:1]), exact.logits(model, images)[:1])


def test_what_has_no_form_is_told_with_the_line_and_changes_nothing():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    images = torch.from_numpy(drawn_set(3).train_images)
    before = exact.fingerprint(model)
    assert exact.supported(model, images) == ""
    model.append(torch.nn.Softmin(1))
    assert "no form of" in exact.supported(model, images)
    assert exact.fingerprint(model[:3]) == exact.fingerprint(torch.nn.Sequential(*model[:3]))
    del model[3]
    assert exact.fingerprint(model) == before
