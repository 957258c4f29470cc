"""Drawn networks: the pipeline gives the reference's bits, whatever the shapes, the values, the shares of a batch and the kernels.

PIPELINE_TEST_NETWORKS is how many networks are drawn; without it the same few hundred at each run. `make properties` draws 10,000.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.exact import convolutions, hardware, products, reductions, rows
from pipeline.exact.engine import Exact
from pipeline.exact.errors import Unsupported
from pipeline.exact.group import ALONE, Group
from pipeline.exact.masks import Draws
from pipeline.exact.tape import Tape
from tests import drawn_forms, drawn_networks, reference, reference_tape
from tests.chaos import Chaos
from tests.drawn_networks import Model, Network, References, Step, compute, networks
from tests.simulated import Exchange, together
from tests.test_exact_reference import bits

SEED, STEP = 2**33 + 3, 11
ASKED = os.environ.get("PIPELINE_TEST_NETWORKS")
Array = np.ndarray
Found = dict[str, Array]


def of_pipeline(network: Network, group: Group = ALONE) -> Found:
    """The loss, the gradients and the buffers after a step of training."""
    model, images = Model(network).train(), drawn_networks.images(network)
    share = group.share(network.images)
    classes = network.weights[network.steps[-1].weights[0]][0][0]
    given = [torch.from_numpy(a[share]) for a in (images, drawn_networks.labels(network, classes))]
    draws = Draws(SEED, torch.full((1,), STEP), share.start)
    loss, gradients = Exact().loss_and_gradients(model, *given, group, network.images, draws=draws)
    found = {"loss": loss, **{f"w{i}": g for i, g in enumerate(gradients)}, **dict(model.named_buffers())}
    return {name: a.numpy() for name, a in found.items() if a is not None}


def of_reference(network: Network, training: bool = True) -> Found:
    """The same, a second time; in evaluation the logits."""
    images, buffers = drawn_networks.images(network), drawn_networks.statistics(network)
    f = References(list(zip(buffers[::2], buffers[1::2], strict=True)), training)
    tape = reference_tape.Tape(len(images), SEED, STEP)
    weights = [reference_tape.Value(tape, w) for w in drawn_networks.weights(network)]
    with np.errstate(all="ignore"):
        y = compute(network, f, reference_tape.Value(tape, images, True), weights).newest()
        if not training:
            return {"logits": y.array}
        labels = drawn_networks.labels(network, y.array.shape[1])
        hot = np.eye(y.array.shape[1])[labels]
        loss = np.float32(reference.mean(reference.losses(y.array, labels)))
        tape.back((y, ((reference.softmax(y.array)[2] - hot) / np.float64(len(images))).astype(np.float32)))
    found = {"loss": np.asarray(loss), **{f"w{i}": w.gradient for i, w in enumerate(weights)}}
    return {name: a for name, a in found.items() if a is not None} | {f"statistic{i}": a for i, a in enumerate(buffers)}


def check_equal(found: Found, wanted: Found) -> None:
    assert list(found) == list(wanted)
    for name, a in wanted.items():
        assert found[name].dtype == a.dtype == np.float32, name
        assert np.array_equal(bits(found[name]), bits(a)), (name, found[name], a)


# --- every other way to the same sums --------------------------------------------------------------------------------

Way = Callable[[pytest.MonkeyPatch], AbstractContextManager[object] | None]


def plain(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(products, "convolution", lambda s, p, d, groups, x, w, terms: reductions.Convolution(s, p, d, terms, groups))


def turned_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hardware, "is_from_intel", lambda: True)


def other_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hardware, "is_from_intel", lambda: False)
    patch.setattr(hardware, "multiplies_bytes", lambda: False)


def digits_of_bytes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hardware, "multiplies_bytes", lambda: True)


def as_on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hardware, "is_cpu", lambda tensor: False)


def short_sums(patch: pytest.MonkeyPatch, terms: int = drawn_forms.KERNEL) -> None:
    """As if float64 held no more than so many products, which are enough for the largest kernel."""
    for module in (products, reductions, convolutions):
        patch.setattr(module, "TERMS", terms)
    patch.setattr(products, "BYTE_TERMS", terms)
    patch.setattr(products, "INT64_FACTOR", 2**20)


def an_image_at_a_time(patch: pytest.MonkeyPatch) -> None:
    for operation in (reductions.Matmul, reductions.Convolution, rows.ConvolutionByRows):
        patch.setattr(operation, "images_at_once", lambda *shapes: 1)


def in_another_order(patch: pytest.MonkeyPatch) -> Chaos:
    return Chaos(0)


WAYS: dict[str, Way] = {
    way.__name__: way
    for way in (plain, turned_rows, other_rows, digits_of_bytes, as_on_a_gpu, short_sums, an_image_at_a_time, in_another_order)
}


def another_way(network: Network, name: str) -> Found:
    with pytest.MonkeyPatch.context() as patch, WAYS[name](patch) or nullcontext():
        return of_pipeline(network)


def workers(network: Network, count: int) -> list[Found]:
    """With shares cut anywhere, and sums in any order, but for batch norms, whose trees need runs in order.

    Each must know alike how many numbers an image has in a tensor, also where it has no images: that decides how sums are added.
    """
    chaos, record, noted = None if network.statistics else network.seed, Tape.record, defaultdict(list)

    def noting(tape: Tape, y: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        result = record(tape, y, *arguments, **named)
        if tape.of_images(y):
            noted[threading.current_thread()].append(tape.elements(y))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tape, "record", noting)
        found = together(Exchange(count, chaos), partial(of_pipeline, network))
    assert all(elements == next(iter(noted.values())) for elements in noted.values())
    return found


def check(network: Network, ways: Iterable[str], count: int) -> None:
    wanted = of_reference(network)
    check_equal(of_pipeline(network), wanted)
    for way in ways:
        check_equal(another_way(network, way), wanted)
    for found in workers(network, count):
        check_equal(found, wanted)
    model, images = Model(network).eval(), torch.from_numpy(drawn_networks.images(network))
    logits = Exact().logits(model, images).numpy()
    check_equal({"logits": logits}, of_reference(network, training=False))
    for i in range(len(images)):
        check_equal({"logits": Exact().logits(model, images[i : i + 1]).numpy()}, {"logits": logits[i : i + 1]})


@settings(max_examples=int(ASKED or 300), derandomize=ASKED is None, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(network=networks(), way=st.sampled_from(sorted(WAYS)), count=st.sampled_from([2, 3]))
def test_a_drawn_network_has_the_references_bits_in_any_shares_by_any_kernel_and_image_by_image(network, way, count):
    check(network, [way], count)


def kept(
    shape: tuple[int, ...], weights: list[tuple[int, ...]], *steps: Step, images: int = 3, statistics: tuple[int, ...] = ()
) -> Network:
    """A network that was drawn once, or might have been."""
    return Network(images, shape, "bytes", tuple((shape, "usual") for shape in weights), steps, statistics)


FOUND = {
    "a layer without outputs": kept(
        (2, 2, 2), [(0, 8), (0,), (3, 0), (3,)], Step("flatten", (0,)), Step("linear", (1,), (0, 1)), Step("linear", (2,), (2, 3))),
    "a row without numbers beside one with": kept(
        (2, 2, 2), [(3, 8), (3,)], Step("slice", (0,), (), (2,)), Step("cat", (1, 0)), Step("rows", (2,), (), (2,)),
        Step("batch_norm", (3,), (), (None, None, 0, 0.1, 1e-5)), Step("images", (4,), (), (8,)), Step("linear", (5,), (0, 1)),
        images=1, statistics=(2,)),
    "a part that is changed in place twice, and then the whole": kept(
        (3, 1, 2), [(1, 2), (1, 1), (1,), (2, 1), (2,), (3, 6), (3,)], Step("linear", (0,), (0,)), Step("slice", (1,), (), (0,)),
        Step("addition in place", (2, 2)), Step("addition in place", (3, 3)), Step("linear", (4,), (1, 2)), Step("linear", (1,), (3, 4)),
        Step("flatten", (6,)), Step("linear", (7,), (5, 6))),
    "a layer without inputs": kept(
        (2, 2, 2), [(3, 0), (3,)], Step("slice", (0,), (), (2,)), Step("flatten", (1,)), Step("linear", (2,), (0, 1))),
    "a layer over no places": kept(
        (1, 1, 1), [(3, 1), (3, 0), (3,)], Step("slice", (0,), (), (1,)), Step("linear of weights", (1,), (0,)), Step("flatten", (2,)),
        Step("linear", (3,), (1, 2))),
    "a weight beside no numbers": kept(
        (2, 0, 2), [(2, 1, 1), (3, 2), (3,)], Step("times weight", (0,), (0,)), Step("sum", (1,), (), (3,)), Step("sum", (2,), (), (2,)),
        Step("linear", (3,), (1, 2))),
    "a weight without numbers": kept(
        (2, 2, 2), [(0, 1, 1), (3, 8), (3,)], Step("slice", (0,), (), (2,)), Step("times weight", (1,), (0,)), Step("cat", (2, 0)),
        Step("flatten", (3,)), Step("linear", (4,), (1, 2))),
    "batch norm of no channels": kept(
        (2, 2, 2), [(3, 0), (3,)], Step("slice", (0,), (), (2,)), Step("batch_norm", (1,), (), (None, None, 0, 0.1, 1e-5)),
        Step("flatten", (2,)), Step("linear", (3,), (0, 1)), statistics=(0,)),
    "a product of the images themselves": kept(
        (3, 1, 2), [(3, 4)], Step("sequence", (0,)), Step("matmul", (1, 1)), Step("flatten", (2,)), Step("linear", (3,), (0,))),
    "a kernel as large as its one image": kept(
        (3, 5, 4), [(6, 3, 5, 4), (6,), (10, 6), (10,)], Step("conv2d", (0,), (0, 1), ((1, 1), (0, 0), (1, 1), 1)),
        Step("flatten", (1,)), Step("linear", (2,), (2, 3)), images=1),
}  # fmt: skip
"""What broke something, or would have."""


@pytest.mark.parametrize("name", FOUND)
def test_a_network_that_broke_something_once_has_the_references_bits(name):
    check(FOUND[name], WAYS, 2)


class Applied(nn.Module):
    """A function of the images."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@pytest.mark.parametrize("form", [torch.softmax, torch.log_softmax])
def test_a_softmax_over_no_numbers_is_refused_by_name(form):
    with pytest.raises(Unsupported, match="softmax over no numbers"):
        Exact().logits(Applied(lambda x: form(x.flatten(1)[:, :0], 1)), torch.zeros(2, 3, 4, 4))


def test_a_layer_over_places_without_features_is_refused_by_name():
    with pytest.raises(Unsupported, match="linear of 4 dimensions without features"):
        Exact().logits(Applied(lambda x: F.linear(x[:, :, :, :0], torch.zeros(5, 0))), torch.zeros(2, 3, 4, 4))


def test_a_convolution_without_channels_is_refused_by_name():
    with pytest.raises(Unsupported, match="conv2d with a weight of"):
        Exact().logits(Applied(lambda x: F.conv2d(x, torch.zeros(0, 3, 1, 1))), torch.zeros(2, 3, 4, 4))
