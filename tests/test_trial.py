"""A network of one's own is tried on noise before any training: what no form can see is refused then."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import models, numerics
from pipeline.data.dataset import Dataset
from pipeline.models import recording, trial
from pipeline.params import Model, Train
from pipeline.system.errors import UserError
from pipeline.training.trainer import Trainer

CLASSES = 5


def own(tmp_path, source: str) -> tuple[Model, tuple[int, int, int]]:
    """A network of somebody's own in networks/mine.py of the current folder, and the shape of its images."""
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "mine.py").write_text(source)
    return Model(name="networks/mine.py:Net"), (3, 2, 2)


SETTINGS = Train(epochs=1, batch_size=1, lr=0.01, momentum=0.0, log_every=1)
NET = """
import random
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.last = nn.Linear(12, classes)
        {made}

    def forward(self, x):
        n = x.shape[0]
        h = self.last(x.flatten(1))
        {forward}
        return h
"""
ALONE_OTHERS = (
    "gives an image other logits alone than with another: it computes with how many there are (len(x), x.shape[0], x.numel()), keeps"
)
SHARES_OTHERS = "learns something else of images together than of each in a share of its own: it computes with how many there"
DRAWN = "draws random numbers that no rule gives (random, numpy, torch.rand)"
AGAIN_OTHERS = "learns something else when it sees the same images again: it computes with how many there are"


@pytest.mark.parametrize(
    ("made", "forward", "said"),
    [
        *(
            ("pass", f"h = h * ({number} if not self.training else 1)", ALONE_OTHERS)
            for number in ("len(x)", "float(n)", "x.numel()", "(n + 0)")
        ),
        *(("pass", f"h = h * ({number} if self.training else 1)", SHARES_OTHERS) for number in ("len(x)", "float(n)", "x.numel()")),
        ("self.gamma = nn.Parameter(torch.zeros(5))", "h = h + self.gamma * h * len(x)", SHARES_OTHERS),
        ("pass", "h = h * torch.arange(int(n)).float().sum(0)", SHARES_OTHERS),
        ("pass", "h = h * max(len(x), 2) if not self.training else h", ALONE_OTHERS),
        ("self.seen = 0", "self.seen += 1; h = h * self.seen", AGAIN_OTHERS),
        ("self.seen = 0", "self.seen += self.training; h = h * (2 if self.seen > 9 else 1)", AGAIN_OTHERS),
        (
            "self.seen = {'steps': [0]}",
            "self.seen['steps'][0] += self.training; h = h * (2 if self.seen['steps'][0] > 9 else 1)",
            AGAIN_OTHERS,
        ),
        ("self.seen = torch.zeros(1)", "self.seen += self.training; h = h * (1 + (self.seen > 9).float())", AGAIN_OTHERS),
        ("pass", "h = h * random.random()", DRAWN),
        ("pass", "h = h if random.random() < 1e-9 else h * 1", DRAWN),
        ("self.register_buffer('seen', torch.zeros(()))", "self.seen += len(x) if self.training else 0", SHARES_OTHERS),
        (
            "self.last_one = torch.zeros(1, 5)",
            "h = h + self.last_one.mean(0); self.last_one = h.detach()",
            "what was computed in another pass",
        ),
        ("self.last.weight.register_hook(lambda g: g * 0)", "pass", "last.weight has a backward hook, which exact numerics never call"),
        ("self.last.register_full_backward_hook(lambda *given: None)", "pass", "last has a backward hook, which exact numerics never call"),
    ],
)
def test_a_network_that_keeps_or_counts_what_it_sees_is_refused_before_training(made, forward, said, monkeypatch, tmp_path):
    """No form sees where such a number comes from; two images together and each alone do, a weight that begins at 0 hides nothing."""
    monkeypatch.chdir(tmp_path)
    model, shape = own(tmp_path, NET.format(made=made, forward=forward))
    network = models.build(model, shape, CLASSES, 0)
    device, exact = numerics.prepared("cpu", "exact")
    with pytest.raises(UserError) as refused:
        trial.try_out(network, model, shape, CLASSES, exact, device)
    assert said in str(refused.value)
    if "mean(0)" not in forward:
        trial.try_out(network, model, shape, CLASSES, numerics.prepared("cpu", "native")[1], device)


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        ("with torch.inference_mode():\n            h = self.last(x.flatten(1))\n        h = self.more(h.clone())",
         "'last.weight' learns, and with PyTorch's autograd it does not; use detach()"),
        ("h = self.more(Turned.apply(h))", "'last.weight' learns with a gradient 2 of its length away from that of PyTorch's autograd"),
        ("h = self.more(h.detach() + (0 * h if self.training else Turned.apply(h)))", "'last.weight' learns with a gradient 2 of its"),
        ("with torch.inference_mode():\n            t = self.last(x.flatten(1))\n        h = self.more(h + 0.3 * t.clone())",
         "'last.weight' learns with a gradient 0.3 of its length away from that of PyTorch's autograd"),
        ("h = self.more(Turned.apply(h) if self.training else h)", "'last.weight' learns with a gradient 2 of its length away"),
        ("h = self.more(h.detach())", None),
        ("h = self.more(nn.functional.dropout(h, 0.5, self.training))", None),
    ],
)  # fmt: skip
def test_a_network_that_learns_otherwise_than_by_its_operations_is_refused_before_training(forward, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model, shape = own(tmp_path, "from tests.networks import Turned\n" + NET.format(made="self.more = nn.Linear(5, 5)", forward=forward))
    device, exact = numerics.prepared("cpu", "exact")
    network = models.build(model, shape, CLASSES, 0)
    if said is None:
        trial.try_out(network, model, shape, CLASSES, exact, device)
        return
    with pytest.raises(UserError) as refused:
        trial.try_out(network, model, shape, CLASSES, exact, device)
    assert said in str(refused.value)


def test_logits_that_are_0_or_no_numbers_hide_none_that_are_far_apart(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model, _ = own(tmp_path, "")
    theirs = torch.tensor([[0.0, 0.0], [1.0, 2.0], [float("nan"), 0.0]])
    for far in (torch.tensor([[0.0, 0.0], [1.0, 3.0], [float("nan"), 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 3.0], [0.0, 0.0]])):
        with pytest.raises(UserError, match="with exact numerics its logits are"):
            trial._check_like(theirs, far, model)
    trial._check_like(theirs, theirs, model)


@pytest.mark.parametrize("name", ["exact", "native"])
def test_a_network_that_is_another_after_the_training_is_not_kept(name, monkeypatch, tmp_path):
    """A list is no plain value, and it tells only after six steps: the trial sees nothing of it."""
    monkeypatch.chdir(tmp_path)
    made, forward = "self.seen = []", "self.seen.append(0) if self.training else 0\n        h = h + h if len(self.seen) > 12 else h"
    model, shape = own(tmp_path, NET.format(made=made, forward=forward))
    device, chosen = numerics.prepared("cpu", name)
    network = models.build(model, shape, CLASSES, 0)
    before = recording.record(network, shape, chosen, device)
    recording.check_unchanged(before, network, model, shape, chosen, device)
    network.seen.extend([0] * 13)
    with pytest.raises(UserError, match=r"networks/mine\.py:Net: computes something else after the training than before it"):
        recording.check_unchanged(before, network, model, shape, chosen, device)


@pytest.mark.parametrize(
    "made",
    [
        "self.register_buffer('noise', torch.randn(1, 5))",
        "self.register_buffer('noise', torch.randperm(5), persistent=False)",
        "self.register_buffer('noise', nn.init.kaiming_normal_(torch.empty(5, 5)))",
        "self.noise = nn.Parameter(torch.cat([torch.randn(2), torch.zeros(3)]))",
        "self.noise = nn.Parameter(torch.tensor([torch.randn(5).tolist()]))",
        "self.noise = nn.Parameter(torch.mul(input=torch.randn(5), other=0.02))",
        "self.noise = nn.Parameter(torch.empty(1, 5))",
        "self.noise = nn.Parameter(torch.full((5,), random.random()))",
        "self.noise = nn.Parameter(torch.zeros(5)); self.noise.data[2:] = torch.randn(3)",
        "self.last.bias.data[0] = -5.0",
    ],
)
def test_a_network_that_begins_with_other_numbers_each_time_is_refused_before_training(made, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model, shape = own(tmp_path, NET.format(made=made, forward="pass"))
    with pytest.raises(
        UserError, match=r"'noise' begins with other numbers each time that it is made|initial value of parameter '\w+(\.bias)?'"
    ):
        trial.check_made_alike(model, shape, CLASSES)


@pytest.mark.fault(74)
@pytest.mark.parametrize("name", ["exact", "native"])
def test_a_network_that_learns_nothing_of_one_image_is_refused_before_training_where_a_batch_has_one(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model, shape = own(tmp_path, NET.format(made="self.norm = nn.BatchNorm1d(5)", forward="h = self.norm(h)"))
    network, chosen = models.build(model, shape, CLASSES), numerics.select(name, torch.device("cpu"))
    trial.try_out(network, model, shape, CLASSES, chosen, torch.device("cpu"))
    with pytest.raises(UserError, match=r"one image: set another train\.batch_size, so that the last batch of an epoch has more"):
        trial.try_out(network, model, shape, CLASSES, chosen, torch.device("cpu"), 1)


@pytest.mark.fault(74)
@pytest.mark.parametrize("name", ["exact", "native"])
def test_what_goes_wrong_in_a_network_in_a_later_step_is_one_line_too(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = "self.rows = nn.Parameter(torch.zeros(3, classes)); self.register_buffer('seen', torch.zeros(1, dtype=torch.int64))"
    forward = "h = h + self.rows[self.seen + 0]\n        if self.training:\n            self.seen += 1"
    model, shape = own(tmp_path, NET.format(made=made, forward=forward))
    images = np.zeros((6, *shape), np.uint8)
    data = Dataset("drawn", tuple("abcde"), images, np.zeros(6, np.uint8), images, np.zeros(6, np.uint8))
    given = Trainer(data, torch.device("cpu"), 0, numerics.select(name, torch.device("cpu")), SETTINGS, network=model)
    for _ in range(3):
        given.step()
        given.read_step_log()
    with pytest.raises(UserError, match=r"^networks/mine\.py:\d+: IndexError: .*; mend the network"):
        given.step()


def test_a_network_of_constants_and_rules_is_made_alike(monkeypatch, tmp_path):
    made = "self.register_buffer('c', torch.arange(5.0)); self.bn = nn.BatchNorm1d(5); nn.init.trunc_normal_(self.last.weight, std=0.02)"
    monkeypatch.chdir(tmp_path)
    trial.check_made_alike(*own(tmp_path, NET.format(made=made, forward="h = self.bn(h + self.c)")), CLASSES)
