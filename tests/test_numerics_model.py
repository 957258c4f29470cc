"""Around a model: which forms it may be made of, how gradients find their way back, and how workers add up to one."""

from __future__ import annotations

import contextlib
import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import numerics
from pipeline.draws import random_integers
from pipeline.errors import UserError
from pipeline.evaluation import evaluate
from pipeline.numerics import registry, weighted
from pipeline.numerics.exact import VERSION, Exact
from pipeline.numerics.reductions import Convolution, Matmul
from pipeline.numerics.tape import Tape
from pipeline.params import Evaluate, Train
from pipeline.training.loop import train
from pipeline.training.trainer import Trainer
from pipeline.workers import ALONE, Group
from tests.chaos import Chaos
from tests.steps import CPU, drawn_set, run_steps, trained_fingerprint, trainer


class Viewed(nn.Module):
    """A last layer that views its input as rows, as the tutorial's model does, but straight after a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(60, 10)

    def forward(self, x):
        return self.fc(x.view(-1, 60))


def own_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3), nn.Conv2d(8, 12, (5, 1), bias=False), Viewed(),
    )  # fmt: skip


def batch(images: int) -> tuple[Tensor, Tensor]:
    data = drawn_set(images)
    return torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels).long()


def step(
    model: nn.Module, images: Tensor, labels: Tensor, name: str = "exact", group: Group = ALONE, of: int | None = None
) -> list[Tensor]:
    """The loss and the gradients."""
    loss, gradients = numerics.select(name, CPU).loss_and_gradients(model, images, labels, group, of or len(images))
    return [loss, *gradients]


def equal(tensors: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def test_a_users_own_network_of_these_layers_computes_exactly_and_close_to_native():
    model, given = own_network(), batch(32)
    plain = step(model, *given)
    with Chaos(3):
        assert equal(step(model, *given), plain)
    for a, b in zip(plain, step(model, *given, "native"), strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


# --- an image's bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [own_network, lambda: trainer().model], ids=["own", "SimpleCNN"])
def test_an_images_logits_are_the_same_alone_in_any_batch_and_in_any_order(model):
    (images, _), model, exact = batch(200), model(), Exact()
    whole = exact.logits(model, images)
    for size in (1, 7, 64, 199):
        assert torch.equal(torch.cat([exact.logits(model, part) for part in images.split(size)]), whole)
    order = torch.from_numpy(np.argsort(random_integers("order", 2**63, 200)))
    assert torch.equal(exact.logits(model, images[order]), whole[order])


def evaluated(data, batch_size: int):
    weights = trainer().named_weights()
    scaled = {name: array * np.float32(2) for name, array in weights.items()}
    evaluated = evaluate(scaled, data, CPU, numerics.select("exact", CPU), Evaluate(batch_size=batch_size))
    return evaluated.metrics, evaluated.predictions


def test_evaluation_gives_the_same_metrics_and_predictions_with_any_batch_size_and_order():
    drawn = drawn_set(301)
    data = replace(drawn, test_images=drawn.train_images, test_labels=drawn.train_labels)
    metrics, predictions = evaluated(data, 301)
    for batch_size in (1, 7, 64, 1000, 2000):
        assert evaluated(data, batch_size) == (metrics, predictions)
    order = np.argsort(random_integers("order", 2**63, 301))
    turned = replace(data, test_images=data.test_images[order], test_labels=data.test_labels[order])
    metrics_turned, predictions_turned = evaluated(turned, 64)
    assert metrics_turned == metrics
    assert [(p.actual, p.predicted, p.confidence) for p in predictions_turned] == [
        (predictions[i].actual, predictions[i].predicted, predictions[i].confidence) for i in order
    ]


@pytest.mark.parametrize("at_once", [1, 24, 64, 400])
def test_the_weights_do_not_change_with_the_number_of_images_computed_at_once(at_once, monkeypatch):
    data = drawn_set(130)
    plain = trained_fingerprint(steps=2, data=data, batch_size=130)
    for operation in (Convolution, Matmul):
        monkeypatch.setattr(operation, "images_at_once", at_once)
    assert trained_fingerprint(steps=2, data=data, batch_size=130) == plain


def test_a_batch_whose_sums_float64_does_not_hold_trains_exactly_all_the_same():
    data = drawn_set(400)
    plain = trained_fingerprint(steps=2, data=data, batch_size=400)  # conv2's weight gradient has 40,000 products
    with Chaos(1):
        assert trained_fingerprint(steps=2, data=data, batch_size=400) == plain


def test_a_batch_that_int64_does_not_hold_is_refused_with_the_largest_that_it_does():
    model, (images, labels) = trainer().model, batch(4)
    step(model, images, labels, of=335544)
    with pytest.raises(UserError, match="conv2d's gradient sums 33554500 products at batch_size 335545, and 33554431 are the most: "
                                        "set batch_size to at most 335544, or numerics: native"):  # fmt: skip
        step(model, images, labels, of=335545)


# --- workers ---------------------------------------------------------------------------------------------------------


class Recorded(Group):
    """A worker of several that computes alone: first it notes what it gives, then it takes what all have given."""

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
    assert group.given["maximum"].shape == (10,)  # the mean loss, five layers, of four a bias on a grid of its own
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


# --- the way back ----------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A tensor that is used three times, and one operation that takes a tensor twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two, self.last = nn.Linear(3072, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x):
        x = F.relu(self.first(x.flatten(1)))
        y = self.one(x) + x
        y = torch.add(y, self.two(x))
        return self.last(y + y)


def test_gradients_of_a_tensor_that_is_used_several_times_are_added():
    torch.manual_seed(0)
    model, given = Residual(), batch(16)
    computed, wanted = step(model, *given), step(model, *given, "native")
    for a, b in zip(computed, wanted, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


def test_the_gradients_of_a_tensor_are_added_in_the_reverse_of_the_order_of_its_uses():
    x, gradients = torch.zeros(1), [1.0, 2.0**-24, 2.0**-24]  # 1 absorbs each of the small ones, but not their sum
    tape, sums = Tape(torch.zeros(0), {}, 1), []
    tape.record(x, (), lambda g: (sums.append(g.item()), ())[1])
    ends = [tape.record(torch.zeros(1), (x,), lambda _, g=g: (torch.tensor([g]),)) for g in gradients]
    tape.record(y := torch.zeros(1), tuple(ends), lambda g: (g, g, g))
    tape.walk_back(y, torch.ones(1))
    assert sums == [1 + 2.0**-23]  # the last use's first: (2^-24 + 2^-24) + 1


class RectifiedTwice(nn.Module):
    """A ReLU whose output is pooled, added and pooled again, and one whose output is the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 5), nn.Linear(4 * 14 * 14, 10)

    def forward(self, x):
        y = F.relu(self.conv(x))
        pooled = F.max_pool2d(y, 2) + F.max_pool2d(y + y, 2)
        return F.relu(self.last((pooled + F.max_pool2d(y, 2)).flatten(1)))


def test_gradients_of_a_relu_that_is_pooled_and_used_otherwise_are_native_ones_to_rounding():
    torch.manual_seed(0)
    model, given = RectifiedTwice(), batch(16)
    for a, b in zip(step(model, *given), step(model, *given, "native"), strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()
    assert torch.equal(Exact().logits(model, given[0])[3:4], Exact().logits(model, given[0][3:4]))
    assert Exact().logits(model, given[0]).isfinite().all()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(10, 10)
        self.first = nn.Linear(3072, 10)

    def forward(self, x):
        return self.only(self.only(self.first(x.flatten(1))))


class Unused(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3072, 10))
        self.beside = nn.Parameter(torch.zeros(3))


class Aside(Unused):
    """A layer whose output is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Linear(3072, 10)

    def forward(self, x):
        self.side(x.flatten(1))
        return self[1](x.flatten(1))


class Added(Tied):
    def forward(self, x):
        return self.first(x.flatten(1)) + self.only.bias.view(1, 10)


class FromNowhere(Tied):
    def forward(self, x):
        return self.first(x.flatten(1)) + self.constant

    constant = torch.zeros(4, 10)


class Derived(Tied):
    def forward(self, x):
        return F.linear(x.flatten(1), self.constant)

    constant = torch.zeros(10, 3072)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Tied, "a weight that is used twice, as 'only.weight' is"),
        (Unused, "a weight that takes no part in the loss, as 'beside' does not"),
        (Aside, "a weight that takes no part in the loss, as 'beside' does not"),
        (Added, "a change of shape of the weight 'only.bias'"),
        (FromNowhere, "addition of a tensor that was not made from the images"),
        (Derived, "linear with a weight that is not a parameter of the model"),
    ],
)
def test_a_weight_or_tensor_whose_gradient_would_be_wrong_is_refused_by_name(model, reason):
    with pytest.raises(UserError, match=f"^numerics 'exact' has no form of {reason}; change the model or set numerics: native$"):
        step(model(), *batch(4))


# --- the registry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.BatchNorm2d(3, track_running_stats=False), "batch_norm"),
        (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3)), "conv2d with groups=3"),
        (nn.Conv2d(3, 3, 3, padding="same"), "conv2d with groups=1, padding='same'"),
        (nn.Conv2d(3, 3, 9), "conv2d with a kernel larger than its images"),
        (nn.AvgPool2d(2), "avg_pool2d"),
        (nn.MaxPool2d(3, 2), "max_pool2d with overlapping"),
        (nn.Linear(8, 8), "linear on 4 dimensions"),
        (nn.Tanh(), "tanh"),
        (nn.Dropout(0.5), "dropout"),
    ],
)
def test_an_operation_without_an_exact_form_is_refused_by_name(layer, named):
    x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=rf"numerics 'exact' has no form of '?.*{named}.*numerics: native"):
        Exact().logits(layer, x)


def test_the_refusal_lists_what_has_a_form_from_the_one_table(monkeypatch):
    monkeypatch.setitem(registry.FORMS, "another", (weighted.linear, []))
    with pytest.raises(UserError, match=f"it has: {', '.join(registry.FORMS)}; never under torch.compile"):
        Exact().logits(nn.Tanh(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_a_compiled_model_is_never_computed_by_what_a_compiler_made():
    compiled = []

    def compiler(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    model, (x, _) = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), batch(8)
    plain = Exact().logits(model, x)
    with contextlib.suppress(UserError):
        assert torch.equal(Exact().logits(torch.compile(model, backend=compiler), x), plain)
    assert compiled == []


def test_exact_1_is_refused_with_the_line_that_says_which_version_made_a_run():
    for name in ("exact", VERSION):
        assert numerics.select(name, CPU).version == "exact-2"
    with pytest.raises(UserError, match=r"^numerics 'exact-1': this version of the pipeline has exact-2 and native; use the version that "
                                        r"made the run$"):  # fmt: skip
        numerics.select("exact-1", CPU)


def test_exact_numerics_on_a_device_without_float64_are_refused_with_the_way_out():
    with pytest.raises(UserError, match="needs float64, which device 'mps' has not; set numerics: native"):
        numerics.select("exact", torch.device("mps"))


# --- what is not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exact", "native"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training_with_the_step(name, poison, monkeypatch):
    original = Trainer._step

    def poisoned(self, offsets):
        if int(self.position) == 64 * 2:
            self.parameters["fc3.weight"].data[3, 3] = poison
        original(self, offsets)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    settings = Train(epochs=3, batch_size=64, lr=0.01, momentum=0.9, log_every=7)
    with pytest.raises(UserError, match=r"training stopped at step 3: the loss is nan; set a smaller lr than 0.01"):
        train(Trainer(drawn_set(), CPU, 0, numerics.select(name, CPU), settings))


@pytest.mark.parametrize("name", ["exact", "native"])
def test_a_gradient_that_is_not_finite_stops_training_with_the_step(name, monkeypatch):
    chosen = numerics.select(name, CPU)
    settings = Train(epochs=1, batch_size=64, lr=0.01, momentum=0.9, log_every=7)
    given = Trainer(drawn_set(), CPU, 0, chosen, settings)
    monkeypatch.setattr(given.optimizer, "step", lambda gradient: given.optimizer.state["velocity"].fill_(math.inf))
    with pytest.raises(UserError, match="training stopped at step 1: a gradient is not finite"):
        train(given)


@pytest.mark.parametrize("images", [3, 400])  # 400: sums in int64, which has no NaN
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_every_gradient_that_a_value_which_is_not_finite_reaches_is_nan(images, value):
    given = trainer()
    given.parameters["fc3.bias"].data[0] = value
    loss, *gradients = step(given.model, *batch(3), of=images)
    assert loss.isnan()
    assert all(g.isnan().all() for g in gradients)


def test_what_a_step_recorded_is_gone_when_it_ends_without_pythons_collector(monkeypatch):
    tapes = []
    start = Tape.__init__

    def noted(self, *arguments):
        start(self, *arguments)
        tapes.append(weakref.ref(self))

    monkeypatch.setattr(Tape, "__init__", noted)
    gc.disable()
    try:
        run_steps(trainer(data=drawn_set(128)), 3)
        assert [each() for each in tapes] == [None] * 3
    finally:
        gc.enable()
