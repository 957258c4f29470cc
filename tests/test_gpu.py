"""The command for a machine with a GPU and nothing else, rehearsed on the CPU from a kit, in an environment of PyTorch and Typer alone."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline.data import synthetic
from pipeline.machine import demo, records
from pipeline.runs import kept
from pipeline.system import revision
from tests import folders
from tests.conftest import ROOT
from tools import gpu, gpu_kit

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def needed_by(*names: str) -> list[importlib.metadata.Distribution]:
    """The installed distributions that these need, they themselves too."""
    left, seen = list(names), {}
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name not in seen:
            seen[name] = importlib.metadata.distribution(name)
            requirements = map(Requirement, seen[name].requires or [])
            left += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return list(seen.values())


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """A Python that has PyTorch, Typer and what they need, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for distribution in needed_by("torch", "typer"):
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "bin", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(str(distribution.locate_file(name)))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kit") / "kit"
    done = subprocess.run(
        [sys.executable, "-m", "tools.gpu_kit", "--python", PYTHON, "--out", folder], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode == 2 and "needs a package index" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.index
def test_the_kit_holds_the_projects_files_their_commit_and_the_packages(kit):
    commit = revision.describe(ROOT / "pipeline")
    assert (kit / revision.CARRIED).read_text() == f"{commit}\n"
    assert (kit / "pipeline/device/__init__.py").read_bytes() == (ROOT / "pipeline/device/__init__.py").read_bytes()
    assert not {".git", ".venv", ".cache", "results"} & {path.name for path in kit.iterdir()}
    packages = {name.split("/")[0] for name in zipfile.ZipFile(kit / gpu_kit.SITE).namelist()}
    assert {"numpy", "msgspec", "safetensors", "pytest", "requests"} <= packages
    assert "torch" not in packages
    assert sum(path.stat().st_size for path in kit.rglob("*")) < 60e6


@pytest.mark.long
@pytest.mark.index
def test_the_rehearsal_in_a_bare_environment_leaves_runs_the_record_and_what_each_step_said(kit, bare_python, tmp_path):
    folders.write(tmp_path / "small", synthetic.make(60, 20))
    bare = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    absent = "import importlib.util as u; print([n for n in ('dvc', 'msgspec', 'numpy', 'pytest', 'requests') if u.find_spec(n)])"
    assert subprocess.run([bare_python, "-c", absent], env=bare, capture_output=True, text=True).stdout == "[]\n"
    steps = ["machine", "crossing", "timed", "tests", "whole", "bench"]  # all but the demo, of which the crossing is a part
    words = [*steps, "--device", "cpu", "--quick", "--folder", tmp_path / "small"]
    done = subprocess.run([bare_python, "-m", "tools.gpu", *words], cwd=kit, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    out = kit / "gpu-results"
    said = [re.sub(r" \(\d+ s\)", "", line) for line in (out / "steps.txt").read_text().splitlines()]
    assert said == [
        "machine: ok", "crossing: ok", "timed: ok", "tests: ok", "whole: ok",
        "bench: left out: torchvision is not installed, and the tutorial's script needs it",
    ]  # fmt: skip
    assert re.search(r"\d+ skipped, \d+ deselected", (out / "tests.txt").read_text())
    rows = re.findall(r"^([\w ]+): [\d.]+ ms a step of 20, at most \d+ MB, weights ([0-9a-f]{64})$", (out / "timed.txt").read_text(), re.M)
    weights = dict(rows)
    assert list(weights) == ["graph", "eager", "native", "native again"]
    assert weights["graph"] == weights["eager"] != weights["native"] == weights["native again"]

    (path,) = (out / "machines").iterdir()
    record = records.read(path)
    assert [(o.device, o.resumed_from, o.evaluation_batch) for o in record.outcomes] == [
        ("cpu", None, 1000), ("cpu", "cpu", None), ("cpu", None, 7),
    ]  # fmt: skip
    assert {o.fingerprint for o in record.outcomes} == {demo.FINGERPRINT}

    commit = revision.describe(ROOT / "pipeline")
    runs = [kept.load(folder).identity for folder in kept.listed(out)]
    assert {(run.data.name, run.numerics.split("-")[0], run.device, run.revision) for run in runs} == {
        ("small", "exact", "cpu", commit), ("small", "native", "cpu", commit),
    }  # fmt: skip
    assert record.revision == commit
    with tarfile.open(f"{out}.tar.gz") as packed:
        assert {"./machines", "./steps.txt"} <= set(packed.getnames())


def outcomes(out: Path) -> list[str]:
    """The lines of steps.txt, without the seconds."""
    return [re.sub(r" \(\d+ s\)$", "", line) for line in (out / "steps.txt").read_text().splitlines()]


STEPS = """
import os, subprocess, sys, time
from tools import gpu

def hang(asked):
    (asked.out / "begun").write_text("yes")
    subprocess.Popen([sys.executable, "-c", "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)",
                      str(asked.out / "child")])
    time.sleep(600)

def fail(asked):
    raise ValueError("no such thing")

def leave_out(asked):
    raise gpu.NotHere("nothing to do")

def die(asked):
    os.kill(os.getpid(), 9)

def well(asked):
    (asked.out / "seen").write_text("seen")

gpu.STEPS = {name: gpu.Step(do, 60) for name, do in
             {"well": well, "fails": fail, "absent": leave_out, "dies": die, "hangs": hang, "last": well}.items()}
gpu.main()
"""


@pytest.fixture
def simulated(tmp_path, monkeypatch):
    """A command with other steps than the real ones, which run as the real ones do: each in a process of its own."""
    package = tmp_path / "tools"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(gpu.__file__, package / "simulated.py")
    (package / "gpu.py").write_text(STEPS.replace("from tools import gpu", "from tools import simulated as gpu"))
    return [sys.executable, "-m", "tools.gpu", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_step_that_fails_dies_hangs_or_is_left_out_hides_no_other_and_is_told_by_the_exit_code(simulated, tmp_path):
    done = subprocess.run([*simulated, "--limit", "4"], cwd=tmp_path, capture_output=True, text=True)
    assert outcomes(tmp_path / "out") == [
        "well: ok", "fails: FAILED: ValueError: no such thing", "absent: left out: nothing to do", "dies: FAILED: exit code -9",
        "hangs: FAILED: it was ended after 4 s, its limit", "last: ok",
    ]  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith("hold what was seen; NOT well: fails, dies, hangs\n")
    assert not is_running(int((tmp_path / "out/child").read_text()))


def test_the_steps_can_be_chosen(simulated, tmp_path):
    assert subprocess.run([*simulated, "last", "well"], cwd=tmp_path).returncode == 0
    assert outcomes(tmp_path / "out") == ["last: ok", "well: ok"]
    done = subprocess.run([*simulated, "nothing"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2, "gpu.py: error: no step 'nothing'; there are well, fails, absent, dies, hangs, last".replace("gpu.py", "python3 -m tools.gpu"),
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_what_was_seen_before_the_command_is_ended_is_packed(number, simulated, tmp_path):
    out = tmp_path / "out"
    with subprocess.Popen(
        [*simulated, "well", "absent", "hangs"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        until(lambda: (out / "child").exists() and (out / "child").read_text())
        running.send_signal(number)
    assert outcomes(out) == ["well: ok", "absent: left out: nothing to do"]
    with tarfile.open(f"{out}.tar.gz") as packed:
        assert {"./seen", "./steps.txt", "./well.txt"} <= set(packed.getnames())
        assert packed.extractfile("./steps.txt").read().decode() == (out / "steps.txt").read_text()
    child = int((out / "child").read_text())
    if number == signal.SIGKILL:  # nobody is left to end the step
        os.killpg(os.getpgid(child), signal.SIGKILL)
    assert until(lambda: not is_running(child))


def until(condition) -> bool:
    """Wait for a minute at most until it is so."""
    limit = time.monotonic() + 60
    while not condition() and time.monotonic() < limit:
        time.sleep(0.05)
    return bool(condition())


def test_a_command_that_fails_is_a_failure(tmp_path):
    with pytest.raises(RuntimeError, match="ended with 3"):
        gpu.run([sys.executable, "-c", "exit(3)"], tmp_path)
