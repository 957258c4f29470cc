"""Claims about the images, on a container engine. DOCKER names its client; PIPELINE_DOCKER_BUILD_ARGS adds to `docker build`.

No container here has a network; all start read-only, without capabilities, as an ordinary user. They stand in one file, though it is a
long one, for both images and the checkouts with their finished runs take minutes to make, and are made once a file.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

import pipeline
from pipeline.machine import demo
from tests import folders, reproductions
from tests.settings import set_params

ROOT = Path(__file__).parent.parent
DOCKER = os.environ.get("DOCKER", "docker")
LIMITS = "--network none --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --shm-size 64m".split()  # noqa: SIM905
LIMITS += ["--env", "OMP_WAIT_POLICY=PASSIVE"]  # as tests/conftest.py says
CALLER = f"{os.getuid()}:{os.getgid()}"
STRANGER = "12345:54321"  # not in /etc/passwd
SETTINGS = {"source: cifar10": "source: synthetic", "epochs: 2": "epochs: 1"}
PATIENCE_SECONDS = 300.0

pytestmark = pytest.mark.docker


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def run(image: str, folder: Path, *command: str, user: str = CALLER, options: tuple[str, ...] = (), check: bool = True):
    mount = ("--volume", f"{folder}:/workspace")
    return docker("run", "--rm", *LIMITS, "--user", user, *mount, *options, image, *command, check=check)


@pytest.fixture(scope="module")
def engine() -> None:
    if shutil.which(DOCKER) is None or docker("version", check=False).returncode:
        pytest.skip(f"no container engine answers '{DOCKER} version' (the variable DOCKER names the client)")


def build(name: str) -> str:
    subprocess.run(["make", f"image-{name}", "IMAGE=pipeline-test", f"DOCKER={DOCKER}"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    docker("image", "prune", "--force", "--filter", "label=org.opencontainers.image.title=pipeline")
    return f"pipeline-test:{name}"


@pytest.fixture(scope="module")
def cpu(engine) -> str:
    return build("cpu")


@pytest.fixture(scope="module")
def cuda(cpu) -> str:
    return build("cuda")


@pytest.fixture(scope="module")
def make_checkout(cpu, tmp_path_factory):
    """A function that makes a fresh checkout, without .git, which belongs to `owner`; in the end all belong to us again."""
    checkouts: list[Path] = []

    def give(folder: Path, owner: str) -> None:
        chown = ("--entrypoint", "chown", "--volume", f"{folder}:/w", cpu, "-R", owner, "/w")
        docker("run", "--rm", "--network", "none", "--user", "0:0", *chown)

    def make(owner: str = CALLER, settings: dict[str, str] | None = None) -> Path:
        folder = tmp_path_factory.mktemp("checkout")
        shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=not_of_a_clone)
        text = (folder / "params.yaml").read_text()
        for old, new in {**SETTINGS, **(settings or {})}.items():
            assert old in text
            text = text.replace(old, new, 1)
        (folder / "params.yaml").write_text(text)
        checkouts.append(folder)
        if owner != CALLER:
            give(folder, owner)
        return folder

    yield make
    for folder in checkouts:
        give(folder, CALLER)


def not_of_a_clone(folder: str, names: list[str]) -> list[str]:
    """What lies in our checkout and would not in a fresh clone, nor .git."""
    if Path(folder) == ROOT / ".dvc":
        return ["tmp", "cache"]
    ours = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()] if Path(folder) == ROOT else []
    return [*ours, ".git", "__pycache__"]


def fingerprint(folder: Path) -> str:
    return json.loads((folder / "outputs" / "metrics.json").read_text())["fingerprint"]


# --- the same bits, with the caller's files ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_the_host(make_checkout) -> Path:
    """A finished run on the host, under Git."""
    folder = make_checkout()
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=folder, check=True, env=environment, stdin=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def in_a_container(cpu, make_checkout) -> Path:
    """A finished run in the CPU image by a stranger, on one CPU, without Git."""
    folder = make_checkout(STRANGER)
    run(cpu, folder, user=STRANGER, options=("--cpus", "1"))
    return folder


@pytest.mark.fault(33)
def test_a_read_only_container_without_network_and_capabilities_gives_the_hosts_fingerprint(in_a_container, on_the_host):
    assert fingerprint(in_a_container) == fingerprint(on_the_host)


def test_dvc_lock_from_a_container_equals_the_hosts_byte_for_byte(in_a_container, on_the_host):
    assert (in_a_container / "dvc.lock").read_bytes() == (on_the_host / "dvc.lock").read_bytes()


def test_two_workers_in_a_container_give_the_hosts_fingerprint(cpu, make_checkout, on_the_host):
    folder = make_checkout(STRANGER, {"workers: 1": "workers: 2"})
    run(cpu, folder, user=STRANGER)
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
def test_compare_in_a_container_finds_host_and_container_identical(cpu, in_a_container, on_the_host, make_checkout):
    folder = make_checkout()
    for name, checkout in (("host", on_the_host), ("container", in_a_container)):
        (kept,) = checkout.glob("runs/*")
        shutil.copytree(kept, folder / "runs" / name)
    assert "identical" in run(cpu, folder, "python", "-m", "pipeline", "compare", "runs/host", "runs/container").stdout


def test_a_folder_of_odd_photos_gives_the_hosts_data_set_and_weights_in_a_container(cpu, make_checkout):
    host, container = make_checkout(), make_checkout()
    for folder in (host, container):
        folders.odd_photos(folder / "photos")
        set_params(folder, data={"source": "folder", "folder": "photos", "size": 32, "channels": 3})
    for stage in ("download", "train", "evaluate"):
        subprocess.run([sys.executable, "-m", "pipeline", stage], cwd=host, check=True, stdin=subprocess.DEVNULL)
    run(cpu, container)
    assert (container / "data" / "dataset.safetensors").read_bytes() == (host / "data" / "dataset.safetensors").read_bytes()
    assert fingerprint(container) == fingerprint(host)


def test_a_received_run_is_checked_in_a_container_without_its_networks_source(cpu, tmp_path):
    author, receiver = tmp_path / "author", tmp_path / "receiver"
    author.mkdir()
    receiver.mkdir()
    reproductions.hand_over(author, receiver, {"name": "networks/resnet20.py:ResNet20", "arguments": {"width": 4}})
    assert "identical to what theirs records" in run(cpu, receiver, "python", "-m", "pipeline", "evaluate", "--run", "theirs").stdout
    assert "\nidentical: all 4 logged losses, " in run(cpu, receiver, "python", "-m", "pipeline", "reproduce", "theirs").stdout


def test_the_cuda_image_runs_the_stages_on_the_cpu_under_git_and_gives_the_same_fingerprint(cuda, make_checkout, on_the_host):
    folder = make_checkout()
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    run(cuda, folder, options=("--cpus", "1"))
    assert fingerprint(folder) == fingerprint(on_the_host)
    assert (folder / "dvc.lock").read_bytes() == (on_the_host / "dvc.lock").read_bytes()


def test_make_run_cpu_runs_the_checkouts_own_code_as_the_caller(cpu, make_checkout):
    folder = make_checkout()
    (folder / "dvc.yaml").write_text("stages:\n  own:\n    cmd: python -m pipeline\n    outs: [own]\n")
    (folder / "pipeline" / "__main__.py").write_text("open('own', 'w').write('the checkout')\n")
    command = ["make", "run-cpu", "IMAGE=pipeline-test", f"DOCKER={DOCKER}"]
    subprocess.run(
        command, cwd=folder, check=True, stdin=subprocess.DEVNULL, env=os.environ | {"PIPELINE_DOCKER_RUN_ARGS": "--network=none"}
    )
    own = folder / "own"
    assert (own.read_text(), f"{own.stat().st_uid}:{own.stat().st_gid}") == ("the checkout", CALLER)


def test_without_a_mount_the_image_shows_the_demo_from_the_copy_it_holds(cpu):
    shown = docker("run", "--rm", *LIMITS, "--cpus", "1", cpu)
    assert f"every fingerprint is the one in the README: {demo.FINGERPRINT}\n" in shown.stdout


# --- what is refused, in one line ---------------------------------------------------------------------------------


def refused(done: subprocess.CompletedProcess) -> str:
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("error: ").rstrip("\n")


@pytest.mark.fault(31)
def test_a_workspace_of_another_user_is_refused_with_the_right_user_option(cpu, make_checkout):
    folder = make_checkout("4242:4343")
    assert refused(run(cpu, folder, user=STRANGER, check=False)) == (
        "/workspace belongs to 4242:4343 and this container runs as 12345:54321, which may not write there: docker run --user 4242:4343 ..."
    )


@pytest.mark.fault(31)
def test_a_read_only_workspace_is_refused(cpu, make_checkout):
    done = docker("run", "--rm", *LIMITS, "--user", CALLER, "--volume", f"{make_checkout()}:/workspace:ro", cpu, check=False)
    assert refused(done).startswith("/workspace is mounted read-only")


def test_a_mounted_folder_that_is_no_checkout_is_refused(cpu, tmp_path):
    assert refused(run(cpu, tmp_path, check=False)).startswith("/workspace: no dvc.yaml and params.yaml here; mount a checkout")


@pytest.mark.fault(25)
def test_device_cuda_without_a_gpu_is_refused_before_anything_is_downloaded(cuda, make_checkout):
    folder = make_checkout(settings={"device: cpu": "device: cuda"})
    assert refused(run(cuda, folder, check=False)).startswith("device 'cuda': no NVIDIA GPU is visible; in a container add --gpus all")
    assert not (folder / "data").exists()


@pytest.mark.fault(26)
def test_device_cuda_in_the_cpu_image_is_refused(cpu, make_checkout):
    folder = make_checkout(settings={"device: cpu": "device: cuda"})
    built_for = run(cpu, folder, "python", "-c", "import torch; print(torch.version.cuda)").stdout.strip()
    reason = refused(run(cpu, folder, check=False))
    if built_for == "None":
        assert reason.startswith("device 'cuda': this PyTorch is a CPU-only build")
    else:  # built with an empty TORCH_INDEX_URL
        assert reason.startswith("device 'cuda': no NVIDIA GPU is visible")


@pytest.mark.fault(32)
def test_a_worktree_whose_repository_is_not_mounted_works_as_without_git(cpu, make_checkout):
    folder = make_checkout()
    (folder / ".git").write_text("gitdir: /elsewhere/.git/worktrees/this\n")
    assert "Running stage 'download'" in run(cpu, folder, "dvc", "repro", "--dry", "download").stdout


@pytest.mark.fault(32)
def test_a_checkout_without_dvc_is_refused(cpu, make_checkout):
    folder = make_checkout()
    shutil.rmtree(folder / ".dvc")
    assert "you are not inside of a DVC repository" in refused(run(cpu, folder, check=False))


# --- signals and locks --------------------------------------------------------------------------------------------


class Container:
    """A started container on a checkout, by default one that trains."""

    def __init__(self, image: str, folder: Path) -> None:
        self.name = f"pipeline-test-{uuid.uuid4().hex[:12]}"
        docker("run", "--detach", "--name", self.name, *LIMITS, "--user", CALLER, "--volume", f"{folder}:/workspace", image)

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *_) -> None:
        docker("rm", "--force", self.name)

    def logs(self) -> str:
        done = docker("logs", self.name)
        return done.stdout + done.stderr

    def says(self, pattern: str) -> None:
        """Wait until its log has this."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not re.search(pattern, self.logs()):
            assert time.monotonic() < deadline, f"never said {pattern!r}:\n{self.logs()}"
            assert self.running(), f"ended without {pattern!r}:\n{self.logs()}"
            time.sleep(0.2)

    def running(self) -> bool:
        return docker("inspect", "--format", "{{.State.Running}}", self.name).stdout.strip() == "true"

    def ended(self) -> int:
        return int(docker("wait", self.name).stdout)


TRAINING = r"train: \d+/\d+ steps|resumes at step"


@pytest.fixture(scope="module")
def killed(cpu, make_checkout) -> tuple[Path, str]:
    """A checkout on which a container was killed in training, and what it left in DVC's rwlock."""
    folder = make_checkout(settings={"epochs: 2": "epochs: 10000"})
    with Container(cpu, folder) as container:
        container.says(TRAINING)
        docker("kill", container.name)
    return folder, (folder / ".dvc" / "tmp" / "rwlock").read_text()


@pytest.mark.fault(23)
@pytest.mark.fault(15)
def test_after_a_kill_the_next_container_trains_and_stopped_leaves_a_checkpoint_and_no_lock(cpu, killed):
    folder, left = killed
    assert "/workspace/outputs/model.safetensors" in json.loads(left)["write"]
    with Container(cpu, folder) as container:
        container.says(TRAINING)
        docker("stop", container.name)
        assert re.search(r"stopped: at step \d+ of \d+; the state is saved", container.logs())
        assert container.ended() not in (0, 137)
    assert json.loads((folder / ".dvc" / "tmp" / "rwlock").read_text()) == {}
    assert list((folder / ".cache" / "training").glob("*.safetensors"))


@pytest.mark.fault(15)
@pytest.mark.parametrize("signal", ["TERM", "INT"])
def test_a_container_resumes_where_a_signal_stopped_the_one_before(cpu, killed, signal):
    folder, _ = killed
    steps = []
    for _ in range(2):
        with Container(cpu, folder) as container:
            container.says(TRAINING)
            docker("kill", "--signal", signal, container.name)
            assert container.ended() not in (0, 137)
            steps.append([int(step) for step in re.findall(r"at step (\d+)", container.logs())])
    assert steps[1][0] == steps[0][-1]


@pytest.mark.fault(15)
def test_docker_stop_ends_all_workers_with_a_state_and_no_lock_and_another_number_resumes(cpu, make_checkout):
    folder = make_checkout(settings={"epochs: 2": "epochs: 10000", "workers: 1": "workers: 2"})
    steps = []
    for workers in (2, 1):
        (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("workers: 2", f"workers: {workers}"))
        with Container(cpu, folder) as container:
            container.says(TRAINING)
            docker("stop", container.name)
            assert container.ended() not in (0, 137), "137: something went on, and was killed after ten seconds"
            steps.append([int(step) for step in re.findall(r"at step (\d+)", container.logs())])
        assert json.loads((folder / ".dvc" / "tmp" / "rwlock").read_text()) == {}
        assert list((folder / ".cache" / "training").glob("*.safetensors"))
    assert steps[1][0] == steps[0][-1]


@pytest.mark.fault(24)
def test_a_second_container_on_the_checkout_is_told_busy_and_harms_neither(cpu, killed):
    folder, _ = killed
    with Container(cpu, folder) as container:
        container.says(TRAINING)
        second = run(cpu, folder, check=False)
        assert second.returncode != 0
        # by DVC, or, where DVC took the first one's PID for dead, by the stage's own lock
        assert re.search(r"is busy, it is being blocked by:\n  \(PID |a stage is already running in this folder", second.stderr)
        assert container.running()
        docker("stop", container.name)
        assert re.search(r"stopped: at step \d+ of \d+; the state is saved", container.logs())


# --- what is in an image ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["cpu", "cuda"])
def test_an_image_holds_no_compiler_data_git_or_dvc_cache(image, request):
    look = ("-c", "ls -A /opt/pipeline; which cc gcc g++ nvcc; true")
    inside = docker("run", "--rm", *LIMITS, "--entrypoint", "sh", request.getfixturevalue(image), *look).stdout
    assert sorted(inside.split()) == [
        ".dvc",
        ".dvcignore",
        ".revision",
        "LICENSE",
        "docker",
        "dvc.yaml",
        "networks",
        "params.yaml",
        "photos",
        "pipeline",
        "requirements",
    ]


def test_an_image_runs_as_an_ordinary_user_under_tini(cpu):
    shown = docker("run", "--rm", *LIMITS, cpu, "sh", "-c", "cat /proc/1/comm; id -u; id -g").stdout
    assert shown.split() == ["tini", "1000", "1000"]


@pytest.mark.parametrize("image", ["cpu", "cuda"])
def test_doctor_in_an_image_finds_nothing_wrong_on_a_checkout_and_without_one(image, request, make_checkout):
    image, doctor = request.getfixturevalue(image), ("python", "-m", "pipeline", "doctor", "--json")
    for said in (run(image, make_checkout(), *doctor).stdout, docker("run", "--rm", *LIMITS, image, *doctor).stdout):
        report = json.loads(said)
        assert [about for about, finding in report["findings"].items() if not finding["ok"]] == []
        assert report["usable"] is True


def test_an_image_is_labelled(cpu):
    labels = json.loads(docker("inspect", "--format", "{{json .Config.Labels}}", cpu).stdout)
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == pipeline.__version__
    assert re.fullmatch(r"unknown|[0-9a-f]{7,40}(-dirty)?|.*-g[0-9a-f]{7,40}(-dirty)?", labels["org.opencontainers.image.revision"])
