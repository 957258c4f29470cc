"""The images, checkouts and containers of the tests that need a container engine, each made once a process.

DOCKER names the engine's client; PIPELINE_DOCKER_BUILD_ARGS adds to `docker build`. No container here has a network; all start read-only,
without capabilities, as an ordinary user.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCKER = os.environ.get("DOCKER", "docker")
LIMITS = "--network none --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --shm-size 64m".split()  # noqa: SIM905
LIMITS += ["--env", "OMP_WAIT_POLICY=PASSIVE"]  # as tests/conftest.py says
CALLER = f"{os.getuid()}:{os.getgid()}"
STRANGER = "12345:54321"  # not in /etc/passwd
SETTINGS = {"source: cifar10": "source: synthetic", "epochs: 2": "epochs: 1"}
PATIENCE_SECONDS = 300.0


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def run(image: str, folder: Path, *command: str, user: str = CALLER, options: tuple[str, ...] = (), check: bool = True):
    mount = ("--volume", f"{folder}:/workspace")
    return docker("run", "--rm", *LIMITS, "--user", user, *mount, *options, image, *command, check=check)


@pytest.fixture(scope="session")
def engine() -> None:
    if shutil.which(DOCKER) is None or docker("version", check=False).returncode:
        pytest.skip(f"no container engine answers '{DOCKER} version' (the variable DOCKER names the client)")


def build(name: str) -> str:
    """Build an image, one process at a time; the next finds what the one before built."""
    (ROOT / ".cache").mkdir(exist_ok=True)
    with open(ROOT / ".cache" / "test-images.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", f"image-{name}", "IMAGE=pipeline-test", f"DOCKER={DOCKER}"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
        docker("image", "prune", "--force", "--filter", "label=org.opencontainers.image.title=pipeline")
    return f"pipeline-test:{name}"


@pytest.fixture(scope="session")
def cpu_image(engine) -> str:
    return build("cpu")


@pytest.fixture(scope="session")
def cuda_image(cpu_image) -> str:
    return build("cuda")


@pytest.fixture(scope="session")
def make_checkout(cpu_image, tmp_path_factory):
    """A function that makes a fresh checkout, without .git, which belongs to `owner`; in the end all belong to us again."""
    checkouts: list[Path] = []

    def give(folder: Path, owner: str) -> None:
        chown = ("--entrypoint", "chown", "--volume", f"{folder}:/w", cpu_image, "-R", owner, "/w")
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


class Container:
    """A started container on a checkout, by default one that trains; without a folder one that shows the demo."""

    def __init__(self, image: str, folder: Path | None = None) -> None:
        self.name = f"pipeline-test-{uuid.uuid4().hex[:12]}"
        mounted = ["--user", CALLER, "--volume", f"{folder}:/workspace"] if folder else []
        docker("run", "--detach", "--name", self.name, *LIMITS, *mounted, image)

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
