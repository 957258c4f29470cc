"""One hash over instruction sets, threads, libraries' modes and chaos; native numerics give several."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipeline.exact import hardware
from pipeline.exact.engine import Exact
from pipeline.workers import ALONE
from tests.chaos import Chaos
from tests.conftest import ROOT
from tests.dispatched import NEVER, Rules
from tests.networks import batch
from tests.steps import run_steps, trained_fingerprint, trainer


def test_the_weights_do_not_change_when_every_sum_is_permuted_and_split():
    plain = trained_fingerprint(steps=6)
    for seed in range(3):
        with Chaos(seed) as chaos:
            assert trained_fingerprint(steps=6) == plain
        assert chaos.shuffled > 150


def instruction_sets() -> list[str]:
    """Those of ATen's kernels that this CPU can run, the oldest first; it would die of the others."""
    known = ["default", "avx2", "avx512"]
    best = torch.backends.cpu.get_cpu_capability().lower()
    return known[: known.index(best) + 1] if best in known else [best]


THREADS = ("1", "2", "3")


@pytest.fixture(scope="module")
def matrix() -> dict[tuple[str, str, str], list[str]]:
    """[exact, native] fingerprints for instruction sets x MKL's reproducible mode, each in a process of its own, x threads."""

    def one(setting: tuple[str, str]) -> list[str]:
        capability, cbwr = setting
        environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_CBWR")}
        environment |= {"ATEN_CPU_CAPABILITY": capability, **({"MKL_CBWR": cbwr} if cbwr else {})}
        if capability in (isa := {"default": "SSE41", "avx2": "AVX2"}):
            environment["ONEDNN_MAX_CPU_ISA"] = isa[capability]
        words = [f"{name}:{threads}" for threads in THREADS for name in ("exact", "native")]
        done = subprocess.run(
            [sys.executable, "-m", "tests.steps", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    settings = list(itertools.product(instruction_sets(), ("", "COMPATIBLE")))
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(settings, pool.map(one, settings), strict=True))
    return {(*each, count): said[2 * i : 2 * i + 2] for each, said in found.items() for i, count in enumerate(THREADS)}


def test_exact_gives_one_fingerprint_over_instruction_sets_threads_and_mkl_modes(matrix):
    assert {fingerprints[0] for fingerprints in matrix.values()} == {trained_fingerprint("exact")}


def test_native_gives_several_over_the_same_matrix_so_the_matrix_proves_something(matrix):
    assert len({fingerprints[1] for fingerprints in matrix.values()}) > 1


ALLOWED = set((ROOT / "tests" / "golden" / "aten-operations.txt").read_text().split())


def test_training_and_evaluation_call_no_aten_operation_outside_the_list():
    given, exact, (images, labels) = trainer(), Exact(), batch(130)
    with Rules() as rules:
        run_steps(given, 2)
        exact.scores(exact.logits(given.model, images[:7]), labels[:7])
        exact.mean(torch.ones(3, dtype=torch.float64))
        exact.loss_and_gradients(given.model, images, labels, ALONE, 400)  # in parts, and in int64
    assert rules.called <= ALLOWED
    assert rules.broken == []


def test_the_list_has_no_operation_whose_bits_are_not_the_same_everywhere():
    assert [name for name in sorted(ALLOWED) if NEVER.fullmatch(name)] == []


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What is computed otherwise on a CPU is computed as it is on a GPU, but on CPU tensors."""
    monkeypatch.setattr(hardware, "is_cpu", lambda tensor: False)


def test_the_gpus_own_ways_give_the_cpus_bits(as_on_a_gpu, monkeypatch):
    on_a_gpu = trained_fingerprint(steps=4)
    monkeypatch.undo()
    assert on_a_gpu == trained_fingerprint(steps=4)


def test_a_step_and_logits_look_at_no_value_and_divide_by_no_number_on_a_gpu(as_on_a_gpu):
    given = trainer()
    with Rules(gpu=True) as rules:
        given._step(given.offsets)
        given.numerics.logits(given.model, batch(7)[0])
    assert rules.broken == []


def test_the_order_in_which_weights_and_images_come_does_not_depend_on_pytorchs_generators():
    torch.manual_seed(1)
    one = trained_fingerprint(steps=2)
    torch.manual_seed(2)
    assert trained_fingerprint(steps=2) == one
