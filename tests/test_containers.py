"""Claims about the stages and commands in a container: the bits, the files and the refusals are those of a host."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.machine import demo
from tests import folders, reproductions
from tests.containers import CALLER, DOCKER, LIMITS, STRANGER, Container, docker, fingerprint, run
from tests.settings import set_params

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def on_the_host(make_checkout) -> Path:
    """A finished run on the host, under Git."""
    folder = make_checkout()
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=folder, check=True, env=environment, stdin=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def in_a_container(cpu_image, make_checkout) -> Path:
    """A finished run in the CPU image by a stranger, on one CPU, without Git."""
    folder = make_checkout(STRANGER)
    run(cpu_image, folder, user=STRANGER, options=("--cpus", "1"))
    return folder


@pytest.mark.fault(33)
def test_a_read_only_container_without_network_and_capabilities_gives_the_hosts_fingerprint(in_a_container, on_the_host):
    assert fingerprint(in_a_container) == fingerprint(on_the_host)


def test_dvc_lock_from_a_container_equals_the_hosts_byte_for_byte(in_a_container, on_the_host):
    assert (in_a_container / "dvc.lock").read_bytes() == (on_the_host / "dvc.lock").read_bytes()


def test_two_workers_in_a_container_give_the_hosts_fingerprint(cpu_image, make_checkout, on_the_host):
    folder = make_checkout(STRANGER, {"workers: 1": "workers: 2"})
    run(cpu_image, folder, user=STRANGER)
    assert fingerprint(folder) == fingerprint(on_the_host)
    (environment,) = folder.glob("runs/*/environment.json")
    assert json.loads(environment.read_text())["train"]["workers"] == 2


@pytest.mark.fault(30)
def test_all_that_a_container_wrote_belongs_to_the_caller_whoever_that_is(in_a_container):
    assert {"outputs", "runs", "data", ".cache", ".dvc"} <= {path.name for path in in_a_container.iterdir()}
    assert {f"{path.lstat().st_uid}:{path.lstat().st_gid}" for path in in_a_container.rglob("*")} == {STRANGER}


@pytest.mark.fault(34)
def test_threads_follow_the_containers_cpu_limit(in_a_container):
    (environment,) = in_a_container.glob("runs/*/environment.json")
    assert json.loads(environment.read_text())["train"]["threads"] == 1


@pytest.mark.fault(33)
def test_compare_in_a_container_finds_host_and_container_identical(cpu_image, in_a_container, on_the_host, make_checkout):
    folder = make_checkout()
    for name, checkout in (("host", on_the_host), ("container", in_a_container)):
        (kept,) = checkout.glob("runs/*")
        shutil.copytree(kept, folder / "runs" / name)
    assert "identical" in run(cpu_image, folder, "python", "-m", "pipeline", "compare", "runs/host", "runs/container").stdout


def test_a_folder_of_odd_photos_gives_the_hosts_data_set_and_weights_in_a_container(cpu_image, make_checkout):
    host, container = make_checkout(), make_checkout()
    for folder in (host, container):
        folders.odd_photos(folder / "photos")
        set_params(folder, data={"source": "folder", "folder": "photos", "size": 32, "channels": 3})
    for stage in ("download", "train", "evaluate"):
        subprocess.run([sys.executable, "-m", "pipeline", stage], cwd=host, check=True, stdin=subprocess.DEVNULL)
    run(cpu_image, container)
    assert (container / "data" / "dataset.safetensors").read_bytes() == (host / "data" / "dataset.safetensors").read_bytes()
    assert fingerprint(container) == fingerprint(host)


def test_a_received_run_is_checked_in_a_container_without_its_networks_source(cpu_image, tmp_path):
    author, receiver = tmp_path / "author", tmp_path / "receiver"
    author.mkdir()
    receiver.mkdir()
    reproductions.hand_over(author, receiver, {"name": "networks/resnet20.py:ResNet20", "arguments": {"width": 4}})
    assert "identical to what theirs records" in run(cpu_image, receiver, "python", "-m", "pipeline", "evaluate", "--run", "theirs").stdout
    assert "\nidentical: all 4 logged losses, " in run(cpu_image, receiver, "python", "-m", "pipeline", "reproduce", "theirs").stdout


def test_the_cuda_image_runs_the_stages_on_the_cpu_under_git_and_gives_the_same_fingerprint(cuda_image, make_checkout, on_the_host):
    folder = make_checkout()
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    run(cuda_image, folder, options=("--cpus", "1"))
    assert fingerprint(folder) == fingerprint(on_the_host)
    assert (folder / "dvc.lock").read_bytes() == (on_the_host / "dvc.lock").read_bytes()


def test_make_run_cpu_runs_the_checkouts_own_code_as_the_caller(cpu_image, make_checkout):
    folder = make_checkout()
    (folder / "dvc.yaml").write_text("stages:\n  own:\n    cmd: python -m pipeline\n    outs: [own]\n")
    (folder / "pipeline" / "__main__.py").write_text("open('own', 'w').write('the checkout')\n")
    command = ["make", "run-cpu", "IMAGE=pipeline-test", f"DOCKER={DOCKER}"]
    subprocess.run(
        command, cwd=folder, check=True, stdin=subprocess.DEVNULL, env=os.environ | {"PIPELINE_DOCKER_RUN_ARGS": "--network=none"}
    )
    own = folder / "own"
    assert (own.read_text(), f"{own.stat().st_uid}:{own.stat().st_gid}") == ("the checkout", CALLER)


def test_without_a_mount_the_image_shows_the_demo_from_the_copy_it_holds(cpu_image):
    """Its stages, and the first other way; the rest of the demo is tests/test_stages.py's."""
    with Container(cpu_image) as shown:
        shown.says(f"  {demo.FINGERPRINT}  the stages\n  {demo.FINGERPRINT}  ")


# --- what is refused, in one line ---------------------------------------------------------------------------------


def refused(done: subprocess.CompletedProcess) -> str:
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("error: ").rstrip("\n")


@pytest.mark.fault(31)
def test_a_workspace_of_another_user_is_refused_with_the_right_user_option(cpu_image, make_checkout):
    folder = make_checkout("4242:4343")
    assert refused(run(cpu_image, folder, user=STRANGER, check=False)) == (
        "/workspace belongs to 4242:4343 and this container runs as 12345:54321, which may not write there: docker run --user 4242:4343 ..."
    )


@pytest.mark.fault(31)
def test_a_read_only_workspace_is_refused(cpu_image, make_checkout):
    done = docker("run", "--rm", *LIMITS, "--user", CALLER, "--volume", f"{make_checkout()}:/workspace:ro", cpu_image, check=False)
    assert refused(done).startswith("/workspace is mounted read-only")


def test_a_mounted_folder_that_is_no_checkout_is_refused(cpu_image, tmp_path):
    assert refused(run(cpu_image, tmp_path, check=False)).startswith("/workspace: no dvc.yaml and params.yaml here; mount a checkout")


@pytest.mark.fault(25)
def test_device_cuda_without_a_gpu_is_refused_before_anything_is_downloaded(cuda_image, make_checkout):
    folder = make_checkout(settings={"device: cpu": "device: cuda"})
    assert refused(run(cuda_image, folder, check=False)).startswith(
        "device 'cuda': no NVIDIA GPU is visible; in a container add --gpus all"
    )
    assert not (folder / "data").exists()


@pytest.mark.fault(26)
def test_device_cuda_in_the_cpu_image_is_refused(cpu_image, make_checkout):
    folder = make_checkout(settings={"device: cpu": "device: cuda"})
    built_for = run(cpu_image, folder, "python", "-c", "import torch; print(torch.version.cuda)").stdout.strip()
    reason = refused(run(cpu_image, folder, check=False))
    if built_for == "None":
        assert reason.startswith("device 'cuda': this PyTorch is a CPU-only build")
    else:  # built with an empty TORCH_INDEX_URL
        assert reason.startswith("device 'cuda': no NVIDIA GPU is visible")


@pytest.mark.fault(32)
def test_a_worktree_whose_repository_is_not_mounted_works_as_without_git(cpu_image, make_checkout):
    folder = make_checkout()
    (folder / ".git").write_text("gitdir: /elsewhere/.git/worktrees/this\n")
    assert "Running stage 'download'" in run(cpu_image, folder, "dvc", "repro", "--dry", "download").stdout


@pytest.mark.fault(32)
def test_a_checkout_without_dvc_is_refused(cpu_image, make_checkout):
    folder = make_checkout()
    shutil.rmtree(folder / ".dvc")
    assert "you are not inside of a DVC repository" in refused(run(cpu_image, folder, check=False))
