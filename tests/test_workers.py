"""Any number of workers, the same bits: what a group must do, in threads of one process; test_workers_processes.py has real ones."""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline import device as devices
from pipeline import numerics, params
from pipeline.exact import loss
from pipeline.params import Train
from pipeline.runs import provenance
from pipeline.system import tensors
from pipeline.system.errors import UserError
from pipeline.training import loop, signals
from pipeline.training.trainer import Trainer
from pipeline.workers import ALONE, Group, pairs, processes, rank, rendezvous, store
from pipeline.workers.processes import Processes
from tests import goldens
from tests.conftest import ROOT
from tests.simulated import Exchange, Workers, together
from tests.steps import CPU, drawn_set, trainer

COUNTS = [1, 2, 3, 4, 5, 8]


def fingerprints(exchange: Exchange, images: int, batch_size: int, steps: int, name: str = "exact") -> set[str]:
    """Those of all workers' weights after some steps."""

    def train(group: Group) -> str:
        given = trainer(name, data=drawn_set(images), batch_size=batch_size, group=group)
        for _ in range(steps):
            given.step()
            given.read_step_log()
        return tensors.fingerprint(given.named_weights())

    return set(together(exchange, train))


def test_shares_are_all_of_a_batch_in_its_order_and_differ_by_at_most_one_image():
    for count in range(1, 12):
        group = Group()
        group.count = count
        for images in range(40):
            rows, sizes = [], []
            for group.rank in range(count):
                share = list(range(images))[group.share(images)]
                rows += share
                sizes.append(len(share))
            assert rows == list(range(images))
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("case", "steps"), [("exact-3-batch-64", 12), ("exact-3-batch-100", 6)])
def test_any_number_of_workers_gives_the_golden(case, steps, count):
    assert goldens.first_difference(goldens.CASES[case](Workers(Exchange(count), steps)), goldens.golden(case)) is None


@pytest.mark.parametrize("count", COUNTS)
def test_a_batch_of_fewer_images_than_workers_gives_the_same_weights(count):
    """131 images: the third batch of an epoch has 3."""
    assert fingerprints(Exchange(count), 131, 64, 7) == fingerprints(Exchange(1), 131, 64, 7)


@pytest.mark.parametrize("chaos", range(2))
@pytest.mark.parametrize("count", [3, 8])
def test_sums_in_any_order_and_grouping_over_shares_cut_anywhere_and_dealt_to_anyone_give_the_golden(count, chaos):
    case = "exact-3-batch-100"
    assert goldens.first_difference(goldens.CASES[case](Workers(Exchange(count, chaos), 6)), goldens.golden(case)) is None


def test_native_numerics_give_other_weights_for_another_number_of_workers_and_close_ones():
    """The negative control of the tests above. Shares are uneven: a mean of the workers' means would be wrong by a thousand times more."""

    def weights(count: int) -> np.ndarray:
        def train(group: Group) -> np.ndarray:
            given = trainer("native", data=drawn_set(100), batch_size=100, group=group)
            given.step()
            return np.concatenate([array.ravel() for array in given.named_weights().values()])

        first, *others = together(Exchange(count), train)
        assert all(np.array_equal(first, other) for other in others)
        return first

    one, three = weights(1), weights(3)
    assert not np.array_equal(one, three)
    assert np.abs(one - three).max() < 1e-8


def test_native_numerics_take_a_share_without_images():
    (one,), (eight,) = (fingerprints(Exchange(count), 131, 64, 3, "native") for count in (1, 8))
    assert one != eight


@pytest.mark.parametrize(("name", "a_step"), [("exact", {"maximum": 1, "total": 1}), ("native", {"total": 1})])
def test_a_step_takes_two_collectives(name, a_step):
    exchange, steps = Exchange(2), 5
    fingerprints(exchange, 131, 64, steps, name)
    assert exchange.calls == {key: steps * times for key, times in a_step.items()}


@pytest.mark.fault(46)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("culprit", [0, 1, 2])
@pytest.mark.parametrize("name", ["exact", "native"])
def test_a_share_that_is_not_finite_stops_all_workers_with_the_steps_number(name, culprit, value, monkeypatch):
    taken = [0, 0, 0]

    def poison(logits: torch.Tensor) -> None:
        rank = int(threading.current_thread().name.removeprefix("worker "))
        taken[rank] += 1
        if rank == culprit and taken[rank] == 4:
            logits[0, 0] = value

    exact, pytorch = loss.cross_entropy, F.cross_entropy
    monkeypatch.setattr(loss, "cross_entropy", lambda tape, logits, *more, **named: poison(logits) or exact(tape, logits, *more, **named))

    def poisoned(logits: torch.Tensor, labels: torch.Tensor, **smoothing: Any) -> torch.Tensor:
        poison(logits.data)
        return pytorch(logits, labels, **smoothing)

    monkeypatch.setattr(F, "cross_entropy", poisoned)
    monkeypatch.setattr(signals, "noted", lambda: contextlib.nullcontext(lambda: None))
    settings, said = Train(epochs=3, batch_size=64, lr=0.01, momentum=0.9, log_every=3), []

    def train(group: Group) -> None:
        try:
            loop.train(Trainer(drawn_set(131), CPU, 0, numerics.select(name, CPU), settings, group))
        except UserError as error:
            said.append(str(error))

    together(Exchange(3), train)
    assert len(said) == 3
    assert all(text.startswith("training stopped at step 4: ") for text in said)


def test_all_workers_go_on_from_worker_0s_state(monkeypatch):
    def train(group: Group) -> tuple[int, str]:
        given = trainer(data=drawn_set(131), seed=0, group=group)
        if group.rank == 0:
            begun = trainer(data=drawn_set(131), seed=0)
            for _ in range(4):
                begun.step()
                begun.read_step_log()
            given.resume(4, begun.state())
        given.follow_first()
        for _ in range(3):
            given.step()
            given.read_step_log()
        return given.steps_completed, tensors.fingerprint(given.named_weights())

    (wanted,) = fingerprints(Exchange(1), 131, 64, 7)
    assert set(together(Exchange(3), train)) == {(7, wanted)}


# --- one of several processes ----------------------------------------------------------------------------------------


def reduced_by(others: torch.Tensor | float, monkeypatch: pytest.MonkeyPatch) -> Processes:
    """Worker 0 of two, of which the other hands in `others`."""

    def all_reduce(tensor, operation):
        other = torch.as_tensor(others, dtype=tensor.dtype).expand(tensor.shape)
        tensor.copy_(torch.maximum(tensor, other) if operation == processes.dist.ReduceOp.MAX else tensor + other)

    monkeypatch.setattr(processes.dist, "all_reduce", all_reduce)
    return Processes(0, 2, CPU, (), lambda error: UserError(str(error)))


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001])
def test_a_nan_of_either_sign_is_the_largest_magnitude(bits, monkeypatch):
    nan = torch.tensor([bits, bits], dtype=torch.uint32).view(torch.float32)
    group = reduced_by(torch.tensor([1.0, float("inf")]).view(torch.int32), monkeypatch)
    assert group.maximum(nan).isnan().all()
    assert group.maximum(torch.tensor([2.0, 3.0])).tolist() == [2.0, float("inf")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_the_signal_that_ends_the_training_is_what_the_sum_says_not_what_one_worker_received(dtype, monkeypatch):
    group = reduced_by(0.0, monkeypatch)
    sums = torch.tensor([1, 2**50 + 1], dtype=dtype)
    assert group.total(sums).tolist() == sums.tolist()
    assert group.stop_signal(signal.SIGINT) is None, "the others do not know of it yet"
    assert group.total(sums).tolist() == sums.tolist()
    assert group.stop_signal(None) == signal.SIGINT


@pytest.mark.parametrize(
    ("others", "wanted"), [(1.0, signal.SIGINT), (1023.0, signal.SIGINT), (2.0**20, signal.SIGTERM), (2.0**20 + 5, signal.SIGTERM)]
)
def test_one_worker_that_was_terminated_terminates_all(others, wanted, monkeypatch):
    group = reduced_by(torch.tensor([0.0, others]), monkeypatch)
    group.total(torch.zeros(1, dtype=torch.float64))
    assert group.stop_signal(None) == wanted


def test_alone_no_signal_waits_for_anyone():
    assert ALONE.stop_signal(15) == 15
    assert ALONE.stop_signal(None) is None


def test_between_two_workers_sums_maxima_and_copies_are_whole_whatever_they_are_of():
    ours, theirs = socket.socketpair()
    big = torch.arange(300_000, dtype=torch.int64)  # more than a socket holds at once
    both = [pairs.Pairs(0, [ours], 60), pairs.Pairs(1, [theirs], 60)]

    def take_part(number):
        total, largest, copied = big + number, torch.tensor([1, 5 - 9 * number], dtype=torch.int32), torch.full((2, 3), float(number)).t()
        both[number].all_reduce(total, torch.distributed.ReduceOp.SUM)
        both[number].all_reduce(largest, torch.distributed.ReduceOp.MAX)
        both[number].broadcast(copied, 0)
        both[number].broadcast(torch.zeros(0), 0)
        return torch.equal(total, 2 * big + 1), largest.tolist(), copied.tolist()

    with ThreadPoolExecutor() as threads:
        assert list(threads.map(take_part, (0, 1))) == [(True, [1, 5], [[0.0, 0.0]] * 3)] * 2
    both[1].close()
    with pytest.raises(RuntimeError, match=r"^from worker 1: the connection was closed$"):
        both[0].all_reduce(torch.zeros(1), torch.distributed.ReduceOp.SUM)


@pytest.mark.parametrize("number", ["", "x", "99999", "0", "-1"])
def test_a_socket_that_worker_0_did_not_hand_on_is_refused(number, monkeypatch):
    monkeypatch.setenv(pairs.SOCKET, number)
    with pytest.raises(UserError, match=f"^{pairs.SOCKET} in the environment is '{number}', which worker 0 alone can set; unset it$"):
        pairs.inherited()


# --- ranks, devices, threads ----------------------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch) -> params.Params:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return params.load(ROOT / params.PARAMS)


def replaced(given: params.Params, **changed: object) -> params.Params:
    return params.parse(params.dump(params.to_builtins(given) | changed))


def worker_of(given: params.Params) -> rank.Worker:
    return rank.here(given.workers, given.numerics)


def test_a_worker_is_what_params_say_unless_torchrun_says_otherwise(given, monkeypatch):
    assert worker_of(given) == rank.Worker(0, 1, 0, 1, starts_others=False)
    assert worker_of(replaced(given, workers=3)) == rank.Worker(0, 3, 0, 3, starts_others=True)
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    assert worker_of(replaced(given, workers=3)) == rank.Worker(5, 8, 1, 4, starts_others=False)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK in the environment is None, not a number, beside WORLD_SIZE; unset WORLD_SIZE, or start with torchrun"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE in the environment is 'two', not a number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 in the environment name no worker"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 in the environment name no worker"),
    ],
)
def test_an_environment_that_names_no_worker_is_one_line(environment, said, given, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        worker_of(given)


def test_native_numerics_take_no_other_number_of_workers_than_params_say(given, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert worker_of(replaced(given, numerics="native", workers=2)).count == 2
    with pytest.raises(UserError, match=r"params\.yaml: 'workers' is 1, but WORLD_SIZE in the environment is 2, .*; set workers: 2"):
        worker_of(replaced(given, numerics="native"))


def test_the_number_of_workers_is_part_of_what_trained_native_weights_and_of_no_exact_ones(given):
    data = drawn_set(2).description
    for name, wanted in (("exact", None), ("native", 3)):
        assert provenance.described_by(replaced(given, workers=3, numerics=name), name, data, "c" * 64).workers == wanted


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e7", "soon"])
def test_a_time_out_that_is_none_is_one_line(text, monkeypatch):
    monkeypatch.setenv(rendezvous.TIMEOUT, text)
    with pytest.raises(UserError, match=rf"PIPELINE_WORKERS_TIMEOUT in the environment is '{text}'; allowed: a number of seconds above 0"):
        rendezvous._timeout_seconds()


def test_each_worker_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    for check in ("check", "check_architecture"):
        monkeypatch.setattr(devices.cuda, check, lambda device: None)
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 2)
    assert [str(devices.select("cuda", worker, 2)) for worker in (0, 1)] == ["cuda:0", "cuda:1"]
    assert str(devices.select("cuda:1", 0, 1)) == "cuda:1"
    with pytest.raises(UserError, match="3 workers on device 'cuda' need a GPU each, and this machine shows 2; set workers: 2"):
        devices.select("cuda", 0, 3)


@pytest.mark.parametrize("name", ["cuda:1", "mps"])
def test_one_device_is_not_for_several_workers(name):
    with pytest.raises(
        UserError, match=f"device '{name}' is one device, and 2 workers need one each; set device: cpu or cuda, or workers: 1"
    ):
        devices.select(name, 0, 2)


@pytest.mark.parametrize(
    ("workers", "environment", "wanted"),
    [
        (2, {}, 4),
        (3, {}, 2),
        (9, {}, 1),
        (2, {"OMP_NUM_THREADS": "1"}, 3),  # the user's own choice: left as it is
        (2, {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, 4),  # torchrun's
    ],
)
def test_the_workers_of_a_machine_share_its_cpus(workers, environment, wanted, monkeypatch):
    chosen = SimpleNamespace(threads=3)
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(devices, "cpu_limit", lambda: 8)
    monkeypatch.setattr(devices.torch, "set_num_threads", lambda number: setattr(chosen, "threads", number))
    devices.prepare(CPU, workers)
    assert chosen.threads == wanted


def test_of_workers_that_survive_another_one_speaks_also_where_worker_0_comes_too_late(tmp_path, monkeypatch):
    monkeypatch.setattr(rendezvous, "REPORT_SECONDS", 0.05)
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    monkeypatch.setattr(sys, "stdout", None)
    held = torch.distributed.HashStore()
    spoke = {}
    for number in (1, 0):  # worker 2 is dead
        monkeypatch.setattr(sys, "stderr", sys.__stderr__ if number == 0 else None)
        own = store.Messages(held, drawn=number == 1)
        own.newest()
        survivor = rendezvous.Rendezvous(rank.Worker(number, 3, number, 3, starts_others=False), own, None, [], 1)
        spoke[number] = str(survivor.lost(RuntimeError("gone"))).partition(" (")[0], sys.stderr is sys.__stderr__
    assert spoke == {1: ("worker 0, 2 of 3 died or hangs", True), 0: ("worker 2 of 3 died or hangs", False)}
