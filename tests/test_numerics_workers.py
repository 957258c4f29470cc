"""Workers with any shares of a batch add up to one, in two exchanges a step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.workers import Group
from tests.networks import batch, equal, own_network, step
from tests.steps import trainer


class Recorded(Group):
    """A worker of several that computes alone: first it notes what it gives, then it takes what all have given."""

    count = 2

    def __init__(self, maximum: Tensor | None = None, total: Tensor | None = None) -> None:
        self.answers, self.given = {"maximum": maximum, "total": total}, {}
        self.exchanges: list[str] = []

    def _exchange(self, kind: str, mine: Tensor) -> Tensor:
        self.given[kind] = mine
        self.exchanges.append(kind)
        return mine if self.answers[kind] is None else self.answers[kind]

    def maximum(self, magnitudes: Tensor) -> Tensor:
        return self._exchange("maximum", magnitudes)

    def total(self, integers: Tensor) -> Tensor:
        return self._exchange("total", integers)


@pytest.mark.parametrize("shares", [[100], [50, 50], [33, 33, 34], [1, 0, 99], [0, 100], [1] * 10 + [90]])
@pytest.mark.parametrize("model", [own_network, lambda: trainer().model], ids=["own", "SimpleCNN"])
def test_workers_with_any_shares_of_a_batch_give_the_bits_of_one(shares, model):
    (images, labels), model = batch(100), model()
    parts = list(zip(images.split(shares), labels.split(shares), strict=True))
    groups = [Recorded() for _ in parts]
    for group, part in zip(groups, parts, strict=True):
        step(model, *part, group=group, of=100)
    maximum = torch.stack([group.given["maximum"] for group in groups]).amax(0)
    groups = [Recorded(maximum) for _ in parts]
    for group, part in zip(groups, parts, strict=True):
        step(model, *part, group=group, of=100)
    total = torch.stack([group.given["total"] for group in groups]).sum(0)
    alone = step(model, images, labels)
    for part in parts:
        assert equal(step(model, *part, group=Recorded(maximum, total), of=100), alone)


def test_a_step_needs_two_exchanges_between_workers_a_maximum_and_a_sum():
    group = Recorded()
    step(trainer().model, *batch(10), group=group)
    assert group.exchanges == ["maximum", "total"]
    # the mean loss, and a grid for each output channel of the five layers: of conv1, which sees bytes, for weight and bias together
    assert group.given["maximum"].shape == (1 + 6 + 2 * (16 + 120 + 84 + 10),)
    assert group.given["total"].shape == (1 + 62006,)


@pytest.mark.parametrize(("images", "dtype"), [(327, torch.float64), (328, torch.int64)])
def test_workers_add_float64_where_it_holds_the_whole_batchs_sums_and_int64_elsewhere(images, dtype):
    group = Recorded()
    step(trainer().model, *batch(3), group=group, of=images)
    assert group.given["total"].dtype == dtype


def test_native_workers_add_up_to_one_whatever_their_shares():
    (images, labels), model = batch(100), trainer().model
    alone = step(model, images, labels, "native")
    group = Recorded()
    group.count = 3
    total = 0
    for first, last in ((0, 0), (0, 37), (37, 100)):
        step(model, images[first:last], labels[first:last], "native", group, 100)
        total = total + group.given["total"]
    of_three = step(model, images[:1], labels[:1], "native", type("Told", (Group,), {"count": 3, "total": lambda self, x: total})(), 100)
    for a, b in zip(of_three, alone, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
