import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from pipeline import device, params
from pipeline.machine import doctor
from pipeline.system.errors import MAKE_AGAIN
from tests.settings import set_params

ROOT = Path(__file__).parent.parent
ABOUT = [
    "device",
    "python",
    "packages",
    "PyTorch",
    "torchvision",
    "devices",
    "driver",
    "threads",
    "workers",
    "numerics",
    "workspace",
    "cache",
    "disk",
]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path


def run(*options: str) -> subprocess.CompletedProcess:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[1:] = {['doctor', *options]!r}; from pipeline.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def set_device(checkout: Path, name: str) -> None:
    path = checkout / params.PARAMS
    path.write_text(path.read_text().replace("device: cpu", f"device: {name}", 1))


def finding(about: str) -> doctor.Finding:
    return doctor.examine(about)[0]


def test_doctor_says_one_line_each_and_ends_with_0_when_the_device_can_be_used(checkout):
    done = run()
    assert [line.split()[1] for line in done.stdout.splitlines()] == ABOUT
    assert done.stdout.splitlines()[0] == "ok  device       cpu, as params.yaml wants, can be used"
    assert (done.returncode, done.stderr) == (0, "")


def test_doctor_gives_a_program_the_same_as_json(checkout):
    done = run("--json")
    report = json.loads(done.stdout)
    assert list(report["findings"]) == ABOUT
    assert report["usable"] is True
    assert report["findings"]["device"] == {"ok": True, "text": "cpu, as params.yaml wants, can be used"}


@pytest.mark.fault(25)
def test_doctor_ends_with_1_and_names_gpus_all_when_no_gpu_is_there(checkout, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    set_device(checkout, "cuda")
    done = run("--quiet")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert done.stderr.startswith("error: device 'cuda': ")
    if device.needed_driver() and device.driver_version() is None:
        assert "no NVIDIA GPU is visible; in a container add --gpus all" in done.stderr


@pytest.mark.fault(26)
def test_a_cpu_only_build_is_named_as_such(checkout, monkeypatch):
    monkeypatch.setattr(device.torch.version, "cuda", None)
    set_device(checkout, "cuda")
    answer = finding(doctor.DEVICE)
    assert answer.ok is False
    assert answer.text.startswith("device 'cuda': this PyTorch is a CPU-only build (")
    assert doctor._pytorch().endswith(", a CPU-only build")


def test_quiet_says_nothing_when_the_device_can_be_used(checkout):
    done = run("--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_bad_params_are_one_finding_and_hide_no_other(checkout):
    set_device(checkout, "gpu")
    done = run()
    assert done.returncode == 3
    assert done.stdout.splitlines()[0] == "!!  device       params.yaml: 'device' is 'gpu'; allowed: cpu | cuda | cuda:N | mps"
    assert len(done.stdout.splitlines()) == len(ABOUT)


def test_a_torchvision_of_another_build_is_said_in_one_line(monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    answer = finding("torchvision")
    assert answer.ok is False
    assert "does not match torch" in answer.text
    assert "operator torchvision::nms does not exist" in answer.text
    assert "\n" not in answer.text


def test_a_pytorch_that_does_not_load_is_a_finding_with_the_remedy(monkeypatch):
    def broken() -> str:
        raise ImportError("libtorch_cpu.so: cannot open\nshared object file")

    monkeypatch.setitem(doctor.CHECKS, "PyTorch", broken)
    assert finding("PyTorch") == doctor.Finding(
        "PyTorch", False, f"a library cannot be imported (ImportError: libtorch_cpu.so: cannot open shared object file); {MAKE_AGAIN}"
    )


@pytest.mark.fault(27)
def test_a_driver_too_old_is_named_with_the_one_needed(monkeypatch):
    monkeypatch.setattr(device.torch.version, "cuda", "13.0")
    for module in (device, device.cuda):
        monkeypatch.setattr(module, "driver_version", lambda: "535.104.05")
    assert finding("driver") == doctor.Finding(
        "driver", False, "NVIDIA 535.104.05 is too old for this PyTorch, which needs at least 580; update it"
    )


@pytest.mark.fault(34)
def test_more_threads_than_the_cpu_limit_allows_are_a_finding(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(device, "cpu_limit", lambda: 1)
    monkeypatch.setattr(device.torch, "get_num_threads", lambda: 2)
    assert finding("threads") == doctor.Finding("threads", False, "PyTorch uses 2, but the CPU limit is 1; unset OMP_NUM_THREADS (2)")


@pytest.mark.fault(31)
def test_a_workspace_of_another_user_is_named_with_the_right_user_option(checkout, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    answer = finding("workspace")
    owner = checkout.stat()
    assert answer.ok is False
    assert f"(in a container: docker run --user {owner.st_uid}:{owner.st_gid})" in answer.text


def test_the_cache_is_the_one_that_dvc_uses(checkout):
    (checkout / ".dvc" / "config").write_text("[core]\n    no_scm = true\n[cache]\n    dir = ../elsewhere\n")
    (checkout / "elsewhere").mkdir()
    assert finding("cache").text.startswith(f"{checkout / 'elsewhere'} belongs to ")


@pytest.mark.fault(32)
def test_a_folder_without_dvc_is_told_in_one_line(checkout):
    shutil.rmtree(checkout / ".dvc")
    answer = finding("cache")
    assert answer.ok is False
    assert answer.text.startswith("there is no .dvc folder here, so DVC cannot run")


def test_too_little_space_is_a_finding(monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(10**10, 10**10 - 10**8, 10**8))
    answer = finding("disk")
    assert answer.ok is False
    assert answer.text.startswith("0.1 GB free here; CIFAR-10, DVC's copy of it and the runs need about 1 GB")


@pytest.mark.fault(83)
@pytest.mark.parametrize(
    ("wanted", "ok", "text"),
    [
        (1, True, "1, as params.yaml wants; at most one a CPU makes sense, 4 here (docs/workers.md says when)"),
        (4, True, "4, as params.yaml wants; at most one a CPU makes sense, 4 here (docs/workers.md says when)"),
        (5, False, "params.yaml wants 5, and this machine has 4 CPU(s) to give; set workers: 4 or fewer"),
    ],
)
def test_more_workers_than_cpus_are_a_finding(wanted, ok, text, checkout, monkeypatch):
    monkeypatch.setattr(device, "cpu_limit", lambda: 4)
    set_params(checkout, workers=wanted)
    assert finding("workers") == doctor.Finding("workers", ok, text)


@pytest.mark.fault(67)
def test_the_environments_workers_are_told_with_what_they_mean(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert finding("workers").text == (
        "WORLD_SIZE=2 RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 in the environment: train is one of 2 workers, and waits for the "
        "others; to train alone, or with what params.yaml says, unset WORLD_SIZE"
    )
