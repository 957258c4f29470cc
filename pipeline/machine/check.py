"""The `check` command: what exact numerics make of a network, and its proof on this machine in seconds, before any training.

Three images are trained on and evaluated in every way that this machine has: as one share and as two, with one thread and all, with the
oldest instructions. What mixes images, or asks for a value, gives other bits here.
"""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ContextDecorator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline import device as devices
from pipeline import models, numerics
from pipeline.data import dataset
from pipeline.exact import SGD, fingerprint, registry
from pipeline.exact.arguments import tensors
from pipeline.exact.draws import random_integers
from pipeline.exact.engine import Exact
from pipeline.exact.group import ALONE, Group
from pipeline.exact.masks import Draws
from pipeline.exact.threads import Exchange, together
from pipeline.machine.records import OLDEST_INSTRUCTIONS
from pipeline.models import Shape, trial
from pipeline.params import Model, Params
from pipeline.sources import PROJECT
from pipeline.system import libraries
from pipeline.system.errors import UserError

IMAGES, STEPS, LR, MOMENTUM = 3, 2, 0.01, 0.9


class Subject(msgspec.Struct, frozen=True):
    """The network, and the images and classes that it is for."""

    model: Model
    shape: Shape
    classes: int
    seed: int
    device: str


class Way(msgspec.Struct, frozen=True):
    """One way to compute the same: what it gave."""

    name: str
    training: str
    """Hash of the losses, weights and buffers after each step."""
    evaluation: str
    """Hash of the logits."""


# --- what the network is -----------------------------------------------------------------------------------------


@dataclass
class Noted:
    """What a step of training shows of a network."""

    operations: Counter[str] = field(default_factory=Counter)
    unused: list[str] = field(default_factory=list)
    """Weights that take no part in the loss."""


class _Counting(TorchFunctionMode, ContextDecorator):
    """Counts operations by the names that PyTorch gives them."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = func in registry.FORM_OF or func in registry.COMPOSED or func in registry.IN_PLACE
        if known and (x := next(tensors((args, kwargs)), None)) is not None and x.dtype != torch.int64:  # no count of batches
            self._counts[func.__name__.strip("_")] += 1
        return func(*args, **(kwargs or {}))


# --- the proof ---------------------------------------------------------------------------------------------------


def trained(network: nn.Module, subject: Subject, noted: Noted | None = None) -> tuple[str, nn.Module]:
    """Two steps on all images at once: a hash of the losses, weights and buffers after each, and the network after them."""
    return _steps(copy.deepcopy(network), subject, ALONE, noted)


def trained_in_shares(network: nn.Module, subject: Subject, count: int) -> tuple[str, int]:
    """The same in so many shares: the hash, or that the workers' weights differ; and how often in a step they exchange something."""
    exchange, threads = Exchange(count), torch.get_num_threads()
    torch.set_num_threads(1)  # each worker's own would wait for each other
    try:
        hashes = set(together(exchange, lambda group: _steps(copy.deepcopy(network), subject, group)[0]))
    finally:
        torch.set_num_threads(threads)
    return hashes.pop() if len(hashes) == 1 else "the workers have other weights than each other", exchange.calls.total() // STEPS


def _steps(network: nn.Module, subject: Subject, group: Group, noted: Noted | None = None) -> tuple[str, nn.Module]:
    network.train()
    exact, digest = Exact(), hashlib.sha256()
    images, labels = drawn(subject)
    share, optimizer = group.share(IMAGES), SGD(network.parameters(), LR, MOMENTUM)
    for step in range(STEPS):
        draws = Draws(subject.seed, torch.full((1,), step, dtype=torch.int64, device=images.device), share.start)
        if noted is not None and not step:
            forward, network.forward = network.forward, _Counting(noted.operations)(network.forward)
        loss, gradients = exact.loss_and_gradients(
            network, images[share], labels[share], group, IMAGES, draws=draws, auxiliary=subject.model.auxiliary
        )
        if noted is not None and not step:
            network.forward = forward
            noted.unused = [name for (name, _), g in zip(network.named_parameters(), gradients, strict=True) if g is None]
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        digest.update(f"{float(loss).hex()} {fingerprint(network)}\n".encode())
    return digest.hexdigest(), network.eval()


def evaluated(network: nn.Module, subject: Subject, at_once: int) -> str:
    """A hash of the images' logits, computed so many at once."""
    images, _ = drawn(subject)
    logits = torch.cat([Exact().logits(network, part) for part in images.split(at_once)])
    return hashlib.sha256(logits.cpu().numpy().tobytes()).hexdigest()


def drawn(subject: Subject) -> tuple[Tensor, Tensor]:
    """Bytes of noise [IMAGES, *shape] and labels [IMAGES], the same on every machine, on the device."""
    numbers = random_integers("check/images", 256, IMAGES * int(np.prod(subject.shape)))
    images = torch.from_numpy(numbers.astype(np.uint8).reshape(IMAGES, *subject.shape))
    return images.to(subject.device), (torch.arange(IMAGES) % subject.classes).to(subject.device)


def built(subject: Subject) -> nn.Module:
    """The network with its initial weights, on the device, tried out.

    Raises:
        UserError: it cannot be made, or does what it cannot or what has no exact form.
    """
    device, exact = numerics.prepared(subject.device, "exact")
    network = models.build(subject.model, subject.shape, subject.classes, subject.seed).to(device)
    trial.check_made_alike(subject.model, subject.shape, subject.classes)
    trial.try_out(network, subject.model, subject.shape, subject.classes, exact, device)
    return network


def _elsewhere(subject: Subject, **environment: str) -> Way:
    """One training and an evaluation in a process of its own."""
    done = subprocess.run(
        [*libraries.python(), "-m", "pipeline.machine.check"], input=msgspec.json.encode(subject), capture_output=True,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))},
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"a process of its own with {environment} failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return msgspec.json.decode(done.stdout, type=Way)


def ways_here(subject: Subject, network: nn.Module, name: str) -> Way:
    """The training and the evaluation of all images at once, in this process."""
    training, after = trained(network, subject)
    return Way(name, training, evaluated(after, subject, IMAGES))


# --- the command -------------------------------------------------------------------------------------------------


def subject_of(params: Params, name: str | None) -> Subject:
    """The network of params.yaml, or another of that name, for the images of the data set in data/, or of what params.yaml says.

    Raises:
        UserError: the data set cannot be read.
    """
    model = params.model if name is None or name == params.model.name else msgspec.structs.replace(params.model, name=name, arguments={})
    data = params.data
    if data.source != "synthetic" and dataset.DATASET.exists():
        described = dataset.load().description
        shape, classes = described.shape, len(described.classes)
    else:
        shape, classes = (data.channels, data.size, data.size), data.classes
    return Subject(model, shape, classes, params.seed, params.device)


def check(subject: Subject, say: Callable[[str], None] = print) -> bool:
    """Say what the network is, and prove it in every way that this machine has; whether all ways gave the same.

    Raises:
        UserError: the network cannot be trained exactly; says why, with its own line.
    """
    network = built(subject)
    c, h, w = subject.shape
    say(f"{subject.model.name} for images of {c} x {h} x {w} and {subject.classes:,} classes")
    noted, began = Noted(), time.perf_counter()
    training, after = trained(network, subject, noted)
    seconds = (time.perf_counter() - began) / STEPS
    in_shares, exchanges = trained_in_shares(network, subject, 2)
    operations = ", ".join(f"{name} {n}" if n > 1 else name for name, n in noted.operations.most_common())
    facts = [
        *_size(network), f"operations a step: {operations}", f"several workers exchange {exchanges} times a step",
        f"a step of {IMAGES} images took {seconds:.2g} s here", *(f"{name} takes no part in the loss" for name in noted.unused),
        *_bound(subject.model),
    ]  # fmt: skip
    for fact in facts:
        say(f"  {fact}")
    say("\nThe same training and evaluation of three images in other ways; each line must have the same hashes:\n")
    ways = [Way("three images at once", training, evaluated(after, subject, IMAGES)),
            Way("two shares; each image alone", in_shares, evaluated(after, subject, 1))]  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        ways.append(ways_here(subject, network, f"{torch.get_num_threads()} thread{'s' * (threads == 1)} in place of {threads}"))
    finally:
        torch.set_num_threads(threads)
    ways.append(msgspec.structs.replace(_elsewhere(subject, **OLDEST_INSTRUCTIONS), name="set to the oldest instructions"))
    if subject.device != devices.CPU:
        ways.append(msgspec.structs.replace(_elsewhere(msgspec.structs.replace(subject, device=devices.CPU)), name="on the CPU"))
    for way in ways:
        differs = "" if (way.training, way.evaluation) == (training, ways[0].evaluation) else "  <- differs"
        say(f"  {way.training:.16}  {way.evaluation:.16}  {way.name}{differs}")
    same = len({(way.training, way.evaluation) for way in ways}) == 1
    wrong = "NOT the same: something in the network mixes images, keeps what it has seen, or is not deterministic"
    say(f"\n{'the same bits in every way' if same else wrong}")
    return same


def _size(network: nn.Module) -> list[str]:
    weights = [parameter.numel() for parameter in network.parameters()]
    layers = sum(not list(module.children()) for module in network.modules())
    return [f"{sum(weights):,} weights in {len(weights)} tensors, {len(list(network.buffers()))} buffers, {layers} layers"]


def _bound(model: Model) -> list[str]:
    """The lines of a network's own file that are bound to a device."""
    if not model.is_own:
        return []
    from pipeline.port import port

    path = Path(model.name.rpartition(":")[0])
    return [f"{each.source.path}:{f.line}: {f.message}" for each in port.port_all([path], numbers=False) for f in each.bound]


def main() -> None:
    """In a process of its own: the subject comes on standard input, what it gave goes to standard output."""
    subject = msgspec.json.decode(sys.stdin.buffer.read(), type=Subject)
    sys.stdout.buffer.write(msgspec.json.encode(ways_here(subject, built(subject), "")))


if __name__ == "__main__":
    main()
