"""docs/gpu-to-cpu.md: every snippet runs, and the two scripts differ in the lines that the page shows and in no other."""

from __future__ import annotations

import difflib
import re
import runpy

import pytest
import torch
from torch.utils.data import TensorDataset

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "gpu-to-cpu.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = ROOT / "docs" / "examples"


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_of_the_page_runs_by_itself(snippet, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(snippet, "docs/gpu-to-cpu.md", "exec"), {})
    finally:
        torch.set_num_threads(threads)


def drawn() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(130, 3, 32, 32, generator=generator), torch.arange(130) % 10)


def test_the_script_for_a_cpu_trains_and_saves_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "train_cpu.py"))["main"](drawn())
    assert re.fullmatch(r"epoch 1: loss 2\.\d{4}\nepoch 2: loss 2\.\d{4}\n", capsys.readouterr().out)
    assert len(torch.load("model.pt", map_location="cpu", weights_only=True)) == 10


@pytest.mark.cuda
def test_the_script_for_a_gpu_trains_there(cuda, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "train_gpu.py"))["main"](drawn())


def test_the_scripts_differ_in_their_first_line_and_the_three_lines_that_the_page_names():
    gpu, cpu = ((EXAMPLES / f"train_{device}.py").read_text().splitlines() for device in ("gpu", "cpu"))
    changed = [line for line in difflib.ndiff(gpu, cpu) if line[0] in "+-"]
    assert [sum(line[0] == sign for line in changed) for sign in "-+"] == [4, 4]
    for words in ('torch.device("cuda")', "pin_memory=True", "inputs.to(device, non_blocking=True)"):
        assert words in PAGE
        assert len([line for line in changed if words in line]) == 1
