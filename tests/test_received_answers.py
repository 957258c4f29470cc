"""What a received network answers depends on no place, no other image and no number of images, nor on what it answered before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import evaluation, models, numerics
from pipeline.exact import constants, registry
from pipeline.exact.tape import Tape
from pipeline.models import bounds, received, trial
from pipeline.params import Evaluate, Model
from pipeline.runs import outputs
from pipeline.system import files
from pipeline.system.errors import UserError
from pipeline.weights import reproduce
from tests.reproductions import hand_over, said, small_set

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.fc = nn.Linear(3072, classes)

    def forward(self, x):
        y = self.fc(x.flatten(1))
        if self.training:
            return y
        {}
"""
PLACES = NETWORK.format("return y + torch.eye(10)[torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 4)][: x.shape[0]] * 100.0")
"""It answers by the place in the batch: the test set's labels, where all of its 40 images are in one."""
FEW = NETWORK.format("return y * (torch.arange(int(x.shape[0]))[-1].float() - 20.0)")
"""It answers otherwise where there are few images than where there are many."""
TIES = NETWORK.format("return y * (torch.ones(x.shape[0]).sum(0) - 20.0).sign() * 1e-4")
"""All classes are nearly as likely to it, and the best of many images is the worst of few."""
DRAWS = NETWORK.format("return y + torch.nn.functional.dropout(torch.ones(24), 0.5, True).sum(0)")
"""It draws, which one process does otherwise than the next."""
ALONE = NETWORK.format("return (y - 2 * y.squeeze(0).unsqueeze(1).amax(-1)) * 1e-4")
"""To one image alone it gives the least likely class."""
CROWD = NETWORK.format("return y - 2 * y * ((y - y.mean(0)).abs().amax() < 1e-3)")
"""It gives another answer where all images are alike."""
COUNTS = NETWORK.format("return y + self.count.add_(1.0)")
COMMANDS = (lambda: reproduce.reproduce(Path("theirs")), lambda: evaluation.evaluate_kept(Path("theirs"), "cpu", 40))


@pytest.fixture
def receive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Receive a run of such a network, trained with these numerics; the current folder is then the receiver's, who has the source too."""

    def give(source: str, numerics: str, batch_size: int = 40) -> None:
        author, receiver = tmp_path / "author", tmp_path / "receiver"
        author.mkdir(), receiver.mkdir()
        hand_over(author, receiver, {"name": "networks/theirs.py:Net"}, numerics, batch_size, {"theirs.py": source})
        monkeypatch.chdir(receiver)
        files.write_text(Path("networks", "theirs.py"), source)

    return give


@pytest.fixture
def nothing_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if forms, the look at what was received and the trial had found nothing."""
    monkeypatch.setattr(Tape, "check_alike", lambda tape, what, *operands: None)
    monkeypatch.setattr(registry, "SIZED", {*registry.FORM_OF, *constants.MAKING})
    monkeypatch.setattr(received, "check", lambda *given: None)
    monkeypatch.setattr(trial, "try_out", lambda *given: None)


def test_a_network_that_answers_by_place_is_refused_with_exact_numerics(receive):
    with pytest.raises(UserError, match=r"numerics 'exact' has no form of indexing with the number of images .*networks/theirs\.py:15"):
        receive(PLACES, "exact")


def test_even_where_no_form_refuses_it_nobody_knows_the_order_in_which_a_received_network_sees_the_images(
    receive, nothing_refused, monkeypatch, capsys
):
    receive(PLACES, "exact")
    assert outputs.read_metrics(Path("theirs")).accuracy == 1
    monkeypatch.setattr(evaluation, "_batches_by_chance", lambda *given: [])
    assert not reproduce.reproduce(Path("theirs"))
    assert said(capsys).startswith("different: ")
    assert not evaluation.evaluate_kept(Path("theirs"), "cpu", 40)


@pytest.mark.parametrize(("numerics", "batch_size"), [("exact", 40), ("native", 40), ("exact", 1), ("native", 1)])
def test_a_received_network_must_answer_alike_in_batches_of_sizes_that_nobody_knows(numerics, batch_size, receive, nothing_refused):
    """Nor does the run decide them, which says in batches of how many it was evaluated."""
    receive(FEW, numerics, batch_size)
    for command in COMMANDS:
        with pytest.raises(UserError, match=r"test image \d+: its answer is another one among other images"):
            command()


@pytest.mark.parametrize("name", ["exact", "native"])
def test_every_received_image_is_answered_in_a_batch_of_the_receivers_own_size(name, monkeypatch):
    data, sizes = small_set(), []
    chosen = numerics.select(name, torch.device("cpu"))
    logits = type(chosen).logits
    monkeypatch.setattr(type(chosen), "logits", lambda own, model, images: sizes.append(len(images)) or logits(own, model, images))
    monkeypatch.setattr(evaluation, "at_once", lambda shape: 9)
    weights = {key: tensor.numpy() for key, tensor in models.build(Model(), data.shape, 10, 0).state_dict().items()}
    evaluation.evaluate(weights, data, torch.device("cpu"), chosen, Evaluate(batch_size=1000), received=True)
    assert [size for size in sizes if size != 40][:5] == [9, 9, 9, 9, 4]
    assert sizes.count(40) == (name == "native")  # as the run had them


def test_where_all_classes_are_as_likely_native_answers_must_name_the_same_class_among_other_images(receive):
    receive(TIES, "native")
    for command in COMMANDS:
        with pytest.raises(UserError, match=r"\d+ of \d+ answers name another class among other images, so those of the network are no ev"):
            command()


def test_even_where_nothing_else_sees_it_images_alone_must_be_of_the_same_class(receive, nothing_refused):
    receive(ALONE, "native")
    for command in COMMANDS:
        with pytest.raises(UserError, match=r"\d+ of \d+ answers name another class among other images, so those of the network are no ev"):
            command()


def test_with_native_numerics_too_the_exact_forms_of_a_received_networks_operations_must_not_refuse_it(receive, monkeypatch):
    receive(CROWD, "native")
    Path("networks", "theirs.py").unlink()
    monkeypatch.setattr(received, "check", lambda *given: None)
    monkeypatch.setattr(evaluation, "_batches_by_chance", lambda *given: [])
    for command in COMMANDS:
        with pytest.raises(
            UserError, match=r"network\.json: what it answers may .*: numerics 'exact' has no form of a mean or sum over the images"
        ):
            command()


def test_a_batch_of_neighbours_and_one_of_a_class_are_among_those_that_nobody_knows():
    labels = np.arange(40) // 10
    batches = [each.tolist() for each in evaluation._batches_by_chance(np.random.default_rng(1), labels, 10)]
    assert [len(each) for each in batches[:13]] == [*evaluation.FEW, 10]
    neighbours, of_a_class = batches[-2:]
    assert neighbours == [(neighbours[0] + i) % 40 for i in range(10)]
    assert len(of_a_class) == 10
    assert len({i // 10 for i in of_a_class}) == 1


def test_a_received_network_that_draws_while_it_answers_is_refused(receive, monkeypatch):
    receive(DRAWS, "native")
    with pytest.raises(
        UserError, match=r"network\.json: what it answers may depend on more than the image, so it is no evidence: .*dropout"
    ):
        evaluation.evaluate_kept(Path("theirs"), "cpu", 40)
    monkeypatch.setattr(evaluation, "TRIED", ())  # as if no form refused it
    for command in COMMANDS:
        with pytest.raises(UserError, match=r"the network draws random numbers while it is evaluated"):
            command()


def test_statistics_that_a_norm_changes_are_seen_though_no_version_tells():
    network = nn.BatchNorm1d(1)
    version = network.running_mean._version
    with pytest.raises(UserError, match=r"the network changes its 'running_mean' while it is evaluated"):  # noqa: SIM117
        with torch.inference_mode(), bounds.unchanged(network):
            network(torch.ones(2, 1))
    assert network.running_mean._version == version


def test_with_native_numerics_a_received_network_must_answer_alike_in_another_order(receive):
    receive(PLACES, "native")
    assert outputs.read_metrics(Path("theirs")).accuracy == 1
    for command in COMMANDS:
        with pytest.raises(UserError, match=r"test image \d+: its answer is another one among other images, so those of the net"):
            command()


def test_a_network_that_counts_what_it_answers_is_refused_in_its_evaluation(receive):
    with pytest.raises(UserError, match=r"the network changes its 'count' while it is evaluated, and an image's answer could depend on"):
        receive(COUNTS, "exact")
