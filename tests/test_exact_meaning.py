"""What a network means in PyTorch it means with exact numerics: what depends on a type, an argument, or numbers that are changed later.

Each case is computed, and held to PyTorch's own logits and gradients, or refused by name: none is something else.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import numerics
from pipeline.exact import registry
from pipeline.exact.errors import Unsupported
from pipeline.exact.group import ALONE
from pipeline.exact.masks import Draws
from pipeline.exact.registry import Forms
from pipeline.exact.tape import Tape
from pipeline.exact.threads import Exchange, together
from pipeline.models import trial
from pipeline.numerics import Numerics
from pipeline.params import Model
from pipeline.system.errors import UserError
from tests.steps import CPU, ints

IMAGES = ints("meaning", 8, 7, 3, 8, 8).abs().to(torch.uint8)
LABELS = torch.arange(7) % 4


class Net(nn.Module):
    """Something of its own between images, a weight and four logits."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor], **held: Tensor | nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between, self.w = between, nn.Parameter(torch.randn(3, 1, 1))
        for name, each in held.items():
            if isinstance(each, nn.Module | nn.Parameter):
                setattr(self, name, each)
            else:
                self.register_buffer(name, each)
        self.fc = nn.Linear(between(self, IMAGES / 255).flatten(1).shape[1], 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.between(self, x).flatten(1))


def learnt(network: nn.Module, which: Numerics) -> tuple[Tensor, list[Tensor]]:
    """The logits in evaluation, and the gradients of a step."""
    draws = Draws(0, torch.zeros(1, dtype=torch.int64), 0)
    gradients = which.loss_and_gradients(copy.deepcopy(network).train(), IMAGES, LABELS, ALONE, len(IMAGES), draws=draws)[1]
    return which.logits(copy.deepcopy(network).eval(), IMAGES), [each for each in gradients if each is not None]


def check(network: nn.Module) -> None:
    """Held to PyTorch's own."""
    trial.try_out(network, Model(name="networks/net.py:Net"), (3, 8, 8), 4, numerics.select("exact", CPU), CPU)
    (logits, gradients), (theirs, theirs_too) = (learnt(network, numerics.select(name, CPU)) for name in ("exact", "native"))
    for a, b in zip([logits, *gradients], [theirs, *theirs_too], strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


# --- images are float32, whatever they are made of --------------------------------------------------------------------


def in_part(_: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = (x[:, 0] - 0.485) / 0.229
    return x


def of_itself_in_part(_: nn.Module, x: Tensor) -> Tensor:
    x[:, 1].sub_(0.5).div_(0.25)
    return x


def a_number(_: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    x[..., 2:4, 2:4] = 0.5
    return x


def to_another(_: nn.Module, x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 4, 8, 8)
    y[:, :3] = x
    return y


def to_an_activation(net: nn.Module, x: Tensor) -> Tensor:
    y = x * net.w
    y[:, 0] = x[:, 1]
    return y


OF_IMAGES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "greater": lambda net, x: torch.where(x > 0.5, x * net.w, x),
    "equal to the largest": lambda net, x: x.masked_fill(x == x.amax((2, 3), keepdim=True), 0.25) * net.w,
    "less, masked": lambda net, x: x.masked_fill(x < 0.3, 0.25) * net.w,
    "truths as numbers": lambda net, x: (x > 0.5).float() * net.w + (x < 0.2).to(torch.float32),
    "truths where they are": lambda net, x: torch.where((x > 0.5).to(x.device), x * net.w, x),
    "floats where they are": lambda net, x: (x * net.w).to("cpu", torch.float32, True).add_(1.0),
    "new_tensor": lambda net, x: (x - x.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) * net.w,
    "its type": lambda net, x: (x - torch.tensor([0.485, 0.456, 0.406], dtype=x.dtype).view(3, 1, 1)) * net.w,
    "a buffer to it": lambda net, x: x * net.m.to(x) + net.m.to(x.dtype) * net.w,
    "a buffer to it by name": lambda net, x: x * net.m.to(tensor=x) + net.m.to(dtype=x.dtype) * net.w,
    "ones_like": lambda net, x: torch.cat([x * net.w, torch.ones_like(x[:, :1])], 1),
    "full_like": lambda net, x: (x + torch.full_like(x, 0.5)) * net.w,
    "new_full": lambda net, x: (x + x.new_full((x.shape[0], 1, 1, 1), 0.5)) * net.w,
    "asked whether it is of floats": lambda net, x: (x if x.is_floating_point() and x.dtype == torch.float32 else x / 255) * net.w,
    "an assignment to a part": in_part,
    "a part in place": of_itself_in_part,
    "a number to a part": a_number,
    "an assignment to zeros": to_another,
    "an assignment to an activation": to_an_activation,
    "in place": lambda net, x: x.sub_(0.5) * net.w,
    "in place after a dropout that drops nothing": lambda net, x: F.dropout(x, 0.5, False).sub_(0.5) * net.w + x,
    "moved": lambda net, x: (x.flip(3).transpose(2, 3).flatten(1) > 0.5).float(),
}


@pytest.mark.parametrize("case", OF_IMAGES)
def test_a_network_sees_its_images_as_pytorch_gives_them(case):
    held = {"m": torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64).view(3, 1, 1)} if case.startswith("a buffer to it") else {}
    check(Net(OF_IMAGES[case], **held))


def alias(net: nn.Module, x: Tensor) -> Tensor:
    y = x.float()  # in PyTorch the tensor itself
    y -= 0.5
    return x * y * net.w


def copied(net: nn.Module, x: Tensor) -> Tensor:
    x = x * net.w
    y = x.to(torch.float32, copy=True)
    y += 1
    return x * y


def alias_of_floats(net: nn.Module, x: Tensor) -> Tensor:
    x = x * net.w
    y = x.to("cpu", torch.float32, True)  # not to block is no copy
    y += 1
    return x * y


def laid_out(net: nn.Module, x: Tensor) -> Tensor:
    x = x * net.w
    y = x.to(memory_format=torch.channels_last)
    y += 1
    return x * y


def test_a_copy_is_one_and_what_may_be_one_is_not_changed():
    check(Net(copied))
    check(Net(alias_of_floats))
    for between in (alias, laid_out):
        with pytest.raises(UserError, match="whose memory another operation has changed in place"):
            check(Net(between))


# --- arguments that change what is computed ----------------------------------------------------------------------------


def attention(net: nn.Module, x: Tensor, **given: Tensor) -> Tensor:
    t = (x * net.w).reshape(x.shape[0], 24, 8).transpose(0, 1)
    a = net.a
    of = (a.in_proj_weight, a.in_proj_bias, None, None, False, 0.0, a.out_proj.weight, a.out_proj.bias)
    return F.multi_head_attention_forward(t, t, t, 8, 1, *of, training=net.training, need_weights=False, **given)[0].transpose(0, 1)


def test_a_mask_of_attention_says_what_is_left_out():
    mask = torch.arange(24 * 24).view(24, 24) % 3 == 0
    check(Net(lambda net, x: attention(net, x, attn_mask=net.m), a=nn.MultiheadAttention(8, 1), m=mask))


def test_the_way_of_a_network_that_asks_who_learns_is_pytorchs():
    check(Net(lambda net, x: x * net.w * (2 if (x * net.w).requires_grad or not net.training else 1)))


REFUSED: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str]] = {
    "keys of its own": (lambda net, x: attention(net, x, static_k=net.k.expand(x.shape[0], 5, 8), static_v=net.k.expand(x.shape[0], 5, 8)),
                        "keys or biases of their own"),
    "softplus": (lambda net, x: F.softplus(x * net.w, threshold=0.5), "softplus with beta=1, threshold=0.5"),
    "a type by its name": (lambda net, x: (x * net.w * 10).type("torch.IntTensor") * net.w, "type with torch.IntTensor"),
    "the type of a tensor": (lambda net, x: (x * net.w * 10).to(torch.zeros(1, dtype=torch.int64)) * net.w, "a conversion to torch.int64"),
    "dropout1d": (lambda net, x: F.dropout1d((x * net.w).flatten(1), 0.5, net.training), "dropout1d of 2 dimensions"),
    "dropout3d": (lambda net, x: F.dropout3d(x * net.w, 0.5, net.training), "dropout3d of 4 dimensions"),
    "a bias of one number": (lambda net, x: F.linear(x * net.w, net.wide, net.one), r"linear with a bias of \[1\]"),
    "whole numbers for each image": (lambda net, x: x * net.w * torch.ones(x.shape[0], 1, 1, 1, dtype=torch.uint8), "of torch.uint8"),
    "whole numbers in parts": (lambda net, x: assigned_to_whole(x) * net.w, "to a part of torch.uint8"),
    "hardtanh of whole numbers": (lambda net, x: x * net.w * F.hardtanh(torch.arange(8), -2.5, 2.5), "hardtanh of torch.int64"),
    "what was expanded, in place": (lambda net, x: x * net.w * torch.zeros(x.shape[0], 1, 1, 1).expand(-1, 3, 8, 8).add_(1.0),
                                    "an operation in place on what was expanded"),
    "one number for all images, in place": (lambda net, x: x * net.w * marked(x), "an operation in place on what was expanded"),
    "a part of what was expanded": (lambda net, x: x * net.w * filled(x), "an operation in place on what was expanded"),
    "an index by a list of what is made of images": (lambda net, x: x * net.w + counted(x), "indexing by a list or slice of tensors"),
    "gelu of whole numbers": (lambda net, x: x * net.w * F.gelu(torch.arange(8)), "gelu of torch.int64"),
    "softmax of whole numbers": (lambda net, x: x * net.w * torch.softmax(torch.arange(8), 0), "softmax of torch.int64"),
}  # fmt: skip


def marked(x: Tensor) -> Tensor:
    seen = torch.zeros(1, 1, 1, 1).expand(x.shape[0], 1, 1, 1)  # PyTorch marks all images, for they share this number
    return seen.masked_fill_(x[:, :1, :1, :1] > 0.9, 1.0)


def filled(x: Tensor) -> Tensor:
    y = (x[:, :1] * 2).expand(-1, 3, -1, -1)
    y[:, 0] = 0.0
    return y


def counted(x: Tensor) -> Tensor:
    zeros = torch.zeros_like(x[:, 0, 0, :1], dtype=torch.int64)
    zeros[:, :] = x[:, 0, 0, :1] > 2.0
    return torch.ones(2)[[zeros.clone()]].sum(0)


def assigned_to_whole(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 3, 8, 8, dtype=torch.uint8)
    y[:, :3] = x
    return y


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_computed_otherwise_is_refused_by_name(case):
    between, words = REFUSED[case]
    held = {
        "a": nn.MultiheadAttention(8, 1),
        "k": torch.ones(1, 5, 8),
        "wide": nn.Parameter(torch.ones(5, 8)),
        "one": nn.Parameter(torch.ones(1)),
    }
    net = Net(lambda net, x: x, **held)
    net.between = between
    with pytest.raises((Unsupported, UserError), match=words):
        trial.try_out(net, Model(name="networks/net.py:Net"), (3, 8, 8), 4, numerics.select("exact", CPU), CPU)


# --- constants of whole numbers, and constants that change --------------------------------------------------------------


def whole(*_: int) -> Tensor:
    return torch.arange(1, 9)


OF_WHOLE: dict[str, Callable[[], Tensor]] = {
    "sqrt": lambda: whole().sqrt(),
    "to the half": lambda: whole() ** 0.5,
    "exp": lambda: (whole() * -1).exp(),
    "log": lambda: whole().log(),
    "tanh": lambda: whole().tanh(),
    "where": lambda: torch.where(whole() > 3, whole(), 0.5),
    "where of truths": lambda: torch.where(whole() > 3, whole() > 5, 0.5),
    "where of it": lambda: whole().where(whole() > 3, 0.5),
    "arithmetic": lambda: (whole() - 4).abs() * 2 + whole() ** 2,
}


@pytest.mark.parametrize("case", OF_WHOLE)
def test_constants_of_whole_numbers_are_rounded_where_pytorch_does_it(case):
    check(Net(lambda net, x: x * net.w * OF_WHOLE[case]()))


def multiplied(net: nn.Module, x: Tensor) -> Tensor:
    k = torch.ones(8) * 0.5
    y = x * net.w * k
    k += 1
    return y


def masked(net: nn.Module, x: Tensor) -> Tensor:
    m = torch.arange(8) > 3
    y = torch.where(m, x * net.w, x)
    m.fill_(True)
    return y


def read(net: nn.Module, x: Tensor) -> Tensor:
    i = torch.arange(8)
    y = x * net.a[i] * net.w
    i[0] = 3
    return y


def held(net: nn.Module, x: Tensor) -> Tensor:
    y = x * net.w * net.b
    if net.training:
        net.b.copy_(torch.ones(8))
    return y


def expanded(net: nn.Module, x: Tensor) -> Tensor:
    c = torch.zeros(1, 1, 1, 8)
    r = torch.relu(c.expand(x.shape[0], 1, 1, 8))
    c += torch.arange(8.0)
    return x * net.w + r


@pytest.mark.parametrize("between", [multiplied, masked, read, held, expanded], ids=lambda each: each.__name__)
def test_constants_that_the_way_back_needs_are_not_changed(between):
    with pytest.raises(UserError, match="an operation in place on a constant that was computed with"):
        check(Net(between, a=nn.Parameter(torch.arange(8.0)), b=torch.arange(8.0)))


def test_constants_that_it_does_not_need_may_be():
    def between(net: nn.Module, x: Tensor) -> Tensor:
        k = torch.ones(8) * 0.5
        k.view(-1)[0] = 1
        y = x * net.w + k
        k += 1
        return y + k

    check(Net(between))


def test_a_form_that_was_misunderstood_is_found_by_the_trial(monkeypatch):
    monkeypatch.setitem(registry.FORM_OF, F.leaky_relu, lambda tape, x, **_: x)
    with pytest.raises(UserError, match=r"with exact numerics its logits are .* of the largest away from PyTorch's; set numerics: native"):
        check(Net(lambda net, x: F.leaky_relu((x - 0.5) * net.w)))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_pixels_are_shuffled_in_a_share_without_images(workers):
    net = Net(lambda net, x: net.after(F.pixel_shuffle(net.conv(x), 2)), conv=nn.Conv2d(3, 8, 3), after=nn.Conv2d(2, 4, 3))

    def step(group: object) -> list[Tensor]:
        share = group.share(2)
        return numerics.select("exact", CPU).loss_and_gradients(copy.deepcopy(net), IMAGES[:2][share], LABELS[:2][share], group, 2)[1]

    alone = step(ALONE)
    for gradients in together(Exchange(workers), step):
        assert all(torch.equal(a, b) for a, b in zip(gradients, alone, strict=True) if a is not None)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.detach().clamp_(0.0, 1.0),
        lambda w: w.detach().view(-1).mul_(0.5),
        lambda w: w.detach()[:2].mul_(0.5),
        lambda w: w.detach().zero_(),
        lambda w: w.detach().__setitem__(0, 1.0),
    ],
)
def test_weights_are_not_changed_in_place_through_another_tensor(change):
    def between(net: nn.Module, x: Tensor) -> Tensor:
        change(net.w)
        return x * net.w

    with pytest.raises(UserError, match="an operation in place on a weight or a constant"):
        check(Net(between))


def test_what_operations_in_place_have_made_on_the_way_is_not_held():
    images = torch.rand(2, 3, 4)
    with Forms(Tape(images)):
        y = images * 2.0
        between = weakref.ref(y.mul_(3.0))
        last = y.add_(1.0)
    assert between() is None
    assert torch.equal(last, images * 2.0 * 3.0 + 1.0)
