"""The README's table of results says what the kept runs in results/ say."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import params, run
from pipeline.comparison import results, verdict
from pipeline.errors import UserError
from pipeline.model import SimpleCNN
from tests.kept_runs import keep, losses, weights

REPOSITORY = Path(__file__).parent.parent
SETTINGS = params.load(REPOSITORY / params.PARAMS).compare


def test_the_readmes_table_is_what_the_kept_runs_say() -> None:
    _, found, _ = results.in_readme((REPOSITORY / "README.md").read_text())
    assert found == results.block(REPOSITORY / results.RESULTS, SETTINGS)


def test_every_folder_in_results_is_a_kept_run() -> None:
    folders = {path for path in (REPOSITORY / results.RESULTS).iterdir() if path.is_dir()}
    assert folders == set(verdict.kept_runs(REPOSITORY / results.RESULTS))


def test_the_command_that_results_documents_compares_every_run_in_it() -> None:
    (words,) = re.findall(r"`python -m (pipeline compare [^`]+)`", (REPOSITORY / results.RESULTS / "README.md").read_text())
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m {words} --json"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode in (0, 1), done.stderr) == (True, "")
    compared = [REPOSITORY / made["folder"] for made in json.loads(done.stdout)["runs"]]
    assert compared == verdict.kept_runs(REPOSITORY / results.RESULTS)


def test_no_pixels_are_in_results() -> None:
    shapes = {name: list(tensor.shape) for name, tensor in SimpleCNN().state_dict().items()}
    for folder in verdict.kept_runs(REPOSITORY / results.RESULTS):
        assert {path.name for path in folder.iterdir()} == {*run.PARTS, run.IDENTITY, run.ENVIRONMENT}
        content = (folder / run.MODEL).read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        assert {name: entry["shape"] for name, entry in json.loads(content[8:end]).items()} == shapes
        assert len(content) == end + sum(4 * math.prod(shape) for shape in shapes.values())
        assert sum(path.stat().st_size for path in folder.iterdir()) < 600_000, "one image takes 3,072 bytes, the test set 30 million"


def test_without_a_run_the_block_says_that_nothing_was_measured(tmp_path: Path) -> None:
    assert results.block(tmp_path, SETTINGS) == "Nothing was measured yet."


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    Path("README.md").write_text(f"# A\n\n{results.BEGIN}\nold\n{results.END}\n\nthe end\n")
    return Path("README.md")


def test_the_command_puts_a_row_a_run_between_the_markers_and_leaves_the_rest(readme: Path) -> None:
    keep(runs=results.RESULTS, device="cuda", hardware="A graphics card", seconds_per_epoch=0.5)
    keep(runs=results.RESULTS, numerics="native", made=weights(1e-6), history=losses(off=1e-6))
    keep(runs=results.RESULTS)
    keep(runs=results.RESULTS, seed=1)
    results.rewrite(SETTINGS)
    exact, native = results.run.fingerprint(weights())[:12], results.run.fingerprint(weights(1e-6))[:12]
    assert (
        readme.read_text()
        == f"""# A

{results.BEGIN}
synthetic, 1,000 test images, seed 0, epochs 2, batch\\_size 64, lr 0.01, momentum 0.9:

| device | threads, instructions | numerics | accuracy | loss | fingerprint | seconds an epoch | against the first |
| --- | --- | --- | --- | --- | --- | --- | --- |
| cpu: A processor | 2, AVX2 | exact-1 | 61.30% | 1.250000 | `{exact}` | 12.5 |  |
| cuda: A graphics card | 2, AVX2 | exact-1 | 61.30% | 1.250000 | `{exact}` | 0.5 | identical |
| cpu: A processor | 2, AVX2 | native | 61.30% | 1.250000 | `{native}` | 12.5 | equivalent |

synthetic, 1,000 test images, seed 1, epochs 2, batch\\_size 64, lr 0.01, momentum 0.9:

| device | threads, instructions | numerics | accuracy | loss | fingerprint | seconds an epoch | against the first |
| --- | --- | --- | --- | --- | --- | --- | --- |
| cpu: A processor | 2, AVX2 | exact-1 | 61.30% | 1.250000 | `{exact}` | 12.5 |  |
{results.END}

the end
"""
    )
    again = readme.read_text()
    results.rewrite(SETTINGS)
    assert readme.read_text() == again


def test_a_readme_without_the_markers_is_left_alone(readme: Path) -> None:
    readme.write_text("# A\n")
    with pytest.raises(UserError, match="markers"):
        results.rewrite(SETTINGS)
    assert readme.read_text() == "# A\n"


@pytest.mark.fault(29)
def test_a_damaged_run_gives_no_table(readme: Path) -> None:
    (keep(runs=results.RESULTS) / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"metrics\.json: not found"):
        results.rewrite(SETTINGS)
    assert "old" in readme.read_text()
