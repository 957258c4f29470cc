"""Networks that train to the hash that stands on the page: a dozen of torchvision's, and all the small ones of the usual kinds."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from pipeline import models
from pipeline.exact.engine import Exact
from pipeline.exact.group import ALONE
from pipeline.exact.masks import Draws
from pipeline.machine import check
from pipeline.models import of_runs
from pipeline.params import Model
from pipeline.system.errors import UserError
from tests.chaos import Chaos
from tests.conftest import ROOT
from tools import commit, markers, networks, ways
from tools.miniatures import MINIATURES

ROWS = {
    cells[0].removesuffix(" (narrower)"): cells
    for line in markers.read(ROOT / networks.PAGE, "networks").splitlines()
    if len(cells := line.strip("| ").split(" | ")) == 7 and cells[6].startswith("`")
}


def test_what_was_seen_of_a_network_is_kept_and_the_next_measurement_goes_on(tmp_path, monkeypatch, capsys):
    asked = []

    def row(name: str, commit: str) -> networks.Row:
        if (name, len(asked)) == ("alexnet", 2):
            raise UserError("other bits in shares")
        asked.append(name)
        return networks.Row(name, 64, 1234567, 2, 0.5, 0.25, "ab" * 32, commit)

    monkeypatch.setattr(networks, "SEEN", tmp_path / "networks.json")
    monkeypatch.setattr(networks, "PAGE", tmp_path / "networks.md")
    monkeypatch.setattr(networks, "names", lambda: ["alexnet", "resnet18", "vgg11"])
    monkeypatch.setattr(networks, "MINIATURES", {"LeNet": None})
    monkeypatch.setattr(networks, "row", row)
    networks.PAGE.write_text("<!-- networks: made by `make networks` -->\n<!-- /networks -->\n")
    for made_at, words, code in (("1" * 12, ["vgg11"], 0), ("2" * 12, [], 2), ("3" * 12, [], 0)):
        monkeypatch.setattr(commit, "measured", lambda made_at=made_at: made_at)
        monkeypatch.setattr("sys.argv", ["networks", *words])
        with pytest.raises(SystemExit) as ended:
            networks.main()
        assert ended.value.code == code
    assert asked == ["vgg11", "LeNet", "resnet18", "alexnet"]
    said, _, title, _, *table = markers.read(networks.PAGE, "networks").splitlines()
    assert said == "At commit 111111111111, 222222222222, 333333333333."
    assert title.endswith("3 of 3 builders:")
    assert "In miniature, 1 of 1 kinds:" in table
    assert table[2] == "| alexnet | 64 x 64 | 1,234,567 | 2 | 5.0e-01 | 2.5e-01 | `abababababab` |"
    monkeypatch.setattr(networks, "VERSION", "exact-4")
    assert networks.seen() == {}, "what another version gave is not this one's"


def test_six_networks_have_one_hash_over_all_ways_and_native_has_several():
    seen = ways.seen()
    assert list(seen) == list(ways.MODELS)
    for of in seen.values():
        assert len({found for found, _ in of["exact"].values()}) == 1
        assert len({way.rpartition(", ")[0] for way in of["exact"]}) >= 8
        assert len({way.rpartition(", ")[2] for way in of["exact"]}) >= 2, "releases of PyTorch"
        assert len({found for found, _ in of["native"].values()}) > 1
    assert markers.read(ROOT / ways.PAGE, ways.NAME) == ways.table(seen)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name == "swin_t")) for name in ways.MODELS])
def test_a_step_of_the_six_networks_has_one_hash_whatever_a_library_does_to_exact_sums(name):
    network = models.build(ways.MODELS[name], (3, ways.SIZE, ways.SIZE), 10, 0).train()
    images = torch.randint(0, 256, (3, 3, ways.SIZE, ways.SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    draws = Draws(0, torch.zeros(1, dtype=torch.int64))

    def step() -> list[torch.Tensor]:
        its = copy.deepcopy(network)
        loss, gradients = Exact().loss_and_gradients(its, images, torch.arange(3), ALONE, 3, draws=draws)
        return [loss, *(each for each in gradients if each is not None), *its.buffers()]

    wanted = step()
    with Chaos(0) as chaos:
        found = step()
    assert chaos.shuffled > 50
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_of_sources_that_are_no_commits_nothing_is_measured(monkeypatch):
    monkeypatch.setattr("pipeline.system.revision.describe", lambda folder: "0123456789ab-dirty")
    with pytest.raises(SystemExit, match=r"^error: the sources are those of no commit"):
        networks.main()


DOZEN = (
    "densenet121", "efficientnet_b0", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t",
)  # fmt: skip


def test_the_page_has_networks_of_torchvisions_and_every_miniature_each_with_its_hash():
    assert {*DOZEN, *MINIATURES} <= set(ROWS) <= {*networks.names(), *MINIATURES}
    assert all(re.fullmatch("`[0-9a-f]{12}`", cells[6]) for cells in ROWS.values())


@pytest.mark.parametrize("name", [*MINIATURES, *DOZEN[:-1], pytest.param("swin_t", marks=pytest.mark.long)])
def test_a_network_trains_to_the_hash_that_the_page_names(name):
    training, _ = check.trained(*networks.built(name))
    assert ROWS[name][6] == f"`{training:.12}`"


MASKED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=10, block=8):
        super().__init__()
        self.fc = nn.Linear(3, classes)
        self.register_buffer("mask", torch.tril(torch.ones(block, block)), persistent=False)
"""


@pytest.mark.parametrize(
    "model",
    [
        Model(name="regnet_y_400mf", arguments={"stem_width": 600_000}),
        Model(name="vit_b_16", arguments={"representation_size": -1}),
        Model(name="networks/vit.py:ViT", arguments={"layers": 10**4, "width": 64}),
        Model(name="mobilenet_v2", arguments={"width_mult": 1e4}),
        Model(name="networks/mine.py:Net", arguments={"block": 10**4}),
    ],
    ids=lambda model: model.name,
)
def test_a_network_that_a_run_says_is_larger_than_its_weights_ends_before_it_takes_memory_or_time(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "networks", "networks")
    Path("networks", "mine.py").write_text(MASKED)
    made = []
    with (
        register_module_parameter_registration_hook(lambda module, name, weight: made.append(weight)),
        pytest.raises(UserError, match=r"^the weights are not"),
    ):
        of_runs.check_received(model, (3, 224, 224), 10, {"x": np.zeros(3, np.float32)})
    filled = [weight.numel() for weight in made if weight.device.type == "cpu"][:-1]  # all but the one at which it ended
    assert sum(filled) <= of_runs.MOST_MORE + 6
    assert len(made) <= 1100
