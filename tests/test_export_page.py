"""`export --to FILE.html`: what is in the page, and what is refused."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from pipeline.params import Model as Network
from pipeline.runs import outputs
from pipeline.system.errors import UserError
from pipeline.weights.export import export
from tests import exported, network_runs
from tests.conftest import ROOT
from tests.exported import HOSTILE_DATA


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported.write(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "page.html").read_text()


def test_the_page_is_one_file_that_asks_for_nothing(text: str) -> None:
    assert re.findall(r"<script[^>]*\ssrc=|<link[^>]*href=\"(?!data:)|@import|url\(|fetch\(|XMLHttpRequest|WebSocket", text) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    directives = dict(part.strip().split(" ", 1) for part in html.unescape(policy[1]).split(";"))
    assert directives["default-src"] == "'none'"
    assert re.fullmatch(r"('sha256-[A-Za-z0-9+/=]{44}' ?){3}", directives["script-src"])
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]{44}'", directives["style-src"])
    assert "unsafe" not in policy[1]


def test_names_of_classes_are_text(text: str) -> None:
    assert "<script>window" not in text
    assert "<img src=x" not in text
    assert "<b>ring" not in text


def test_the_page_names_the_weights(folder: Path, text: str) -> None:
    assert outputs.read_model(folder / "run").fingerprint in text
    assert "synthetic, seed 3, numerics exact-3" in text


def test_the_same_run_gives_the_same_page(folder: Path, tmp_path: Path) -> None:
    assert export(folder / "run", tmp_path / "page.html") == [
        f"wrote {tmp_path / 'page.html'}: it computes with exact-3, bit for bit as `predict` does"
    ]
    assert (tmp_path / "page.html").read_bytes() == (folder / "page.html").read_bytes()


def test_the_page_goes_into_what_the_user_names_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    (tmp_path / "net.html").symlink_to(tmp_path / "published" / "net.html")
    export(folder / "run", tmp_path / "net.html")
    assert (tmp_path / "net.html").is_symlink()
    assert (tmp_path / "published" / "net.html").read_bytes() == (folder / "page.html").read_bytes()


def test_a_native_runs_page_says_that_its_bits_are_not_predicts(tmp_path: Path) -> None:
    network_runs.write(tmp_path / "run", "native", images=10)
    (said,) = export(tmp_path / "run", tmp_path / "page.html")
    assert said.endswith("it computes with exact-3; the run's numerics are native, so it is close to `predict`, not bit for bit")
    text = " ".join((tmp_path / "page.html").read_text().split())
    assert "close to those of <code>python -m pipeline predict</code>, but not the same bits" in text
    assert "bit for bit, on every device" not in text


def test_a_simple_cnn_from_before_there_was_network_json_gives_the_same_page(folder: Path, tmp_path: Path) -> None:
    network_runs.write(tmp_path / "run", data=HOSTILE_DATA, images=10, recorded=True)
    export(tmp_path / "run", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == (folder / "page.html").read_bytes()


OWN = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(3072, classes)
        self.register_buffer("order", torch.tensor([2, 1, 0]))

    def forward(self, x):
        return COMPUTED
"""
REFUSED = {
    "self.fc(F.elu(F.gelu(x.float())).flatten(1))": "a page cannot compute torch.nn.functional.gelu, torch.nn.functional.elu",
    "self.fc(F.dropout(x, 0, True).flatten(1))": "a page cannot compute torch.nn.functional.dropout with training = true",
    "self.fc(x[:, self.order].flatten(1))": 'a page cannot compute torch.Tensor.__getitem__ with index = {"tuple": ',
    "self.fc(x.flatten(1)) + self.order[0]": 'a page cannot compute torch.Tensor.__getitem__ with input = {"held": "order"}',
    "self.fc(x.flatten(1)).cumsum(1)":
        "networks/net.py:Net: a page needs a fixed list of operations, but 'torch.Tensor.cumsum' has no exact form",
}  # fmt: skip


@pytest.mark.parametrize("computed", REFUSED)
def test_a_network_with_what_the_page_lacks_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: str
) -> None:
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "net.py").write_text(OWN.replace("COMPUTED", computed))
    monkeypatch.chdir(tmp_path)
    network_runs.write(Path("run"), "native", images=2, network=Network(name="networks/net.py:Net"), recorded=True)
    with pytest.raises(UserError) as refused:
        export(Path("run"), Path("page.html"))
    assert str(refused.value).startswith(REFUSED[computed])
    assert str(refused.value).endswith("; --to FILE.onnx takes any network")
    assert not Path("page.html").exists()


def test_another_network_without_network_json_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    network_runs.write(tmp_path / "run", images=2, network=Network(name="networks/my_net.py:Net"))
    with pytest.raises(
        UserError, match=r"^networks/my_net.py:Net: the run has no network.json, and a page is made of that; --to FILE.onnx"
    ):
        export(tmp_path / "run", tmp_path / "page.html")


def test_a_run_of_other_numerics_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    network_runs.write(tmp_path / "run", "exact-1")
    with pytest.raises(UserError, match="use the version that made the run"):
        export(tmp_path / "run", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
