"""The device: what fails on it is one line with the remedy."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from pipeline import device as devices
from pipeline import numerics, params
from pipeline.device import graph
from pipeline.exact import self_test
from pipeline.system.errors import UserError
from pipeline.weights import predict
from tests.steps import CPU, drawn_set, trained_fingerprint, trainer


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
    monkeypatch.setattr(devices.cuda, "driver_version", lambda: "470.57")
    with pytest.raises(UserError, match=r"driver is 470\.57, CUDA 13\.0 needs at least 580; update it"):
        devices.select("cuda")


@pytest.fixture
def simulated_gpu(monkeypatch):
    """A PyTorch as its wheel for CUDA 13 is, with one GPU; returns a function that says which."""

    def have(capability: tuple[int, int], architectures: str = "sm_75 sm_80 sm_86 sm_90 sm_90a sm_100 sm_120") -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        for name, answer in {
            "is_available": True, "device_count": 1, "get_device_name": "NVIDIA X", "get_device_capability": capability,
            "get_arch_list": architectures.split(),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)

    return have


@pytest.mark.fault(27)
@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (11, 0), (13, 0)])
def test_a_gpu_that_pytorch_holds_no_code_for_is_one_line_with_what_it_holds(capability, simulated_gpu):
    simulated_gpu(capability)
    with pytest.raises(UserError) as refusal:
        devices.select("cuda")
    assert str(refusal.value) == (
        f"device 'cuda': NVIDIA X has compute capability {capability[0]}.{capability[1]}, and torch {torch.__version__} holds code for "
        "7.5, 8.0, 8.6, 9.0, 10.0, 12.0 and later ones of each first number; install a PyTorch that was built for it, or set device: cpu "
        "in params.yaml"
    )


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)])
def test_a_gpu_that_pytorch_holds_code_for_is_taken(capability, simulated_gpu):
    simulated_gpu(capability)
    assert devices.select("cuda:0") == torch.device("cuda:0")


def test_code_for_the_virtual_machine_is_for_every_later_gpu_and_a_pytorch_that_names_none_is_believed(simulated_gpu):
    simulated_gpu((13, 0), "sm_90 compute_90")
    assert devices.select("cuda") == torch.device("cuda")
    simulated_gpu((7, 0), "")
    assert devices.select("cuda") == torch.device("cuda")


MODEL = SimpleNamespace(
    weights=None,
    network=None,
    provenance=SimpleNamespace(data=SimpleNamespace(shape=(3, 32, 32), classes=range(10)), network=params.Model(), source=None),
)
FAILURES = {
    torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore"): (
        "device 'cuda': failed (CUDA error: all CUDA-capable devices are busy or unavailable); see nvidia-smi and dmesg; the next run "
        "resumes from the last checkpoint"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."): (
        "device 'cuda': out of memory (CUDA out of memory. Tried to allocate 20.00 MiB.); free some and run again, which resumes from the "
        "last checkpoint, or set a smaller batch_size in params.yaml"
    ),
}


@pytest.mark.fault(27)
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("when", ["the GPU is looked at", "the kernels are proved", "the model moves"])
def test_a_gpu_that_fails_before_training_is_one_line(failure, when, simulated_gpu, monkeypatch):
    def fail(*_):
        raise failure

    simulated_gpu((9, 0))
    monkeypatch.setattr(predict.of_runs, "build", lambda *_: torch.nn.Linear(1, 1))
    owner, name, use = {
        "the GPU is looked at": (torch.cuda, "get_device_capability", lambda: devices.select("cuda")),
        "the kernels are proved": (self_test, "check", lambda: numerics.select("exact", torch.device("cuda"))),
        "the model moves": (torch.nn.Module, "to", lambda: predict.Network(MODEL, "cuda", "native")),
    }[when]
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(UserError) as refusal:
        use()
    assert str(refusal.value) == FAILURES[failure]


class Counter:
    """A step that adds its own number to a tensor, and what a graph that keeps that number as it was makes of it."""

    def __init__(self) -> None:
        self.state = [torch.full((3,), torch.nan), torch.zeros(3), torch.zeros((), dtype=torch.int64)]

    def step(self) -> None:
        self.state[2] += 1
        self.state[1] += self.state[2]

    def replay_with_the_number_baked_in(self) -> None:
        self.state[2] += 1
        self.state[1] += 1


def test_a_graph_that_keeps_a_number_of_the_step_is_found_at_the_second_replay_and_is_one_line():
    counter = Counter()
    graph.prove(counter.step, counter.step, counter.state, CPU)
    assert [part.tolist() for part in counter.state[1:]] == [[0, 0, 0], 0]
    with pytest.raises(UserError) as refusal:
        graph.prove(counter.step, counter.replay_with_the_number_baked_in, counter.state, CPU)
    assert str(refusal.value) == (
        "device 'cpu': two steps of the captured CUDA graph leave other bits than the same steps launched kernel by kernel; "
        "set PIPELINE_CUDA_GRAPH=0 in the environment to train without a graph, and report this"
    )


def test_nothing_is_proved_of_a_step_that_is_not_its_own_equal():
    counter = Counter()
    drawn = iter(range(100))
    graph.prove(lambda: counter.state[1].fill_(next(drawn)), counter.step, counter.state, CPU)


def test_a_trainers_step_is_proved_on_all_that_it_changes_whatever_the_size_of_the_set_and_the_log(monkeypatch):
    proved = []

    def prove(step, device, state):
        before = [part.clone() for part in state]
        graph.prove(step, step, state, device)
        assert all(map(torch.equal, state, before))
        step()
        proved.append([bool((part != old).any()) for part, old in zip(state, before, strict=True)])
        for part, old in zip(state, before, strict=True):
            part.copy_(old)
        return step

    plain = trained_fingerprint(steps=5)
    monkeypatch.setattr(devices, "as_cuda_graph", prove)
    assert trained_fingerprint(steps=5) == plain
    trainer(data=drawn_set(64))
    assert proved == [[True] * 6] * 2  # weights, momentum, position, step, log, rows of it


@pytest.mark.parametrize(("value", "said"), [("yes", "is 'yes'; allowed: 0"), ("", "is ''; allowed: 0")])
def test_a_wish_for_no_graph_that_is_none_is_one_line(value, said, monkeypatch):
    monkeypatch.setenv("PIPELINE_CUDA_GRAPH", value)
    with pytest.raises(UserError, match=said):
        devices.as_cuda_graph(lambda: None, CPU, [])


def test_without_a_graph_a_step_on_cuda_is_the_step_itself(monkeypatch):
    def step() -> None: ...

    monkeypatch.setenv("PIPELINE_CUDA_GRAPH", "0")
    assert devices.as_cuda_graph(step, torch.device("cuda"), []) is step


@pytest.mark.parametrize(("given", "wanted"), [(None, "1"), ("0", "0")])
def test_collectives_between_gpus_raise_where_a_worker_is_lost_unless_the_user_has_it_otherwise(given, wanted, monkeypatch):
    monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", given or "")
    if given is None:
        monkeypatch.delenv("TORCH_NCCL_BLOCKING_WAIT")
    assert devices.collectives(CPU) == {"backend": "gloo"}
    assert os.environ.get("TORCH_NCCL_BLOCKING_WAIT") == given
    gpu = torch.device("cuda:1")
    assert devices.collectives(gpu) == {"backend": "nccl", "device_id": gpu}
    assert os.environ["TORCH_NCCL_BLOCKING_WAIT"] == wanted


def test_native_convolutions_on_cuda_are_those_that_give_equal_runs(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    devices.prepare(CPU)
    assert torch.backends.cudnn.deterministic


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
    monkeypatch.setattr(devices.cuda, "driver_version", lambda: "580.65.06")
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
    monkeypatch.setattr(devices.cuda, "driver_version", lambda: "470.57")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match=r"driver is 470\.57, CUDA 13\.0 needs at least 580; update it"):
        devices.select("cuda")


@pytest.mark.fault(60)
def test_a_variable_that_hides_the_gpu_that_is_asked_for_is_named(gpu_build, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with monkeypatch.context() as gpu:
        gpu.setattr(devices.cuda, "check_architecture", lambda device: None)
        assert devices.select("cuda:0") == torch.device("cuda:0")
    with pytest.raises(
        UserError, match=r"shows 1 GPU\(s\), cuda:0 to cuda:0; .*; PyTorch sees only the GPUs that CUDA_VISIBLE_DEVICES names, which is '1'"
    ):
        devices.select("cuda:1")


@pytest.mark.fault(60)
def test_all_gpus_are_hidden_by_nothing(gpu_build, monkeypatch):
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")  # as the CUDA image sets it
    monkeypatch.setattr(devices.cuda, "driver_version", lambda: None)
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
