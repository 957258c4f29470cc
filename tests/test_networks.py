"""Torchvision's networks, unchanged: a dozen are trained here, to the hash that stands on the page."""

from __future__ import annotations

import re

import pytest

from pipeline.device import CPU
from pipeline.machine import check
from pipeline.params import Model
from tests.conftest import ROOT
from tools import markers, networks

ROWS = {
    cells[0].removesuffix(" (narrower)"): cells
    for line in markers.read(ROOT / networks.PAGE, "networks").splitlines()
    if len(cells := line.strip("| ").split(" | ")) == 7 and cells[6].startswith("`")
}


DOZEN = (
    "densenet121", "efficientnet_b0", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t",
)  # fmt: skip


def test_the_page_has_networks_of_torchvisions_alone_each_with_its_hash():
    assert set(DOZEN) <= set(ROWS) <= set(networks.names())
    assert all(re.fullmatch("`[0-9a-f]{12}`", cells[6]) for cells in ROWS.values())


@pytest.mark.parametrize("name", DOZEN)
def test_a_network_of_torchvisions_trains_to_the_hash_that_the_page_names(name):
    subject = check.Subject(Model(name=name), (3, networks.SIZE, networks.SIZE), networks.CLASSES, networks.SEED, CPU)
    training, _ = check.trained(check.built(subject), subject)
    assert ROWS[name][6] == f"`{training:.12}`"
