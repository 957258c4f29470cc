"""The command for a machine with a GPU and nothing else, rehearsed on the CPU from a kit, in an environment of PyTorch and Typer alone."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline import demo, machine, revision
from pipeline.data import synthetic
from pipeline.runs import kept
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
    assert (kit / "pipeline/device.py").read_bytes() == (ROOT / "pipeline/device.py").read_bytes()
    assert not {".git", ".venv", ".cache", "results"} & {path.name for path in kit.iterdir()}
    packages = {name.split("/")[0] for name in zipfile.ZipFile(kit / gpu_kit.SITE).namelist()}
    assert {"numpy", "msgspec", "safetensors", "pytest", "requests"} <= packages
    assert "torch" not in packages
    assert sum(path.stat().st_size for path in kit.rglob("*")) < 60e6


@pytest.mark.index
def test_the_rehearsal_in_a_bare_environment_leaves_runs_the_record_and_what_each_step_said(kit, bare_python, tmp_path):
    folders.write(tmp_path / "small", synthetic.make(60, 20))
    bare = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "2"}
    absent = "import importlib.util as u; print([n for n in ('dvc', 'msgspec', 'numpy', 'pytest', 'requests') if u.find_spec(n)])"
    assert subprocess.run([bare_python, "-c", absent], env=bare, capture_output=True, text=True).stdout == "[]\n"
    words = ["--device", "cpu", "--quick", "--folder", tmp_path / "small"]
    done = subprocess.run([bare_python, "-m", "tools.gpu", *words], cwd=kit, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    out = kit / "gpu-results"
    said = [re.sub(r" \(\d+ s\)", "", line) for line in (out / "steps.txt").read_text().splitlines()]
    assert said == [
        "tests: ok", "demo: ok", "whole: ok", "bench: left out: torchvision is not installed, and the tutorial's script needs it",
    ]  # fmt: skip
    assert re.search(r"\d+ skipped, \d+ deselected", (out / "tests.txt").read_text())

    (path,) = (out / "machines").iterdir()
    record = machine.read(path)
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


def test_a_step_that_fails_or_is_left_out_hides_no_other_and_is_told_by_the_exit_code(tmp_path, monkeypatch, capsys):
    def fail(_):
        raise ValueError("no such thing")

    def leave_out(_):
        raise gpu.NotHere("nothing to do")

    steps = {"one": fail, "two": leave_out, "three": lambda asked: None}
    monkeypatch.setattr(gpu, "STEPS", steps)
    monkeypatch.setattr(gpu, "use_packages", lambda work: None)
    words = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    with pytest.raises(SystemExit) as ended:
        gpu.main(words)
    assert ended.value.code == 1
    assert (tmp_path / "out/steps.txt").read_text().splitlines() == [
        "one: FAILED: ValueError: no such thing (0 s)", "two: left out: nothing to do (0 s)", "three: ok (0 s)",
    ]  # fmt: skip
    assert capsys.readouterr().out.endswith("hold what was seen; NOT well: one\n")
    monkeypatch.setattr(gpu, "STEPS", {"three": steps["three"]})
    with pytest.raises(SystemExit) as ended:
        gpu.main(words)
    assert ended.value.code == 0


def test_a_command_that_fails_is_a_failure_and_its_output_is_kept(tmp_path):
    with pytest.raises(RuntimeError, match="ended with 3"):
        gpu.run([sys.executable, "-c", "print('said'); exit(3)"], tmp_path, tmp_path / "log.txt")
    assert (tmp_path / "log.txt").read_text() == "said\n"
