"""The blocks that commands write: the table of results says what the kept runs in results/ say, and both are written between markers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import device, params
from pipeline.machine import records
from pipeline.models import of_runs
from pipeline.params import Model, Optimizer, Schedule
from pipeline.runs import kept
from pipeline.runs.kept import ENVIRONMENT, IDENTITY
from pipeline.runs.outputs import MODEL, NETWORK, PARTS
from pipeline.system import revision, tensors
from pipeline.system.errors import UserError
from tests.conftest import ROOT
from tests.kept_runs import keep, losses, weights
from tools import bench, commit, markers, results, scaling, seeds

RESULTS_BEGIN = "<!-- results: made by `make results` -->"
SETTINGS = params.load(ROOT / params.PARAMS).compare


@pytest.fixture
def measured() -> list[Path]:
    """The kept runs in results/."""
    return kept.listed(ROOT / results.RESULTS) or pytest.skip("there is no run in results/ yet: results/README.md says how they get there")


def test_the_readmes_table_is_what_the_kept_runs_say(measured: list[Path]) -> None:
    assert markers.read(ROOT / results.PAGE, results.NAME) == results.block(ROOT / results.RESULTS, SETTINGS)


def test_every_folder_in_results_is_a_kept_run_beside_the_records_of_machines_and_the_curves() -> None:
    folders = {path for path in (ROOT / results.RESULTS).iterdir() if path.is_dir()} - {ROOT / records.RECORDS, ROOT / seeds.QUALITY}
    assert folders == set(kept.listed(ROOT / results.RESULTS))


def test_the_command_that_results_documents_compares_every_run_in_it(measured: list[Path]) -> None:
    (words,) = re.findall(r"`python -m (pipeline compare [^`]+)`", (ROOT / results.RESULTS / "README.md").read_text())
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m {words} --json"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode in (0, 3), done.stderr) == (True, "")
    assert [ROOT / run["folder"] for run in json.loads(done.stdout)["runs"]] == measured


def test_no_pixels_are_in_results(measured: list[Path]) -> None:
    for folder in measured:
        assert {path.name for path in folder.iterdir()} - {NETWORK} == {*PARTS, IDENTITY, ENVIRONMENT}
        content, run = tensors.read(folder / MODEL), kept.load(folder)
        described = run.identity.data
        of_runs.build(None, run.identity.network, len(described.classes), described.shape, content.tensors)  # these, and no others
        numbers = sum(weights.nbytes for weights in content.tensors.values())
        assert (folder / MODEL).stat().st_size < numbers + 150 * len(content.tensors) + 3_072, "one image takes 3,072 bytes"
        assert sum(path.stat().st_size for path in folder.iterdir()) < numbers + 600_000, "the test set takes 30 million bytes"


def test_without_a_run_the_block_says_that_nothing_was_measured(tmp_path: Path) -> None:
    assert results.block(tmp_path, SETTINGS) == "Nothing was measured yet."


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page of the test's own, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    results.PAGE.parent.mkdir()
    results.PAGE.write_text(f"# A\n\n{RESULTS_BEGIN}\nold\n<!-- /results -->\n\nthe end\n")
    Path("params.yaml").write_bytes((ROOT / params.PARAMS).read_bytes())
    return results.PAGE


def test_the_command_puts_a_row_a_run_between_the_markers_and_leaves_the_rest(readme: Path) -> None:
    keep(runs=results.RESULTS, device="cuda", hardware="A graphics card", seconds_per_epoch=0.5)
    keep(runs=results.RESULTS, numerics="native", tensors=weights(1e-6), history=losses(off=1e-6))
    keep(runs=results.RESULTS)
    keep(runs=results.RESULTS, seed=1)
    results.main()
    exact, native = tensors.fingerprint(weights())[:12], tensors.fingerprint(weights(1e-6))[:12]
    assert (
        readme.read_text()
        == f"""# A

{RESULTS_BEGIN}
simple\\_cnn, synthetic, 1,000 test images, seed 0, epochs 2, batch\\_size 64, lr 0.01, momentum 0.9:

| device | threads, instructions | numerics | accuracy | loss | fingerprint | seconds an epoch | against the first |
| --- | --- | --- | --- | --- | --- | --- | --- |
| cpu: A processor | 2, AVX2 | exact-1 | 61.30% | 1.250000 | `{exact}` | 12.5 |  |
| cuda: A graphics card | 2, AVX2 | exact-1 | 61.30% | 1.250000 | `{exact}` | 0.5 | identical |
| cpu: A processor | 2, AVX2 | native | 61.30% | 1.250000 | `{native}` | 12.5 | equivalent |

simple\\_cnn, synthetic, 1,000 test images, seed 1, epochs 2, batch\\_size 64, lr 0.01, momentum 0.9:

| device | threads, instructions | numerics | accuracy | loss | fingerprint | seconds an epoch | against the first |
| --- | --- | --- | --- | --- | --- | --- | --- |
| cpu: A processor | 2, AVX2 | exact-1 | 61.30% | 1.250000 | `{exact}` | 12.5 |  |
<!-- /results -->

the end
"""
    )
    again = readme.read_text()
    results.main()
    assert readme.read_text() == again


@pytest.mark.fault(29)
def test_a_damaged_run_gives_no_table(readme: Path) -> None:
    (keep(runs=results.RESULTS) / "metrics.json").unlink()
    with pytest.raises(SystemExit, match=r"metrics\.json: not found"):
        results.main()
    assert "old" in readme.read_text()


def test_workers_are_a_column_only_where_some_run_had_more_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keep(runs=results.RESULTS)
    assert "workers" not in results.block(results.RESULTS, SETTINGS)
    keep(runs=results.RESULTS, trained_by=4)
    head, _, *rows = results.block(results.RESULTS, SETTINGS).splitlines()[2:]
    column = head.split(" | ").index("workers")
    assert sorted(row.split(" | ")[column] for row in rows) == ["1", "4"]


def test_another_network_has_a_table_of_its_own_which_says_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keep(runs=results.RESULTS)
    chosen = {"optimizer": Optimizer(nesterov=True), "schedule": Schedule(name="one_cycle", warmup_epochs=3.0)}
    keep(runs=results.RESULTS, model=Model(name="vgg11", arguments={"dropout": 0.0}, normalize=True), train=chosen)
    shown = {line for line in results.block(results.RESULTS, SETTINGS).splitlines() if line.endswith(":")}
    said = "synthetic, 1,000 test images, seed 0, epochs 2, batch\\_size 64, lr 0.01, momentum 0.9"
    recipe = "optimizer.nesterov True, schedule.name one\\_cycle, schedule.warmup\\_epochs 3.0"
    assert shown == {f"simple\\_cnn, {said}:", f"vgg11(dropout=0.0), normalize True, {said}, {recipe}:"}


BLOCK = f"{RESULTS_BEGIN}\nold\n<!-- /results -->\n"


@pytest.mark.parametrize(
    "text",
    [
        "# A\n",
        BLOCK.replace(RESULTS_BEGIN, ""),
        BLOCK.replace("<!-- /results -->", ""),
        BLOCK.replace("results: made", "bench: made"),
        BLOCK + BLOCK,
        f"<!-- /results -->\nold\n{RESULTS_BEGIN}\n",
    ],
    ids=["none", "no beginning", "no end", "another's", "twice", "the wrong way round"],
)
def test_a_file_without_exactly_one_pair_of_markers_is_an_error_and_left_alone(readme: Path, text: str) -> None:
    readme.write_text(text)
    for use in (lambda: markers.read(readme, "results"), lambda: markers.replace(readme, "results", "new")):
        with pytest.raises(UserError, match=r"^results/README\.md: needs the lines '<!-- results: made by `make results` -->' and"):
            use()
    assert readme.read_text() == text


def test_a_block_is_read_as_it_was_written(readme: Path) -> None:
    markers.replace(readme, "results", "| a |\n\n| b |\n")
    assert markers.read(readme, "results") == "| a |\n\n| b |"
    assert readme.read_text() == f"# A\n\n{RESULTS_BEGIN}\n| a |\n\n| b |\n<!-- /results -->\n\nthe end\n"


@pytest.mark.parametrize("described", [None, "0123456789ab-dirty"])
def test_what_is_measured_names_a_commit(described: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "describe", lambda folder: described)
    with pytest.raises(UserError, match=r"the sources are those of no commit \(.+\); commit first, then measure"):
        commit.measured()
    monkeypatch.setattr(revision, "describe", lambda folder: "0123456789ab")
    assert commit.measured() == "0123456789ab"


def test_the_projects_pages_have_a_place_for_each_block() -> None:
    for module in (results, bench, scaling, seeds):
        assert markers.read(ROOT / module.PAGE, module.NAME)


MEASURED = """Measured 2026-11-26 on a processor, 2 threads, AVX2, PyTorch 2.14.1, batch 64; turns in 24 rounds of 10 steps.

| a training step, loader included | ms, median | 10 % to 90 % | steps a second | seconds an epoch | ratio to the tutorial's |
|---|---|---|---|---|---|
| the tutorial's script | 17.20 | 14.17 to 20.30 | 58 | 13.5 | 1.00 |
| native | 8.46 | 7.33 to 10.00 | 118 | 6.6 | 0.49 |
| exact | 17.59 | 15.66 to 20.21 | 57 | 13.8 | 1.02 |

| evaluating 10,000 images | seconds, median | 10 % to 90 % | ratio to the tutorial's |
|---|---|---|---|
| the tutorial's script | 1.800 | 1.695 to 1.932 | 1.00 |
| native | 0.359 | 0.333 to 0.380 | 0.20 |
| exact | 0.516 | 0.474 to 0.572 | 0.29 |

| network | a step, ms: PyTorch's own, exact | ratio | evaluation of 1,000 images, s: PyTorch's own, exact | ratio | peak memory, MB |
|---|---|---|---|---|---|
| ResNet-20 | 171, 512 | 2.99 | 1.02, 2.45 | 2.41 | 900, 1,100 |

| alone: images x epochs | exact: seconds | seconds per 12,500 images | peak memory, MB |
|---|---|---|---|
| 12,500 x 1 | 3.36 | 3.36 | 800 |
"""
COST = """| exact numerics, times PyTorch's own | a training step | evaluation |
| --- | --- | --- |
| the tutorial's SimpleCNN | 2.1 | 1.4 |
| ResNet-20 | 3.0 | 2.4 |

Measured 2026-11-26 on a processor, 2 threads, AVX2, PyTorch 2.14.1, batch 64."""


def test_a_cpus_table_of_speed_goes_to_results_and_into_its_page_and_its_ratios_into_the_readme(readme: Path) -> None:
    bench.PAGE.parent.mkdir()
    for page in (bench.PAGE, bench.README):
        page.write_text("<!-- bench: made by `make bench` -->\nold\n<!-- /bench -->\n")
    path = bench.write(MEASURED, device.select(device.CPU))
    assert path.parent == results.RESULTS
    assert re.fullmatch(r"bench-[a-z0-9-]+[a-z0-9]\.md", path.name)
    assert path.read_text() == MEASURED
    for page, block in ((bench.PAGE, MEASURED.strip("\n")), (bench.README, COST)):
        assert page.read_text() == f"<!-- bench: made by `make bench` -->\n{block}\n<!-- /bench -->\n"


def test_the_readmes_costs_are_those_of_the_page_of_performance() -> None:
    assert markers.read(ROOT / bench.README, bench.NAME) == bench.cost(markers.read(ROOT / bench.PAGE, bench.NAME))


def test_the_curves_of_quality_are_means_with_deviations_and_an_interval_of_students_t() -> None:
    given = {
        "case": "a case", "version": "exact-9", "commit": "0123456789ab", "date": "2026-01-02", "on": "a processor", "data": "some data",
        "model": {}, "train": {"epochs": 2, "log_every": 10, "optimizer": {"name": "adamw"}},
        "exact": [{"losses": [2.0, 1.0], "accuracy": 50.0}, {"losses": [1.0, 0.5], "accuracy": 53.0}],
        "native": [{"losses": [2.0, 1.5], "accuracy": 51.0}, {"losses": [2.0, 0.5], "accuracy": 52.0}],
        seeds.DISTURBED: [{"losses": [2.0, 1.5], "accuracy": 51.0}, {"losses": [2.0, 0.5], "accuracy": 51.0}],
    }  # fmt: skip
    assert (
        seeds.table(given)
        == """**A case**, 2 seeds: some data; epochs 2, optimizer {name: adamw}. Measured 2026-01-02 at commit 0123456789ab on a processor.

| training loss, mean of the seeds | epoch 1 | epoch 2 | test accuracy, % |
| --- | --- | --- | --- |
| exact | 1.500 ± 0.707 | 0.750 ± 0.354 | 51.50 ± 2.12 |
| native | 2.000 ± 0.000 | 1.000 ± 0.707 | 51.50 ± 0.71 |
| native, weights disturbed by 1e-7 | 2.000 ± 0.000 | 1.000 ± 0.707 | 51.00 ± 0.00 |

Exact (exact-9) minus native: +0.00 points on average, 95 % confidence interval of the mean -12.71 to +12.71 (paired t, 1 degrees of freedom)."""  # noqa: E501
    )


def test_the_page_of_quality_is_that_of_what_was_measured() -> None:
    if seeds.QUALITY.exists():
        assert markers.read(ROOT / seeds.PAGE, seeds.NAME) == seeds.page()
