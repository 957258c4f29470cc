"""An image's part in a pass depends on no other image, nor on its place in the batch, nor on what was computed before."""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.exact import parts
from pipeline.exact.engine import Exact
from pipeline.exact.errors import Unsupported
from pipeline.exact.group import ALONE
from pipeline.exact.initialisation import initial_values
from pipeline.exact.masks import Draws
from tests.simulated import Exchange, together

IMAGES, CLASSES, WIDTH = 8, 5, 8
OWN = torch.arange(float(IMAGES)).view(-1, 1)
"""A number for each place of a batch, and a matrix with a row for each."""
ROWS = torch.eye(IMAGES, WIDTH)


class Changed(nn.Module):
    """A linear layer after `change` of the first numbers of each image, float32 [N, WIDTH]."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change, self.weight = change, nn.Parameter(torch.linspace(-1, 1, WIDTH))
        self.last = nn.Linear(WIDTH, CLASSES)
        nn.init.constant_(self.last.weight, 0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.change(x.flatten(1)[:, :WIDTH] * self.weight))


def drawn() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (IMAGES, 3, 2, 2), generator=draw, dtype=torch.uint8), torch.arange(IMAGES) % CLASSES


def assigned(index, value):
    """A change that puts a value, or what it gives for the activation, to a part of a copy of it."""

    def change(x: Tensor) -> Tensor:
        y = x.clone()
        y[index] = value(x) if callable(value) else value
        return y

    return change


def put_by_mask(y: Tensor, mask, value) -> Tensor:
    y[mask] = value
    return y


def square(x: Tensor) -> Tensor:
    """Images [N, 2, 2, 2]."""
    return x.view(x.shape[0], 2, 2, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: F.conv2d(square(x).permute(1, 2, 0, 3), torch.ones(2, 2, 3, 3), padding=1), "conv2d where the images are not the first"),
        (lambda x: F.conv2d(square(x).permute(1, 0, 2, 3), torch.ones(8, 8, 1, 1)), "conv2d where the images are not the first axis"),
        (lambda x: F.max_pool2d(square(x).permute(1, 2, 0, 3), 3, 1, 1), "max_pool2d where the images are not the first axis"),
        (lambda x: F.max_pool2d(F.relu(square(x).permute(1, 2, 0, 3)), 2), "max_pool2d where the images are not the first axis"),
        (lambda x: F.avg_pool2d(square(x).permute(1, 2, 0, 3), 3, 1, 1), "avg_pool2d where the images are not the first axis"),
        (lambda x: F.adaptive_avg_pool2d(square(x).permute(1, 2, 0, 3), 1), "adaptive_avg_pool2d where the images are not the first axis"),
        (lambda x: F.adaptive_max_pool2d(square(x).permute(1, 2, 0, 3), 1), "adaptive_max_pool2d where the images are not the first axis"),
        (lambda x: F.interpolate(square(x).permute(1, 2, 0, 3), (16, 4)), "interpolate where the images are not the first axis"),
        (
            lambda x: F.pixel_shuffle(x.t()[None, :, :, None].permute(0, 2, 1, 3), 2),
            "pixel_shuffle where the images are not the first axis",
        ),
        (lambda x: F.channel_shuffle(square(x).permute(1, 0, 2, 3), 2), "channel_shuffle where the images are not the first axis"),
        (lambda x: F.group_norm(square(x).permute(1, 0, 2, 3), 2), "group_norm where the images are not the first axis"),
        (lambda x: F.instance_norm(square(x).permute(1, 2, 0, 3)), "instance_norm where the images are not the first axis"),
        (lambda x: F.batch_norm(x.t(), None, None, training=True), "batch_norm of 2 dimensions, or where the images are not the first"),
        (lambda x: F.layer_norm(x.t(), (8,)).t(), "a norm over the images"),
        (lambda x: F.layer_norm(x.t()[None], (8, 8))[0].t(), "a norm over the images"),
        (lambda x: F.normalize(x, dim=0), "normalize over the images"),
        (lambda x: F.linear(x.t(), torch.ones(8, 8)).t(), "linear over the images"),
        (lambda x: F.linear(x.t()[None], torch.ones(8, 8))[0].t(), "linear over the images"),
        (lambda x: F.pad(x, (0, 0, 1, 0)), "pad over the images"),
        (lambda x: F.linear(x.t().reshape(8, 4, 2).reshape(-1, 8), torch.ones(8, 8)), "linear where the images are spread"),
        (lambda x: x.t().reshape(4, -1)[:1], "indexing where the images are spread"),
        (lambda x: F.linear(x[None].reshape(1, 4, 16), torch.ones(8, 16)), "linear where the images are spread"),
        (lambda x: x[:, None].expand(3, x.shape[0], 1, WIDTH).mean(1)[0, 0], "a mean or sum over the images"),
        (lambda x: x.repeat(3, 1, 1).mean(1), "a mean or sum over the images"),
        (
            lambda x: torch.where(x > -9, x, torch.zeros(x.shape[0], 1, WIDTH)).mean(1),
            "along another axis|over the images",
        ),
        (lambda x: torch.where(x > -9, x, torch.zeros(3, 1, WIDTH)).mean(1), "a mean or sum over the images"),
        (lambda x: x.masked_fill(torch.zeros(3, 1, WIDTH) > 0, 0.0).mean(1), "a mean or sum over the images"),
        (
            lambda x: F.linear(x, torch.ones(8, WIDTH), x[:, 0]),
            "linear with a weight or bias that was",
        ),
        (
            lambda x: F.batch_norm(x, torch.zeros(8), torch.ones(8), x[:, 0], x[:, 1]),
            "batch_norm with a weight, bias",
        ),
        (lambda x: torch.ones(8, WIDTH)[x > 0].sum(0) + x, "indexing of a constant by what was made from the images"),
        (lambda x: x + torch.full((), x.shape[0]), "a constant that is the number of images"),
        (lambda x: torch.arange(8.0, out=torch.empty(8)) + x, "arange with out"),
        (lambda x: x + OWN[:IMAGES], r"addition with \[8, 1\] numbers of which each place in the batch has its own"),
        (lambda x: ROWS[:IMAGES] - x, r"subtraction with \[8, 8\] numbers"),
        (lambda x: x * torch.arange(IMAGES).view(-1, 1), r"multiplication with \[8, 1\] numbers"),
        (lambda x: x + nn.Parameter(ROWS)[:IMAGES], r"addition with \[8, 8\] numbers"),
        (lambda x: (x.t() + OWN[:IMAGES].t()).t(), r"addition with \[1, 8\] numbers"),
        (lambda x: x + ROWS.expand(IMAGES, WIDTH), r"addition with \[8, 8\] numbers"),
        (lambda x: torch.where(OWN[:IMAGES] > 1, x, 0.0), r"where with \[8, 1\] numbers"),
        (lambda x: torch.where(x > 1, x, ROWS[:IMAGES]), r"where with \[8, 8\] numbers"),
        (lambda x: x.masked_fill(OWN[:IMAGES] > 1, 0.0), r"masked_fill with \[8, 1\] numbers"),
        (lambda x: torch.where(x > OWN[:IMAGES], x, 0.0), r"a comparison with \[8, 1\] numbers"),
        (lambda x: torch.cat((x[:, 1:], OWN[:IMAGES]), 1), r"cat with \[8, 1\] numbers"),
        (lambda x: torch.stack((x, ROWS[:IMAGES]), 1)[:, 0], r"stack with \[8, 8\] numbers"),
        (lambda x: x.reshape(x.shape[0] * 2, 4)[None] + torch.ones(16, 4), r"addition with \[16, 4\] numbers"),
        (lambda x: x.t().reshape(4, -1).add(torch.ones(16)).reshape(8, -1).t(), r"addition with \[16\] numbers"),
        (lambda x: x / x.shape[0], "division with the number of images"),
        (lambda x: x.unsqueeze(1) - x.unsqueeze(0), "subtraction where the images are along another axis of each operand"),
        (lambda x: (x @ x.t())[:, :1] * x, "matmul where the images are along another axis of each operand"),
        (assigned((slice(None), 0), OWN[:IMAGES, 0]), r"assignment to a part with \[8\] numbers"),
        (assigned((slice(None), slice(0, 1)), OWN[:IMAGES]), r"assignment to a part with \[8, 1\] numbers"),
        (assigned(0, 1.0), "indexing over the images"),
        (assigned((slice(0, 2), 0), 1.0), "indexing over the images"),
        (assigned(ROWS > 0, 1.0), "assignment by a tensor that is not made from the images"),
        (assigned(True, 1.0), "assignment by True or False"),
        (assigned((slice(None), False), 1.0), "assignment by True or False"),
        (lambda x: torch.tensor(x).sum(0) + x, "tensor of what is made from the images"),
        (lambda x: torch.tensor(data=x).sum(0) + x, "tensor of what is made from the images"),
        (lambda x: torch.tensor([x[:, 0], x[:, 1]]).sum(0) + x, "tensor of what is made from the images"),
        (lambda x: OWN.new_tensor(x).sum(0) + x, "new_tensor of what is made from the images"),
        (lambda x: x.new_tensor(x.detach()).sum(0) + x, "new_tensor of what is made from the images"),
        (lambda x: x.view(WIDTH * 2, -1, 1).mean(0), r"a change of shape from \[8, 8\] to \[16, 4, 1\] with 16 for the images' axis"),
        (lambda x: x.flatten().unflatten(0, (32, -1)).mean(0), r"a change of shape from \[64\] to \[32, 2\] with 32 for the images' axis"),
        (lambda x: x.unflatten(1, (x.shape[0], -1)).mean(1), "with the number of images along another axis than theirs"),
        (lambda x: x.roll((WIDTH,), ()), "roll without dims, and so over the images"),
        (lambda x: x.t()[True].sum(2), "indexing by True or False"),
        (lambda x: x.view(-1, 2, 2, 2)[:, (0, 1), :, (0, 1)].mean(1), "indexing by tuple"),
        (lambda x: x[:, range(2)].mean(0), "indexing by range"),
        (lambda x: x.t()[np.int64(0)], "indexing by int64"),
        (lambda x: x[:, np.zeros(2, int)], "indexing by ndarray"),
        (lambda x: x + nn.Parameter(ROWS)[(0, 0), :1], "indexing by tuple"),
        (assigned((slice(None), (0, 1)), 1.0), "assignment by tuple"),
        (
            lambda x: put_by_mask(torch.zeros(WIDTH, IMAGES), x.t() > 0, 1.0).t(),
            "assignment of what is made from the images to what is not",
        ),
        (lambda x: put_by_mask((x * 0.0).t(), x > -9, 1.0).t(), "assignment by a mask whose images are along another axis"),
        (lambda x: put_by_mask(x * 0.0, x > 0, x[0:1, 0]), "indexing over the images"),
        (lambda x: put_by_mask(torch.zeros(WIDTH), slice(None), x.mean(1)), "assignment of what is made from the images to what is not"),
        (lambda x: x.clamp(0.0, x.shape[0]), "clamp with the number of images"),
        (lambda x: x + OWN[: x.shape[0]], "indexing with the number of images"),
        *(
            (lambda x, make=make, given=given: x + make(**{"size": (x.shape[0], 1), **given}).sum(0), "a mean or sum over the images")
            for make, given in ((torch.empty, {}), (torch.zeros, {}), (torch.ones, {}), (torch.full, {"fill_value": 2.0}))
        ),
        (lambda x: x + torch.empty(x.shape[0], x.shape[0]).sum(0), "whose sizes say how many images there are"),
        (lambda x: x + torch.arange(x.shape[0])[-1], "arange with the number of images"),
        (lambda x: x + torch.tensor([x.shape[0] * 2]), "tensor with the number of images"),
        (lambda x: x.narrow(1, 0, x.shape[0]), "narrow with the number of images"),
        (lambda x: torch.ones(1).expand_as(x.t()).sum(1) + x, "a mean or sum over the images"),
        (lambda x: torch.ones(1).expand_as(x.view(-1, 4)).view(-1, WIDTH) + x, "expand_as of what has several rows for each image"),
        (lambda x: x[:, :1].expand(-1, x.shape[0]), "expand of what is made from the images to another number of them"),
        (lambda x: x[None].expand(x.shape[0], -1, -1)[0], "expand of what is made from the images to another number of them"),
        (lambda x: torch.zeros(x.shape[0] * 2, WIDTH)[:IMAGES] + x, "whose sizes say how many images there are"),
        (lambda x: torch.zeros(x.shape[0], x.shape[0]) + x, "whose sizes say how many images there are"),
        (lambda x: x.view(-1, x.shape[0]).view(-1, WIDTH), "with the number of images along another axis than theirs"),
        (lambda x: ROWS.view(x.shape[0], WIDTH) + x, "with the number of images along another axis than theirs"),
    ],
)
def test_what_differs_from_place_to_place_or_between_images_is_refused_in_training_and_evaluation(change, said):
    images, labels = drawn()
    network = Changed(change)
    with pytest.raises(Unsupported, match=said):
        Exact().loss_and_gradients(network, images, labels, ALONE, IMAGES)
    with pytest.raises(Unsupported, match=said):
        Exact().logits(network.eval(), images)


def test_an_axis_that_has_not_as_many_rows_of_each_image_is_not_the_images_whatever_a_form_says(monkeypatch):
    monkeypatch.setattr(parts, "_axis_of_part", lambda tape, x, index: 0 if x.shape[1] > WIDTH else 1)
    images, _ = drawn()
    with pytest.raises(Unsupported, match=r"has its images along axis 1 of \[8, 3\], which is not one of 8 images"):
        Exact().logits(Changed(lambda x: x[:, :3].mean(0)).eval(), images)


def alike_in_place(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], WIDTH + 1)
    y[:, 1:] = x
    y += 0.5
    return y[:, :WIDTH]


def positive(x: Tensor) -> Tensor:
    y = x.clone()
    y[x < 0] = 0.25
    return y


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + torch.full((x.shape[0], WIDTH), 0.5),
        lambda x: x * torch.ones_like(x),
        lambda x: (torch.ones(1).expand_as(x.t()) + x.t()).t(),
        lambda x: torch.cat((x.new_zeros(x.size(0), 1), x[:, 1:]), 1),
        lambda x: (torch.zeros(WIDTH, x.t().shape[1]) + x.t()).t(),
        lambda x: torch.stack((x, torch.ones(size=x.shape)), 1).mean(1),
        lambda x: torch.cat((torch.arange(4.0).view(1, 4).expand(x.shape[0], -1), x[:, 4:]), 1),
        lambda x: x + torch.arange(float(WIDTH)),
        lambda x: (torch.arange(3.0).view(3, 1, 1) * x)[1],
        alike_in_place,
        positive,
        assigned((slice(None), 0), torch.tensor(2.0)),
        assigned((slice(None), slice(0, 2)), torch.tensor([2.0, 3.0])),
    ],
)
def test_numbers_for_all_images_alike_give_one_hash_for_any_workers_and_any_batch(change):
    (images, labels), network = drawn(), Changed(change)

    def step(group) -> str:
        share = group.share(IMAGES)
        loss, gradients = Exact().loss_and_gradients(copy.deepcopy(network), images[share], labels[share], group, IMAGES)
        return hashlib.sha256(b"".join(x.numpy().tobytes() for x in (loss, *gradients))).hexdigest()

    alone = step(ALONE)
    for workers in (2, 3, 9):
        assert together(Exchange(workers), step) == [alone] * workers
    network.eval()
    whole = Exact().logits(network, images)
    assert torch.equal(whole, torch.cat([Exact().logits(network, images[i : i + 1]) for i in range(IMAGES)]))


@pytest.mark.parametrize(
    "copied",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: F.pad(x, [0, 0]),
        lambda x: x.pow(1),
        lambda x: x.repeat(1, 1),
        lambda x: x.clone(),
    ],
    ids=["contiguous", "pad", "pow", "repeat", "clone"],
)
def test_a_copy_of_what_a_network_holds_may_be_changed_and_the_next_pass_finds_it_as_it_was(copied):
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(12, CLASSES)
            self.register_buffer("count", torch.zeros(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            count = copied(self.count)
            count.add_(1.0)
            return self.last(x.flatten(1)) + count[0, 0]

    network, (images, _) = Counting().eval(), drawn()
    first, second = (Exact().logits(network, images) for _ in range(2))
    assert torch.equal(first, second)
    assert float(network.count.sum()) == 0


def test_what_is_computed_of_weights_is_put_into_no_constant_whose_gradient_nobody_would_know():
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(12, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            held = torch.zeros(CLASSES)
            held += self.last.bias
            return self.last(x.flatten(1)) + held

    images, labels = drawn()
    with pytest.raises(Unsupported, match="an operation in place that puts what is computed into a constant"):
        Exact().loss_and_gradients(Held(), images, labels, ALONE, IMAGES)


def test_of_a_tensor_and_its_contiguous_only_the_one_that_was_changed_in_place_is_read_and_both_have_one_gradient():
    images, labels = drawn()

    def both(x: Tensor) -> Tensor:
        y = x.contiguous()
        y.add_(1.0)
        return x + y

    with pytest.raises(Unsupported, match="addition of a tensor whose memory another operation has changed in place"):
        Exact().loss_and_gradients(Changed(both), images, labels, ALONE, IMAGES)
    gradients = []
    for change in (lambda x: x * 2.0 + x.contiguous() * 3.0 + x.contiguous() * 0.1, lambda x: x * 2.0 + x * 3.0 + x * 0.1):
        torch.manual_seed(0)
        gradients.append(Exact().loss_and_gradients(Changed(change), images, labels, ALONE, IMAGES)[1])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_an_empty_tensor_holds_zeros_for_what_was_in_memory_before_is_nobodys_number():
    images, _ = drawn()
    network = Changed(lambda x: x * 0.0 + torch.empty(WIDTH) + torch.empty(x.shape[0], 1))
    torch.manual_seed(0)
    with torch.no_grad():
        wanted = network.last.bias.expand(IMAGES, -1)
    assert torch.equal(Exact().logits(network.eval(), images), wanted)


class SequenceFirst(nn.Module):
    """A transformer whose images are the second axis, with a token and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(12, 16), nn.Linear(16, CLASSES)
        self.token, self.places = nn.Parameter(torch.ones(1, 1, 16)), nn.Parameter(torch.ones(17, 1, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.shape[0], 3, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(x.shape[0], 16, 12)
        x = self.embed(x).transpose(0, 1)
        x = torch.cat([self.token.expand(1, x.shape[1], 16), x]) + self.places + torch.zeros(1, x.shape[1], 1)
        return self.last(self.layer(x)[0])


def test_a_transformer_with_the_sequence_first_gives_one_hash_for_any_workers_and_any_batch():
    with initial_values(0):
        network = SequenceFirst()
    draw = torch.Generator().manual_seed(1)
    images, labels = torch.randint(0, 256, (IMAGES, 3, 8, 8), generator=draw, dtype=torch.uint8), torch.arange(IMAGES) % CLASSES

    def step(group) -> str:
        share = group.share(IMAGES)
        draws = Draws(5, torch.full((1,), 3), share.start)
        given = Exact().loss_and_gradients(copy.deepcopy(network), images[share], labels[share], group, IMAGES, draws=draws)
        return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in (given[0], *given[1]))).hexdigest()

    alone = step(ALONE)
    for workers in (2, 3, 9):
        assert together(Exchange(workers), step) == [alone] * workers
    whole = Exact().logits(network.eval(), images)
    assert torch.equal(whole, torch.cat([Exact().logits(network, image) for image in images.split(1)]))
