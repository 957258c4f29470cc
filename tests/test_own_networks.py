"""A network of the user's own: what it draws is of the seed, and what cannot be kept is not trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline import device as devices
from pipeline import models, numerics
from pipeline.errors import UserError
from pipeline.params import Train
from pipeline.runs.provenance import Provenance
from pipeline.tensors import fingerprint
from pipeline.training import stage
from tests.kept_runs import DATA
from tests.steps import CPU, drawn_set, run_steps, trained_fingerprint
from tests.steps import trainer as trainer_of


def network(*layers: nn.Module) -> type[nn.Module]:
    """A network of these layers and a linear one, in the place of the project's."""

    class Own(nn.Module):
        def __init__(self, channels: int, size: int, classes: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3072, 10))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layers(images)

    return Own


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.RReLU()], ids=str)
def test_what_a_network_draws_under_native_numerics_is_of_the_seed_alone(layer, monkeypatch):
    monkeypatch.setattr(models, "SimpleCNN", network(layer))
    first = trained_fingerprint("native", steps=4)
    torch.manual_seed(7)
    torch.rand(3)
    assert trained_fingerprint("native", steps=4) == first
    assert trained_fingerprint("native", steps=4, seed=1) != first


def test_a_resumed_training_draws_what_it_would_have_drawn(monkeypatch):
    monkeypatch.setattr(models, "SimpleCNN", network(nn.Dropout(0.5)))
    whole, begun, resumed = (trainer_of("native") for _ in range(3))
    run_steps(whole, 4)
    run_steps(begun, 2)
    resumed.resume(2, begun.state())
    torch.rand(5)
    run_steps(resumed, 2)
    assert fingerprint(whole.named_weights()) == fingerprint(resumed.named_weights())


@pytest.mark.fault(69)
@pytest.mark.parametrize(
    ("layer", "said"),
    [(nn.BatchNorm2d(3, dtype=torch.float64), "float64, not float32"), (nn.BatchNorm2d(3, affine=False), None)],
    ids=str,
)
def test_what_will_be_refused_at_the_end_is_refused_before_any_step(layer, said, monkeypatch):
    monkeypatch.setattr(models, "SimpleCNN", network(layer))
    train = Train(epochs=1, batch_size=64, lr=0.01, momentum=0.9, log_every=1)
    described = Provenance(data=DATA, seed=0, numerics="native", train=train, code="0" * 64, workers=1)
    devices.prepare(CPU)
    reached = []
    monkeypatch.setattr(stage.loop, "train", lambda *_: reached.append(1))
    arguments = (described, drawn_set(), CPU, numerics.select("native", CPU), None, 15)
    if said is None:
        stage.fit(*arguments)
    else:
        with pytest.raises(UserError, match=rf"^the network cannot be kept, so it is not trained: '.*{said}$"):
            stage.fit(*arguments)
    assert reached == [1] * (said is None)
