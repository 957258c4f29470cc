"""A network of the user's own: what it draws is of the seed, and what cannot be kept is not trained."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import nn

from pipeline import device as devices
from pipeline import models, numerics
from pipeline.params import Model, Train
from pipeline.runs.provenance import Provenance
from pipeline.system import files
from pipeline.system.errors import UserError
from pipeline.system.tensors import fingerprint
from pipeline.training import stage
from pipeline.training.trainer import Trainer
from tests.conftest import ROOT
from tests.kept_runs import DATA
from tests.networks import OWN_FILE
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


@pytest.mark.fault(80)
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.RReLU()], ids=str)
def test_what_a_network_draws_under_native_numerics_is_of_the_seed_alone(layer, monkeypatch):
    monkeypatch.setattr(models, "SimpleCNN", network(layer))
    first = trained_fingerprint("native", steps=4)
    torch.manual_seed(7)
    torch.rand(3)
    assert trained_fingerprint("native", steps=4) == first
    assert trained_fingerprint("native", steps=4, seed=1) != first


@pytest.mark.fault(80)
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


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes a network, the usual one with a piece of it replaced, and makes the trainer of it."""
    monkeypatch.chdir(tmp_path)

    def make(old: str = "", new: str = "", version: str = "exact", name: str = "networks/mine.py:Net") -> Trainer:
        assert old in OWN_FILE
        files.write_text(tmp_path / "networks" / "mine.py", OWN_FILE.replace(old, new) if old else OWN_FILE)
        train = Train(epochs=1, batch_size=10, lr=0.01, momentum=0.9, log_every=1)
        devices.prepare(CPU)
        return Trainer(drawn_set(20), CPU, 0, numerics.select(version, CPU), train, network=Model(name=name))

    return make


@pytest.mark.fault(74)
@pytest.mark.parametrize("version", ["exact", "native"])
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("nn.Linear(3072", "nn.Linear(999", r"networks/mine\.py:12: \w+: .*; mend the network"),
        (
            "classes)\n",
            "5)\n",
            r"model\.name networks/mine\.py:Net gives \[2, 5\] for 2 images, and the data has 10 classes: .*; mend its last",
        ),
        (
            "classes)\n",
            "20)\n",
            r"model\.name networks/mine\.py:Net gives \[2, 20\] for 2 images, and the data has 10 classes: .*; mend its",
        ),
        ("x.flatten(1)", "x.flattn(1)", r"networks/mine\.py:12: AttributeError: .*flattn"),
        ("nn.Linear(", "nn.Liner(", r"networks/mine\.py:9: AttributeError: .*Liner"),
        ("super().__init__()", "pass", r"networks/mine\.py:9: AttributeError: cannot assign module before Module"),
        ("return ", "", r"NoneType"),
        ("class Net(nn.Module)", "class Net()", r"networks/mine\.py:8: TypeError|makes Net, not a torch\.nn\.Module"),
        ("class Net(", "class Other(", r"networks/mine\.py has no Net; it has Other"),
    ],
)
def test_a_mistake_in_a_network_is_one_line_with_its_own_line_before_any_step(old, new, said, version, mine):
    with pytest.raises(UserError, match=said) as refused:
        mine(old, new, version)
    assert "\n" not in str(refused.value)


@pytest.mark.fault(75)
def test_a_run_is_of_all_that_its_network_is_made_of_and_an_edit_of_any_of_it_is_another(mine, tmp_path):
    network = Model(name="networks/mine.py:Net")
    files.write_text(tmp_path / "networks" / "parts.py", "scale = 1\n")
    mine("import torch\n", "from parts import scale\n")
    before = models.source(network, "exact")
    files.write_text(tmp_path / "networks" / "parts.py", "scale = 2\n")
    assert models.source(network, "exact") != before
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert [name for name in stages if "networks" in stages[name]["deps"]] == ["train", "evaluate"]


@pytest.mark.fault(75)
@pytest.mark.parametrize("name", ["helpers_of_mine", "package_of_mine.inner"])
def test_what_a_network_imports_from_where_dvc_does_not_look_is_refused(name, mine, tmp_path, monkeypatch):
    file = tmp_path / f"{name.replace('.', '/')}.py"
    files.write_text(file, "scale = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"^networks/mine.py imports {file.relative_to(tmp_path)}, whose changes DVC does not see; move"):
        mine("import torch\n", f"from {name} import scale\n")
