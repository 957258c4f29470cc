"""The promise end to end: runs trained for the purpose, compared by the command that a user types."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import to_builtins

from pipeline import params
from pipeline.data import dataset, synthetic
from pipeline.machine import demo
from tests.conftest import ROOT, command

pytestmark = pytest.mark.long

OLDEST = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "2"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, str]:
    """Runs on the synthetic set, of other settings than the demo's: what each is -> its folder.

    The training ends before the loss falls: once it does, one rounding can move the accuracy of native numerics by six points.
    """
    folder = tmp_path_factory.mktemp("verdicts")
    synthetic.make(3_000).save(folder / dataset.DATASET)
    settings = to_builtins(params.load(ROOT / params.PARAMS)) | demo.SETTINGS
    settings["train"] = {**demo.SETTINGS["train"], "epochs": 2, "lr": 0.003}

    def kept_run(environment: dict[str, str], **changed: object) -> str:
        (folder / params.PARAMS).write_text(params.dump({**settings, **changed}))
        for stage in ("train", "evaluate"):
            done = command(stage, folder=folder, **environment)
            assert done.returncode == 0, done.stderr
        return str(folder / done.stdout.splitlines()[-1].removeprefix("kept as "))

    return {
        "exact": kept_run({}), "exact, otherwise computed": kept_run(OLDEST), "exact, another seed": kept_run({}, seed=1),
        "native": kept_run({}, numerics="native"), "native, otherwise computed": kept_run(OLDEST, numerics="native"),
    }  # fmt: skip


def compared(*folders: str) -> tuple[int, str]:
    done = command("compare", *folders, folder=ROOT)
    return done.returncode, done.stdout


def test_exact_runs_of_other_threads_and_another_instruction_set_are_identical(runs):
    assert Path(runs["exact"]).name != Path(runs["exact, otherwise computed"]).name
    code, said = compared(runs["exact"], runs["exact, otherwise computed"])
    assert (code, "2 against 1: identical" in said) == (0, True), said


def test_native_runs_of_other_threads_and_another_instruction_set_are_equivalent_but_not_identical(runs):
    code, said = compared(runs["native"], runs["native, otherwise computed"])
    assert (code, "2 against 1: equivalent" in said) == (0, True), said


def test_an_exact_and_a_native_run_are_equivalent(runs):
    code, said = compared(runs["exact"], runs["native"])
    assert (code, "2 against 1: equivalent" in said) == (0, True), said


def test_another_seed_makes_a_run_different(runs):
    code, said = compared(runs["exact"], runs["exact, another seed"])
    assert (code, "2 against 1: different" in said, "seed is 0 in 1, 1 in 2" in said) == (3, True, True), said
