"""A network is tried out on images of noise before any real one, so that whatever will be refused is refused then."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.exact.masks import Draws
from pipeline.exact.threads import Exchange, together
from pipeline.models import Shape, bounds, build, mistakes_explained
from pipeline.params import Model
from pipeline.system.errors import UserError
from pipeline.workers import ALONE

if TYPE_CHECKING:
    from pipeline.numerics import Numerics

IMAGES = 2
MANY = 7
"""How many images are evaluated at once of a network of somebody's own: few sizes of other axes are multiples of it."""
LIKE = 0.05
"""How far the logits of an image may be from PyTorch's, relative to the largest: float32 and grids of 19 bits are 1e-6 to 1e-3 apart, and
a network that compares activations may be far apart for one image, but not for each."""
LEARNS_LIKE, LEAST_GRADIENT = {False: 0.05, True: 0.5}, 1e-3
"""The same of the gradient of a weight, by its length, where that is not far smaller than the longest, in evaluation and in training, where
norms of a few images take the difference of like numbers. Of the three in networks/ and six of torchvision's they are 4e-6 to 2.4e-3 apart,
and 2e-5 to 0.16."""
NUDGE = 2.0**-5
"""What is added to weights at most before images are tried apart: a weight that begins at 0 would hide what it is multiplied with."""


def try_out(
    network: nn.Module, model: Model, shape: Shape, classes: int, numerics: Numerics, device: torch.device, fewest: int = IMAGES
) -> None:
    """One step of `fewest` images of noise, of IMAGES at most, and one evaluation of IMAGES. Changes nothing.

    With exact numerics each image's logits must be those that it has alone. And a network of somebody's own must give them among more
    images, and learn the same again, and of both images together as of each in a share of its own.

    Raises:
        UserError: the network does what it cannot, what the numerics refuse, gives other than a row of logits an image, or mixes images.
    """
    numbers = np.arange(MANY * int(np.prod(shape))) * 2654435761 % 2**32 >> 24
    many = torch.from_numpy(numbers.astype(np.uint8).reshape(MANY, *shape)).to(device)
    images = many[:IMAGES]
    labels = torch.zeros(IMAGES, dtype=torch.int64, device=device)

    def step(network: nn.Module, group: Any, count: int = IMAGES) -> list[Tensor]:
        """What is learnt of the group's share of so many images, and what the network then holds besides weights."""
        share = group.share(count)
        draws = Draws(0, torch.zeros(1, dtype=torch.int64, device=device), share.start)
        loss, gradients = numerics.loss_and_gradients(network, images[share], labels[share], group, count, draws=draws)
        return [loss, *(each for each in gradients if each is not None), *(buffer.clone() for buffer in network.buffers())]

    state, before = torch.get_rng_state(), _generators()
    try:
        with mistakes_explained(model):
            _check_logits(numerics.heads(copy.deepcopy(network), images), model, classes)
            step(copy.deepcopy(network), ALONE, fewest)
            if numerics.version == "native":
                numerics.logits(copy.deepcopy(network).eval(), images)
                return
            _refuse_hooks(network, model)
            if model.is_own and _generators() != before:
                raise UserError(f"model.name {model.name}: draws random numbers that no rule gives (random, numpy, torch.rand), so that no "
                                "other machine trains it alike; use dropout or bernoulli_ of a new tensor")  # fmt: skip
            with torch.no_grad():
                pytorchs = copy.deepcopy(network).eval()(images.float() / 255)  # which PyTorch itself may refuse
            nudged = _nudged(network)
            if model.is_own:
                held = {name: buffer.clone() for name, buffer in nudged.named_buffers()}
                learnt, kept = step(nudged, ALONE), _kept(nudged)
                for name, buffer in held.items():
                    nudged.get_buffer(name).copy_(buffer)
                if not _equal(learnt, step(nudged, ALONE)) or _kept(nudged) != kept:
                    raise _mixed(model, "learns something else when it sees the same images again")
                shares = together(Exchange(IMAGES + 1), lambda group: step(_nudged(network), group))  # and one of no images
                if not all(_equal(learnt, each) for each in shares):
                    raise _mixed(model, "learns something else of images together than of each in a share of its own")
            with torch.inference_mode(), bounds.unchanged(nudged.eval()):
                logits = numerics.logits(nudged, images)
                others = [torch.cat([numerics.logits(nudged, image) for image in images.split(1)])]
                if model.is_own:
                    others.append(numerics.logits(nudged, images.repeat(MANY, 1, 1, 1)[:MANY])[:IMAGES])
            if not all(_equal([logits], [each]) for each in others):
                raise _mixed(model, "gives an image other logits alone than with another")
            _check_like(pytorchs, numerics.logits(copy.deepcopy(network).eval(), images), model)
            if model.is_own:  # of what begins at 0, too
                with torch.no_grad():
                    pytorchs = copy.deepcopy(nudged)(images.float() / 255)
                _check_like(pytorchs, logits, model)
                for training in (True, False):
                    _check_learns_like(_nudged(network).train(training), many, numerics, model)
    finally:
        torch.set_rng_state(state)


def _check_like(pytorchs: Any, logits: Tensor, model: Model) -> None:
    """Raise UserError where each image's logits are far from those of what PyTorch gives: a form means something else."""
    theirs = _heads(pytorchs)[0].nan_to_num()
    apart, largest = (logits.nan_to_num() - theirs).abs().amax(1), theirs.abs().amax(1)
    far = apart > LIKE * largest
    if bool(far.any()) and bool(far[largest > 0].all()):  # logits that are all 0 tell nothing
        least = float((apart / largest)[far].min())
        raise UserError(f"model.name {model.name}: with exact numerics its logits are {least:.2g} of the largest away from PyTorch's; "
                        "set numerics: native, and report it with the network")  # fmt: skip


def _heads(given: Any) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else [each for each in given if each is not None]


def _check_learns_like(network: nn.Module, images: Tensor, numerics: Numerics, model: Model) -> None:
    """Raise UserError where a weight learns that does not with PyTorch's autograd, or far other than there.

    That is what a network does with autograd itself: grad modes, functions with a way back of their own, hooks.
    """
    names = [name for name, _ in network.named_parameters()]
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def learnt(seed: int) -> list[Tensor | None]:
        draws = Draws(seed, torch.zeros(1, dtype=torch.int64, device=images.device), 0)
        return numerics.loss_and_gradients(copy.deepcopy(network), images, labels, ALONE, len(images), draws=draws, auxiliary=1.0)[1]

    ours = learnt(0)
    draws = network.training and not _equal(*([each for each in given if each is not None] for given in (ours, learnt(1))))
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    loss = sum((F.cross_entropy(logits, labels) for logits in _heads(network(images.float() / 255))), torch.zeros(()))
    theirs = dict(zip(weights, torch.autograd.grad(loss, [*weights.values()], allow_unused=True), strict=True))
    least = LEAST_GRADIENT * max(0.0, *(float(g.norm()) for g in (*ours, *theirs.values()) if g is not None))
    for name, gradient in zip(names, ours, strict=True):
        other = theirs.get(name)
        if other is None and gradient is not None and float(gradient.norm()) > least:
            how = "learns, and with PyTorch's autograd it does not"
        elif gradient is None and other is not None and float(other.norm()) > least:
            how = "does not learn, and with PyTorch's autograd it does"
        elif gradient is None or other is None or draws or float(other.norm()) <= least:
            continue  # by what is drawn it is another
        elif (apart := float((gradient - other).norm() / other.norm())) > LEARNS_LIKE[network.training]:
            how = f"learns with a gradient {apart:.2g} of its length away from that of PyTorch's autograd"
        else:
            continue
        raise UserError(f"model.name {model.name}: with exact numerics '{name}' {how}; use detach() for what shall not learn, or set "
                        "numerics: native")  # fmt: skip


def _kept(network: nn.Module) -> list[object]:
    """What its modules hold besides weights, buffers and modules: what one counts there is no part of a state, or of a recording."""
    own = ("_parameters", "_buffers", "_modules")
    return [_plain({key: value for key, value in vars(module).items() if key not in own}, 12) for module in network.modules()]


def _plain(value: Any, deep: int) -> object:
    """The numbers, texts and tensors in a value, so deep."""
    if isinstance(value, Tensor):
        return str(value.dtype), value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray | np.generic):
        return value.tobytes()
    if isinstance(value, dict) and deep:
        return [_plain([*value.keys()], deep), _plain([*value.values()], deep - 1)]
    if isinstance(value, list | tuple | set) and deep:
        return [_plain(each, deep - 1) for each in value]
    return value if isinstance(value, bool | int | float | str) else type(value).__name__


def _generators() -> object:
    """The states of the generators of random numbers that no rule of this project seeds."""
    numpys = np.random.get_state(legacy=False)["state"]
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpys["key"].tobytes(), numpys["pos"]


@torch.no_grad()
def _nudged(network: nn.Module) -> nn.Module:
    """A copy whose weights are all a little apart from what they were, each by another number."""
    nudged = copy.deepcopy(network)
    for weight in nudged.parameters():
        places = torch.arange(weight.numel(), device=weight.device).view(weight.shape)
        weight.add_((places * 40503 % 65536 - 32768).to(weight.dtype) * (NUDGE / 32768))
    return nudged


def _refuse_hooks(network: nn.Module, model: Model) -> None:
    """Raise UserError where a hook of autograd's would change gradients, for exact numerics have a way back of their own."""
    hooked = [name for name, weight in network.named_parameters() if weight._backward_hooks or weight._post_accumulate_grad_hooks]
    hooked += [name or "the network" for name, module in network.named_modules() if module._backward_hooks or module._backward_pre_hooks]
    if hooked:
        raise UserError(f"model.name {model.name}: {hooked[0]} has a backward hook, which exact numerics never call; do without, "
                        "or set numerics: native")  # fmt: skip


def check_made_alike(model: Model, shape: Shape, classes: int) -> None:
    """Make a network of somebody's own twice, and raise UserError where the second has other numbers: drawn by no rule, or never filled."""
    if not model.is_own:
        return
    state, numbers, pythons = torch.get_rng_state(), np.random.get_state(), random.getstate()
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    made = []
    try:
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            torch.use_deterministic_algorithms(seed == 2, warn_only=True)  # which fills what is empty
            network = build(model, shape, classes, 0)
            made.append(dict([*network.named_parameters(), *network.named_buffers()]))
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        torch.set_rng_state(state)
        np.random.set_state(numbers)
        random.setstate(pythons)
    for name, first in made[0].items():
        second = made[1].get(name)
        if second is None or not torch.equal(first, second):
            raise UserError(f"model.name {model.name}: '{name}' begins with other numbers each time that it is made: fill a parameter with "
                            "a function of torch.nn.init, a buffer with constants")  # fmt: skip


def _check_logits(given: list[Tensor], model: Model, classes: int) -> None:
    for logits in given:
        if not isinstance(logits, Tensor) or list(logits.shape) != [IMAGES, classes]:
            gives = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"model.name {model.name} gives {gives} for {IMAGES} images, and the data has {classes} classes: "
                f"it must give [{IMAGES}, {classes}], a number for each class; mend its last layer"
            )


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(some, others, strict=True))


def _mixed(model: Model, what: str) -> UserError:
    return UserError(
        f"model.name {model.name} {what}: it computes with how many there are (len(x), x.shape[0], x.numel()), keeps what it has seen, or "
        "is not deterministic; do without"
    )
