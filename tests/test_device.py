"""The device: what fails on it is one line with the remedy."""

from __future__ import annotations

import pytest
import torch

from pipeline import device as devices
from pipeline.errors import UserError
from tests.steps import CPU


@pytest.mark.parametrize(
    "name", ["gpu", "meta", "xpu", "CPU", "cpu:0", "", "cuda:", "cuda:-1", "cuda:01", "cuda:\u0663", "cuda:200", "cuda:256", "cuda\n"]
)
def test_a_name_that_is_not_one_of_ours_is_one_line_and_never_another_device(name):
    with pytest.raises(UserError) as refusal:
        devices.select(name)
    assert str(refusal.value) == f"device {name!r}: not a device; allowed: cpu | cuda | cuda:N | mps"


@pytest.mark.fault(27)
def test_too_large_a_tensor_on_the_cpu_is_one_line():
    with pytest.raises(UserError, match=r"device 'cpu': out of memory .*allocate"), devices.failures_explained(CPU):
        torch.empty(2**55, dtype=torch.uint8)


@pytest.mark.fault(27)
def test_a_mistake_of_ours_is_not_taken_for_a_failure_of_the_device():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), devices.failures_explained(CPU):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.fault(27)
def test_a_driver_too_old_is_one_line_with_the_found_and_the_needed_version(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "driver_version", lambda: "470.57")
    with pytest.raises(UserError, match=r"driver is 470\.57, CUDA 13\.0 needs at least 580; update it"):
        devices.select("cuda")


@pytest.mark.cuda
@pytest.mark.fault(27)
def test_out_of_memory_on_a_real_gpu_is_one_line(cuda):
    with pytest.raises(UserError, match="device 'cuda': out of memory"), devices.failures_explained(cuda):
        torch.empty(2**50, dtype=torch.uint8, device=cuda)
