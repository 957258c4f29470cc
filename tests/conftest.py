"""What the tests share: fixtures, whose helpers are in the modules beside this one, and where a GPU is."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.containers import cpu_image, cuda_image, engine, make_checkout  # noqa: F401  # fixtures of several files

ROOT = Path(__file__).parent.parent

# Before PyTorch is imported. Most tests compute little, and two threads that wait for each other on a busy machine are many
# times slower than one; the tests that are about threads set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait for each other in a loop keep a busy machine from the ones that they wait for: five times slower, with as many tests
# at once as it has CPUs. Alone they are slower this way, so the pipeline itself leaves it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Under nohup, or in the background of a script, a process and its children ignore these signals, which some tests send.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _signals_end_as_they_began() -> Iterator[None]:
    """The command line ignores signals on its way out; called in this process, it would make the next tests' children ignore them too."""
    with handlers_kept():
        yield


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """What the signals did before, they do afterwards: a training that one of them stopped goes on noting them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def command(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m pipeline ...` in `folder` with the project's code."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )  # fmt: skip


def own_files() -> dict[Path, int]:
    """What the stages write in the project's own folder -> when it was last changed."""
    paths = [path for name in ("data", "outputs", "runs", "dvc.lock") for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[Path, int]]:
    """The folder of a finished `python -m pipeline demo`, what it printed, and what it changed of the project's own."""
    folder, before = tmp_path_factory.mktemp("demo") / "demo", own_files()
    done = command("demo", "--folder", str(folder), folder=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout, dict(own_files().items() ^ before.items())


def git(*words: str, folder: Path) -> str:
    """Run Git in `folder`; what it printed."""
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of this project's files as they are here, committed or not yet."""
    folder = tmp_path_factory.mktemp("origin")
    try:
        names = git("ls-files", "--cached", "--others", "--exclude-standard", "-z", folder=ROOT).split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no Git, or not its repository")
    for path in (ROOT / name for name in names if name):
        if path.is_file() and not path.is_symlink():
            (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.relative_to(ROOT))
    git("init", "--quiet", folder=folder)
    git("add", "--all", "--force", folder=folder)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "all", folder=folder)
    return folder


@pytest.fixture
def folder_with_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is the test's own, with the project's params.yaml."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # durability is another test's subject, and slow


@pytest.fixture
def compare(folder_with_params: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command `compare`: its exit code, what it prints and its errors."""
    from pipeline import cli

    def run_command(*arguments: object) -> tuple[int, str, str]:
        return cli.answer(["compare", *map(str, arguments)]), *capsys.readouterr()

    return run_command


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with its own Git and DVC, a small set, and one finished run, committed; who changes it changes a copy."""
    from tests import dvc_clone

    folder = tmp_path_factory.mktemp("clone")
    dvc_clone.make(folder)
    return folder


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Numerics -> a kept run for the tests of `reproduce`, which change only copies of it."""
    from tests import reproductions

    return {name: reproductions.make(tmp_path_factory.mktemp("made") / name, name) for name in ("exact", "native")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing in it but those runs' data set: no params.yaml, no Git, no DVC."""
    from tests import reproductions

    monkeypatch.chdir(tmp_path)
    reproductions.small_set().save()
    return tmp_path


@pytest.fixture
def nothing_outlives_its_test() -> Iterator[None]:
    """What `processes.start` started ends with the test."""
    from tests import processes

    yield
    processes.end_all()


@pytest.fixture
def cuda():
    """The first CUDA device; skips where there is none."""
    from pipeline import device
    from pipeline.system.errors import UserError

    try:
        return device.select("cuda")
    except UserError as reason:
        pytest.skip(str(reason))


SLOW = ("arm64", "docker", "index", "full_size", "browser")
"""Markers of tests that take minutes."""
LONG = {f"test_{name}.py" for name in (
    "workers_processes", "stages", "sweep_environment", "inputs", "kept_runs", "networks", "numerics_matrix", "signals", "torture",
    "tutorial", "files", "import",
)}  # fmt: skip
"""Files that take a minute or more."""


@pytest.hookimpl(optionalhook=True)  # the kit for a GPU has no xdist
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are CPUs, for many tests wait: for a process that ends, a lock, an image that is built."""
    from pipeline import device

    return device.cpu_limit() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that take minutes come first, then those that take long: at the end one CPU would wait for the other's."""
    slow = {item.path for item in items if any(item.get_closest_marker(name) for name in SLOW)}
    items.sort(key=lambda item: (item.path not in slow, item.path.name not in LONG))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item):
    """Skip a test that needs a GPU, or was not asked for, before a fixture trains for it in vain."""
    if item.get_closest_marker("long") and os.environ.get("PIPELINE_TEST_LONG") != "1":
        pytest.skip("takes long: PIPELINE_TEST_LONG=1 runs it")
    if item.get_closest_marker("cuda"):
        from pipeline import device

        if not device.accelerators():
            pytest.skip("no NVIDIA GPU can be used here")


REQUIRED = set(filter(None, os.environ.get("PIPELINE_REQUIRED_TESTS", "").split(",")))
"""Markers whose tests may not be skipped, because what they need can be had on this machine."""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Fail a test that is skipped although it is required."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and REQUIRED & {mark.name for mark in item.iter_markers()}:
        report.outcome = "failed"
        report.longrepr = f"skipped, but PIPELINE_REQUIRED_TESTS requires it: {report.longrepr}"


settings.register_profile("pipeline", deadline=None)  # a busy machine is no failure
settings.load_profile("pipeline")
