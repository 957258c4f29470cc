"""With a GPU: elementwise operations and a captured step give the CPU's bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline import device as devices
from pipeline.exact import grid, optimizers, transcendental
from pipeline.exact.draws import random_integers
from pipeline.exact.engine import Exact
from tests.steps import drawn_set, trained_fingerprint, trainer

pytestmark = pytest.mark.cuda


def floats(label: str, dtype: torch.dtype, count: int = 2**20) -> torch.Tensor:
    """Drawn bit patterns, those of finite normal numbers."""
    bits = torch.from_numpy(random_integers(label, 2**63, count))
    drawn = (bits.int() if dtype == torch.float32 else bits * 2).view(dtype)
    return torch.where(drawn.isfinite() & (drawn.abs() >= torch.finfo(dtype).tiny), drawn, 1.0)


def bits_of(x: torch.Tensor) -> torch.Tensor:
    """The low 31 bits of each float, as float64s up to 2^31."""
    return (x.contiguous().view(torch.int32)[: len(x)] & 0x7FFFFFFF).double()


def grids(x: torch.Tensor) -> torch.Tensor:
    """Scale and unit for each number as an image."""
    on = grid.choose(grid.image_magnitudes(x.unsqueeze(1)))
    return torch.stack((on.scale, on.unit))


ELEMENTWISE = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "round": lambda a, _: a.round(),
    "to float32": lambda a, _: a.float(),
    "to float64": lambda a, _: a.double(),
    "int64 to float32": lambda a, _: a.double().view(torch.int64).float(),
    "times a number": lambda a, _: a * 0.9,
    "hardshrink": lambda a, _: F.hardshrink(a, optimizers.SNAP),
    "exp": lambda a, _: transcendental.exp(bits_of(a) * -(2.0**-26)),
    "log": lambda a, _: transcendental.log(1 + bits_of(a) * 2.0**-12),
    "a grid": lambda a, _: grids(a.float()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_elementwise_operation_gives_the_cpus_bits_on_cuda_for_a_million_drawn_operands(cuda, name, dtype):
    a, b = floats("a", dtype), floats("b", dtype)
    on_cpu, on_cuda = ELEMENTWISE[name](a, b), ELEMENTWISE[name](a.to(cuda), b.to(cuda)).cpu()
    assert torch.equal(on_cpu.nan_to_num(), on_cuda.nan_to_num())


def test_a_captured_step_gives_the_bits_of_the_same_step_launched_kernel_by_kernel(cuda, monkeypatch):
    captured = trained_fingerprint(device=cuda)
    monkeypatch.setenv(devices.graph.GRAPH, "0")
    assert trained_fingerprint(device=cuda) == captured == trained_fingerprint()


def test_an_images_logits_on_cuda_are_the_cpus_alone_and_in_a_batch(cuda):
    images = torch.from_numpy(drawn_set(100).train_images)
    on_cpu = Exact().logits(trainer().model, images)
    model = trainer(device=cuda).model
    for size in (1, 7, 100):
        on_cuda = torch.cat([Exact().logits(model, part.to(cuda)) for part in images.split(size)])
        assert torch.equal(on_cuda.cpu(), on_cpu)
