"""Networks of every family in miniature: one hash of a step, whatever the workers, their shares, the threads and the order of sums."""

from __future__ import annotations

import copy
import hashlib
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import efficientnet, mobilenetv3, shufflenetv2, swin_transformer, vision_transformer
from torchvision.models.googlenet import GoogLeNetOutputs, Inception, InceptionAux

from pipeline.exact.engine import Exact
from pipeline.exact.errors import Unsupported
from pipeline.exact.group import ALONE, Group
from pipeline.exact.initialisation import initial_values
from pipeline.exact.masks import Draws
from pipeline.exact.tape import Tape
from tests.chaos import Chaos
from tests.dispatched import Names
from tests.simulated import Exchange, together

IMAGES, CLASSES, STEP = 4, 5, 3


class Residual(nn.Module):
    """Strides, groups, a depthwise convolution, ReLU in place and an addition in place, all with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.first(x)
        y = self.body(x)
        y += x
        return self.last(F.adaptive_avg_pool2d(F.relu(y, inplace=True), 1).flatten(1))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), shufflenetv2.InvertedResidual(8, 16, 2), shufflenetv2.InvertedResidual(16, 16, 1)
        )
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.last(self.body(x).mean([2, 3]))


class WithHeads(nn.Module):
    """GoogLeNet's two ways: inception modules, and a head beside the main one, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.inception = Inception(8, 4, 4, 4, 2, 4, 4)
        self.beside = InceptionAux(16, CLASSES)
        self.dropout, self.last = nn.Dropout(0.2), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.inception(self.first(x))
        beside = self.beside(x) if self.training else None
        main = self.last(self.dropout(x.mean((2, 3))))
        return GoogLeNetOutputs(main, beside, None) if self.training else main


def mobile() -> nn.Module:
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
    settings = [
        mobilenetv3.InvertedResidualConfig(8, 3, 16, 8, True, "RE", 2, 1, 1.0),
        mobilenetv3.InvertedResidualConfig(8, 5, 16, 8, True, "HS", 1, 2, 1.0),
    ]
    return mobilenetv3.MobileNetV3(settings, 16, CLASSES, norm_layer=norm)


def efficient() -> nn.Module:
    settings = [efficientnet.FusedMBConvConfig(2, 3, 2, 8, 8, 1), efficientnet.MBConvConfig(4, 3, 1, 8, 8, 2)]
    return efficientnet.EfficientNet(settings, 0.2, 0.3, CLASSES, last_channel=16)


def swin(**version) -> nn.Module:
    return swin_transformer.SwinTransformer(
        [4, 4], 24, [2, 2], [3, 6], [4, 4], stochastic_depth_prob=0.2, dropout=0.1, attention_dropout=0.1, num_classes=CLASSES, **version
    )


class Turned(nn.Module):
    """Its images lie along the second axis, where a reshape asks for them with -1."""

    def __init__(self) -> None:
        super().__init__()
        self.of_channels, self.last = nn.Linear(16, 8), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 4).flatten(2).transpose(0, 1)  # [3, N, 16]
        x = self.of_channels(x).reshape(3, -1, 2, 4).relu()
        return self.last(x.reshape(3, -1, 8).transpose(0, 1).flatten(1))


class Rows(nn.Module):
    """Its images are rows: each has 32 of them, along the second axis, and along the first two after a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.norm, self.of_two, self.last = (
            nn.Parameter(torch.ones(1)),
            nn.BatchNorm1d(3),
            nn.BatchNorm1d(2),
            nn.Linear(96, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        images = x.shape[0]
        rows = x.permute(1, 0, 2, 3).reshape(3, images * 32, 32)
        y = rows.permute(1, 0, 2) + self.norm((rows * self.scale).permute(1, 0, 2))  # [N 32, 3, 32]
        two = torch.stack((y * self.scale, y.relu()), 0)  # [2, N 32, 3, 32]
        z = self.of_two(two.flatten(2).permute(1, 0, 2))  # [N 32, 2, 96]
        return self.last(z.mean(1).reshape(images, 32, 96).mean(1))


NETWORKS = {
    "images along another axis": Turned,
    "rows of images": Rows,
    "residual": Residual,
    "vision transformer": lambda: vision_transformer.VisionTransformer(
        32, 8, 2, 4, 64, 96, dropout=0.1, attention_dropout=0.1, num_classes=CLASSES
    ),
    "swin": swin,
    "swin v2": partial(swin, block=swin_transformer.SwinTransformerBlockV2, downsample_layer=swin_transformer.PatchMergingV2),
    "mobilenet_v3": mobile,
    "efficientnet": efficient,
    "shufflenet": Shuffled,
    "heads beside": WithHeads,
}


def drawn() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (IMAGES, 3, 32, 32), generator=draw, dtype=torch.uint8), torch.arange(IMAGES) % CLASSES


def built(name: str) -> nn.Module:
    with initial_values(0):
        network = NETWORKS[name]()
    return network


def step(network: nn.Module, group: Group = ALONE) -> tuple[str, nn.Module]:
    """One hash of the loss, the gradients and the buffers after a step; and the network as the step left it, for a worker of its own."""
    network = copy.deepcopy(network).train()
    images, labels = drawn()
    share = group.share(IMAGES)
    draws = Draws(5, torch.full((1,), STEP), share.start)
    loss, gradients = Exact().loss_and_gradients(network, images[share], labels[share], group, IMAGES, draws=draws)
    digest = hashlib.sha256(loss.numpy().tobytes())
    for (name, _), tensor in zip([*network.named_parameters(), *network.named_buffers()], [*gradients, *network.buffers()], strict=True):
        assert tensor is None or not tensor.is_floating_point() or tensor.isfinite().all(), name
        digest.update(b"none" if tensor is None else tensor.contiguous().numpy().tobytes())
    return digest.hexdigest(), network


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_has_one_hash_for_any_workers_threads_and_orders_of_sums(name):
    network = built(name)
    wanted, _ = step(network)
    for workers in (2, 3, 5):  # of five, one has no images
        assert {of for of, _ in together(Exchange(workers), partial(step, network))} == {wanted}, workers
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert step(network)[0] == wanted
    finally:
        torch.set_num_threads(threads)
    with Chaos(0) as chaos:
        assert step(network)[0] == wanted
    assert chaos.shuffled > 7


@pytest.mark.parametrize("name", NETWORKS)
def test_an_image_alone_is_evaluated_as_in_its_batch_after_a_step(name):
    _, network = step(built(name))
    network.eval()
    images, _ = drawn()
    whole = Exact().logits(network, images)
    assert whole.shape == (IMAGES, CLASSES)
    for size in (1, 3):
        assert torch.equal(torch.cat([Exact().logits(network, part) for part in images.split(size)]), whole)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_logits_are_pytorchs_in_float64_to_rounding(name):
    network = built(name).eval()
    images, _ = drawn()
    with torch.inference_mode():
        wanted = copy.deepcopy(network).double()(images.double() / 255)
    assert (Exact().logits(network, images) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_masks_are_others_at_another_step_and_seed_and_of_the_images_place_in_the_batch():
    network, (images, labels) = built("swin").train(), drawn()
    same = images[:1].expand(2, -1, -1, -1)
    kept = []
    for seed, number, first in ((5, 3, 0), (5, 4, 0), (6, 3, 0), (5 + 2**32, 3, 0), (5, 3, 1)):
        draws = Draws(seed, torch.full((1,), number), first)
        kept.append(float(Exact().loss_and_gradients(network, same, labels[:1].expand(2), ALONE, 2, draws=draws)[0]))
    assert len(set(kept)) == len(kept)


ELSEWHERE_OTHERS = {
    "mean", "var", "std", "rsqrt", "exp", "log", "sigmoid", "tanh", "erf", "gelu", "silu", "hardswish", "hardsigmoid", "_softmax",
    "_log_softmax", "native_layer_norm", "native_batch_norm", "_native_batch_norm_legit", "native_group_norm", "addcmul", "addcdiv",
    "lerp", "scatter_add", "scatter_add_", "linalg_vector_norm", "prod", "cumsum", "convolution", "addmm", "native_dropout", "avg_pool2d",
    "_adaptive_avg_pool2d", "mean_dim", "bernoulli_",
}  # fmt: skip
"""Operations whose bits, or order of additions, differ between devices."""


@pytest.mark.parametrize("name", NETWORKS)
def test_no_operation_is_called_whose_bits_differ_between_devices(name):
    network = built(name)
    with Names() as names:
        step(network)
        Exact().logits(network.eval(), drawn()[0])
    assert len(names.called) > 30
    assert names.called & ELSEWHERE_OTHERS == set()


class Mixing(nn.Module):
    """Works along the axis of the images."""

    def __init__(self, mix) -> None:
        super().__init__()
        self.mix, self.last = mix, nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.last(self.mix(x.flatten(1)[:, :8]))


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: torch.softmax(x, 0),
        lambda x: torch.softmax(x.t(), -1).t(),
        lambda x: x - x.mean(0),
        lambda x: x.t().mean(1, keepdim=True).t() + x,
        lambda x: x.roll(1, 0),
        lambda x: x.flip(0),
        lambda x: x[:2] + x[2:],
        lambda x: x[0] + x,
        lambda x: x.t()[:, 0] + x,
        lambda x: torch.stack((x, x))[:, 1] + x,
        lambda x: torch.cat((x, x)),
        lambda x: torch.cat((x.t(), x.t()), 1).t(),
        lambda x: (x.t().float() @ x.float()).mean(0) + x,
    ],
)
def test_what_works_along_the_images_is_refused_by_name(mix):
    images, labels = drawn()
    with pytest.raises(Unsupported, match="over the images"):
        Exact().loss_and_gradients(Mixing(mix), images, labels, ALONE, IMAGES)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_share_without_images_knows_how_many_numbers_an_image_has_in_every_tensor(name, monkeypatch):
    network, record, noted = built(name), Tape.record, {}

    def noting(tape, y, *given, **named):
        result = record(tape, y, *given, **named)
        if tape.of_images(y):
            noted.setdefault(threading.current_thread().name, []).append((tape.value(y), y.shape))
        return result

    monkeypatch.setattr(Tape, "record", noting)
    together(Exchange(5), partial(step, network))
    counts = [[value.elements for value, _ in of] for of in noted.values()]
    assert len(counts) == 5
    for number, (wanted, found) in enumerate(zip(counts[1], counts[0], strict=True)):
        assert wanted == found, (number, noted["worker 0"][number], noted["worker 1"][number])
