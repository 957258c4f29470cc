"""The device: what fails on it is one line with the remedy."""

from __future__ import annotations

import os

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


@pytest.fixture
def gpu_build(monkeypatch):
    """A PyTorch for CUDA 13 that sees no GPU on a machine whose driver is new enough."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "driver_version", lambda: "580.65.06")
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.fault(60)
@pytest.mark.parametrize(
    ("variable", "value"), [("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "nonsense"), ("NVIDIA_VISIBLE_DEVICES", "none")]
)
def test_a_variable_that_hides_every_gpu_is_named_and_not_the_driver(variable, value, gpu_build, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as refusal:
        devices.select("cuda")
    assert str(refusal.value) == (
        f"device 'cuda': no GPU is left, for PyTorch sees only the GPUs that {variable} names, which is {value!r}; "
        "unset it, or set device: cpu in params.yaml"
    )


@pytest.mark.fault(60)
def test_a_driver_too_old_is_told_whatever_the_variables_hide(gpu_build, monkeypatch):
    monkeypatch.setattr(devices, "driver_version", lambda: "470.57")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match=r"driver is 470\.57, CUDA 13\.0 needs at least 580; update it"):
        devices.select("cuda")


@pytest.mark.fault(60)
def test_a_variable_that_hides_the_gpu_that_is_asked_for_is_named(gpu_build, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert devices.select("cuda:0") == torch.device("cuda:0")
    with pytest.raises(
        UserError, match=r"shows 1 GPU\(s\), cuda:0 to cuda:0; .*; PyTorch sees only the GPUs that CUDA_VISIBLE_DEVICES names, which is '1'"
    ):
        devices.select("cuda:1")


@pytest.mark.fault(60)
def test_all_gpus_are_hidden_by_nothing(gpu_build, monkeypatch):
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")  # as the CUDA image sets it
    monkeypatch.setattr(devices, "driver_version", lambda: None)
    with pytest.raises(UserError, match=r"no NVIDIA GPU is visible; in a container add --gpus all, .*, or set device: cpu in params.yaml$"):
        devices.select("cuda")


@pytest.mark.fault(60)
@pytest.mark.parametrize(
    ("versions", "build"),
    [
        ({"cuda": None, "hip": "6.4"}, "a build for ROCm 6.4, on which this pipeline was never tried"),
        ({"cuda": None, "hip": None, "xpu": "20250101"}, "a build for Intel GPUs, on which this pipeline was never tried"),
        ({"cuda": None, "hip": None, "xpu": None}, "a CPU-only build"),
    ],
)
def test_a_build_for_something_else_than_cuda_is_named_as_what_it_is(versions, build, monkeypatch):
    for name, version in versions.items():
        monkeypatch.setattr(torch.version, name, version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # PyTorch's name for a ROCm device
    with pytest.raises(UserError) as refusal:
        devices.select("cuda")
    assert str(refusal.value).startswith(
        f"device 'cuda': this PyTorch is {build} ({torch.__version__}); use the CUDA image or a CUDA build"
    )
    assert devices.accelerators() == {}


@pytest.mark.fault(34)
@pytest.mark.fault(56)
@pytest.mark.parametrize(
    ("value", "limited"),
    [
        (None, True),
        ("", True),
        (" ", True),
        ("nonsense", True),
        ("0", True),
        ("-3", True),
        ("2,0", True),
        ("4", False),
        (" 04 ", False),
        ("4,1", False),
    ],
)
def test_threads_are_the_users_where_openmp_takes_the_number_and_else_follow_the_cpu_limit(value, limited, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    number = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: number[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda to: number.__setitem__(0, to))
    monkeypatch.setattr(devices, "cpu_limit", lambda: 1)
    assert devices.threads() == (1 if limited else 8)


@pytest.mark.fault(56)
@pytest.mark.parametrize("content", ["max 100000", "0 0", "nonsense", "", "1 2 3"])
def test_a_quota_that_says_nothing_limits_nothing(content, monkeypatch):
    monkeypatch.setattr(devices.Path, "read_text", lambda path: content)
    assert devices.cpu_limit() == len(os.sched_getaffinity(0))
