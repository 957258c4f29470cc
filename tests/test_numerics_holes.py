"""What shapes, views and operations in place do not change: the network that PyTorch computes, and the bits for any shares."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.exact.engine import Exact
from pipeline.exact.errors import Unsupported
from pipeline.exact.tape import Tape
from tests.networks import batch, equal, step
from tests.simulated import Exchange, together
from tests.test_numerics_workers import Recorded


class Model(nn.Module):
    """Layers, and a function of them and the images."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def in_shares(model, images, labels, shares):
    starts = [0, *torch.tensor(shares).cumsum(0).tolist()]

    def work(group):
        part = slice(starts[group.rank], starts[group.rank + 1])
        return step(model, images[part], labels[part], group=group, of=len(images))

    return together(Exchange(len(shares)), work)


@pytest.mark.parametrize("images", [1, 2, 129])
def test_gradients_of_a_kernel_as_large_as_its_images_are_native_ones_to_rounding(images):
    torch.manual_seed(0)
    model, given = nn.Sequential(nn.Conv2d(3, 6, 32), nn.Flatten(), nn.Linear(6, 10)), batch(images)
    for a, b in zip(step(model, *given), step(model, *given, "native"), strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


def viewed_as_rows(forward=lambda m, x: m.out(m.rows(m.conv(x).view(-1, 4)).view(-1, 3072))):
    torch.manual_seed(0)
    return Model(forward, conv=nn.Conv2d(3, 4, 1), rows=nn.Linear(4, 3), out=nn.Linear(3072, 10))


@pytest.mark.parametrize("images", [16, 33])  # 1,024 rows an image: beyond 32 images float64 does not hold the sums
@pytest.mark.parametrize("empty", [[], [0]])
def test_a_view_that_makes_rows_of_images_gives_the_same_bits_for_any_shares(images, empty):
    model, given = viewed_as_rows(), batch(images)
    alone = step(model, *given)
    for of_worker in in_shares(model, *given, [*empty, 1, images - 1]):
        assert equal(of_worker, alone)


@pytest.mark.parametrize(("images", "dtype"), [(32, torch.float64), (33, torch.int64)])
def test_the_rows_that_a_view_makes_of_an_image_count_in_the_bound(images, dtype):
    group = Recorded()
    step(viewed_as_rows(), *batch(2), group=group, of=images)
    assert group.given["total"].dtype == dtype


def test_a_share_without_images_keeps_the_sizes_of_an_image():
    model, given = Model(lambda m, x: m.fc(x.view(x.size(0), -1)), fc=nn.Linear(3072, 10)), batch(3)
    assert all(equal(each, step(model, *given)) for each in in_shares(model, *given, [0, 3]))


@pytest.mark.parametrize("sizes", [(-1, 6144), (2, 6144), (1, 12288)])
def test_a_view_that_mixes_images_is_refused(sizes):
    with pytest.raises(Unsupported, match="which mixes images"):
        Exact().logits(Model(lambda m, x: m.fc(x.view(*sizes)), fc=nn.Linear(sizes[1], 10)), batch(4)[0])


def test_a_model_that_gives_other_than_a_row_of_logits_an_image_is_refused():
    model = Model(lambda m, x: m.fc(x.view(-1, 1024)), fc=nn.Linear(1024, 10))
    for compute in (lambda: Exact().logits(model, batch(2)[0]), lambda: step(model, *batch(2))):
        with pytest.raises(Exception, match="a row of logits an image"):
            compute()


# --- in place ----------------------------------------------------------------------------------------------------------


def added(change):
    def forward(m, x):
        x = m.first(x.flatten(1))
        return m.last(x + m.one(change(x)))

    return forward


def iadd(m, x):
    x = y = m.first(x.flatten(1))
    x += m.one(x)
    return m.last(y + x)


def masked(m, x):
    x = m.first(x.flatten(1))
    mask = x > 0.5
    mask[:, 0] = True
    x = m.one(x)
    x[mask] = 0.25
    return m.last(x)


IN_PLACE = {
    "the mask of an assignment": masked,
    "F.relu": added(lambda x: F.relu(x, inplace=True)),
    "torch.relu_": added(torch.relu_),
    "Tensor.relu_": added(lambda x: x.relu_()),
    "twice": added(lambda x: torch.relu_(torch.relu_(x))),
    "add_": added(lambda x: x.add_(F.relu(x))),
    "+=": iadd,
}


def twelve(forward):
    torch.manual_seed(0)
    return Model(forward, first=nn.Linear(3072, 12), one=nn.Linear(12, 12), last=nn.Linear(12, 10))


@pytest.mark.parametrize("name", IN_PLACE)
def test_later_readers_of_a_tensor_changed_in_place_see_its_new_value(name):
    model, (images, labels) = twelve(IN_PLACE[name]), batch(16)
    # native gradients cannot be had where autograd refuses a change of what a layer keeps, so the logits are compared with PyTorch's
    with torch.no_grad():
        wanted = model(images / 255)
    assert (Exact().logits(model, images) - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    assert all(each.isfinite().all() for each in step(model, images, labels))


@pytest.mark.parametrize("change", ["view", "base"])
def test_reading_a_tensor_whose_memory_was_changed_by_way_of_another_is_refused(change):
    def forward(m, x):
        x = m.first(x.flatten(1))
        view = x.view(-1, 3, 4)
        torch.relu_(view if change == "view" else x)
        return m.last(x if change == "view" else view.flatten(1))

    with pytest.raises(Unsupported, match=r"(linear|flatten) of a tensor whose memory another operation has changed in place"):
        Exact().logits(twelve(forward), batch(2)[0])


def test_what_is_detached_shows_the_same_memory():
    def forward(m, x):
        x = m.first(x.flatten(1))
        torch.relu_(x.detach())
        return m.last(x)

    with pytest.raises(Unsupported, match=r"linear of a tensor whose memory another operation has changed in place"):
        Exact().logits(twelve(forward), batch(2)[0])


def test_a_mask_of_which_a_part_was_changed_is_refused():
    def forward(m, x):
        x = m.first(x.flatten(1))
        mask = x > 0.5
        part = mask[:, 0]
        part[:] = True
        x = m.one(x)
        x[mask] = 0.25
        return m.last(x)

    with pytest.raises(Unsupported, match=r"an index of a tensor whose memory another operation has changed in place"):
        Exact().logits(twelve(forward), batch(2)[0])


def test_a_pass_with_changes_in_place_is_gone_without_pythons_collector(monkeypatch):
    tapes, start = [], Tape.__init__
    monkeypatch.setattr(Tape, "__init__", lambda self, *given: (start(self, *given), tapes.append(weakref.ref(self)))[0])
    gc.disable()
    try:
        step(twelve(IN_PLACE["F.relu"]), *batch(4))
        assert [each() for each in tapes] == [None]
    finally:
        gc.enable()


def test_arguments_that_a_form_does_not_take_are_refused_by_name():
    model = twelve(lambda m, x: m.last(torch.add(y := m.first(x.flatten(1)), y, out=y)))
    with pytest.raises(Unsupported, match="no form of addition with out"):
        Exact().logits(model, batch(2)[0])
