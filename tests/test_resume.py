"""A training that is killed, stopped or fails at any step resumes and ends in the same bits as one that was not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.numpy
import torch

from pipeline import device as devices
from pipeline import numerics
from pipeline.params import Train
from pipeline.system import files
from pipeline.system.errors import STOP_SIGNALS, Interrupted, UserError
from pipeline.training import checkpoint as checkpoints
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import Training, train
from pipeline.training.trainer import Trainer
from tests.conftest import handlers_kept
from tests.steps import CPU, drawn_set

SETTINGS = Train(epochs=2, batch_size=16, lr=0.01, momentum=0.9, log_every=3)
DATA = drawn_set(72)
"""Five batches an epoch, the last one of 8 images; rows of the history, and states, after steps 3, 6, 9 and 10."""
STEPS = 10


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is saved because of it."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Quicker for so little; and native numerics give other bits with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def attempt(checkpoint: Checkpoint | None, name: str = "exact", device: torch.device = CPU) -> Training:
    devices.prepare(device)
    return train(Trainer(DATA, device, 0, numerics.select(name, device), SETTINGS), checkpoint, checkpoint_seconds=0)


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Training]:
    return {name: attempt(None, name) for name in ("exact", "native")}


def at_step(step: int, do: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something right after the step that is `step` from now (from 1)."""
    taken = [0]
    take = Trainer.step

    def counted(self):
        take(self)
        taken[0] += 1
        if taken[0] == step:
            do()

    monkeypatch.setattr(Trainer, "step", counted)


def die() -> None:
    raise Killed


def assert_same(trained: Training, wanted: Training) -> None:
    assert trained.history == wanted.history
    assert {name: array.tobytes() for name, array in trained.weights.items()} == {n: a.tobytes() for n, a in wanted.weights.items()}


@pytest.mark.fault(14)
@pytest.mark.parametrize("name", ["exact", "native"])
def test_a_training_killed_after_any_step_resumes_and_ends_in_the_same_bits(name, uninterrupted, tmp_path, monkeypatch, capsys):
    for step in range(1, STEPS + 1):
        checkpoint = Checkpoint(tmp_path / str(step), {"seed": 0})
        with monkeypatch.context() as patched:
            at_step(step, die, patched)
            with pytest.raises(Killed):
                attempt(checkpoint, name)
        capsys.readouterr()
        assert_same(attempt(Checkpoint(checkpoint.folder, {"seed": 0}), name), uninterrupted[name])
        saved = max((logged for logged in (3, 6, 9) if logged < step), default=None)
        assert (f"resumes at step {saved} of 10 from {checkpoint.folder}" in capsys.readouterr().err) == (saved is not None)


@pytest.mark.fault(15)
@pytest.mark.parametrize("name", ["exact", "native"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_stopped_after_any_step_has_saved_that_step_and_ends_in_the_same_bits(
    name, number, uninterrupted, tmp_path, monkeypatch, capsys
):
    for step in range(1, STEPS + 1):
        checkpoint = Checkpoint(tmp_path / str(step), {"seed": 0})
        with monkeypatch.context() as patched:
            at_step(step, lambda: os.kill(os.getpid(), number), patched)
            with pytest.raises(Interrupted, match=f"at step {step} of 10; the state is saved") as stopped:
                attempt(checkpoint, name)
        assert stopped.value.signal_number == number
        assert_same(attempt(Checkpoint(checkpoint.folder, {"seed": 0}), name), uninterrupted[name])
        assert f"resumes at step {step} of 10" in capsys.readouterr().err


@pytest.mark.fault(14)
def test_a_training_killed_again_and_again_ends_in_the_same_bits(uninterrupted, tmp_path, monkeypatch):
    kills = 0
    while True:
        try:
            with monkeypatch.context() as patched:
                at_step(4, die, patched)
                resumed = attempt(Checkpoint(tmp_path, {"seed": 0}))
            break
        except Killed:
            kills += 1
    assert kills == 3
    assert_same(resumed, uninterrupted["exact"])


@pytest.mark.fault(14)
def test_exact_resumes_with_other_threads_in_the_same_bits(uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        at_step(7, die, patched)
        with pytest.raises(Killed):
            attempt(Checkpoint(tmp_path, {}))
    torch.set_num_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert_same(attempt(Checkpoint(tmp_path, {})), uninterrupted["exact"])
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)


@pytest.mark.cuda
@pytest.mark.fault(14)
@pytest.mark.parametrize("cuda_first", [True, False])
def test_exact_resumes_on_another_device_in_the_same_bits(cuda_first, uninterrupted, tmp_path, monkeypatch, cuda):
    first, second = (cuda, CPU) if cuda_first else (CPU, cuda)
    with monkeypatch.context() as patched:
        at_step(7, die, patched)
        with pytest.raises(Killed):
            attempt(Checkpoint(tmp_path, {}), device=first)
    assert_same(attempt(Checkpoint(tmp_path, {}), device=second), uninterrupted["exact"])


@pytest.mark.fault(16)
def test_more_signals_while_the_state_is_saved_change_nothing(uninterrupted, tmp_path, monkeypatch):
    sync, more = os.fsync, iter([signal.SIGINT, signal.SIGTERM])

    def interrupted_sync(handle):
        os.kill(os.getpid(), next(more))
        sync(handle)

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)
        patched.setattr(os, "fsync", interrupted_sync)

    with monkeypatch.context() as patched:
        at_step(4, stop, patched)
        with pytest.raises(Interrupted, match="at step 4 of 10") as stopped:
            attempt(Checkpoint(tmp_path, {}))
    assert next(more, None) is None, "both came"
    assert stopped.value.signal_number == signal.SIGTERM, "the first one counts"
    assert_same(attempt(Checkpoint(tmp_path, {})), uninterrupted["exact"])


@pytest.mark.fault(17)
def test_a_state_that_cannot_be_saved_stops_the_training_and_the_one_before_is_resumed(uninterrupted, tmp_path, monkeypatch, capsys):
    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        at_step(4, lambda: patched.setattr(os, "fsync", full), patched)
        with pytest.raises(UserError, match=r"no space: .*(one|two)\.safetensors"):
            attempt(Checkpoint(tmp_path, {}))
    assert_same(attempt(Checkpoint(tmp_path, {})), uninterrupted["exact"])
    assert "resumes at step 3 of 10" in capsys.readouterr().err


@pytest.mark.fault(15)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_one_that_stopped_a_training_changes_nothing(number, tmp_path, monkeypatch):
    arrived = []
    for each in STOP_SIGNALS:
        signal.signal(each, lambda number, _frame: arrived.append(number))
    at_step(3, lambda: os.kill(os.getpid(), number), monkeypatch)
    with pytest.raises(Interrupted):
        attempt(Checkpoint(tmp_path, {"seed": 0}))
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    assert arrived == []


# --- damaged and foreign states ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_states(tmp_path_factory) -> dict[str, bytes]:
    """The files of a training that was stopped after step 7, with states of steps 6 and 7."""
    folder = tmp_path_factory.mktemp("states")
    with pytest.MonkeyPatch.context() as patched, handlers_kept():
        at_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM), patched)
        with pytest.raises(Interrupted):
            attempt(Checkpoint(folder, {"seed": 0, "data": "a"}))
    states = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(steps_of(content) for content in states.values()) == [6, 7]
    return states


def steps_of(content: bytes) -> int:
    return int(safetensors.numpy.load(content)["step"])


def laid_out(states: dict[str, bytes], folder: Path, damage: Callable[[bytes], bytes], *steps: int) -> None:
    """The states in `folder`, those of `steps` damaged."""
    folder.mkdir(exist_ok=True)
    for name, content in states.items():
        (folder / name).write_bytes(damage(content) if steps_of(content) in steps else content)


def flipped(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


HEADER = 900
"""Bytes: more than the length, the names, the shapes, the key and the checksum take."""


@pytest.mark.fault(18)
def test_a_state_with_any_bit_of_its_header_or_one_of_its_tensors_flipped_is_corrupt(two_states, tmp_path, capsys):
    size = len(next(iter(two_states.values())))
    for bit in [*range(0, 8 * HEADER, 7), *range(8 * HEADER, 8 * size, 8 * size // 40 + 1)]:
        laid_out(two_states, tmp_path, lambda content, bit=bit: flipped(content, bit), 7)
        assert Checkpoint(tmp_path, {"seed": 0, "data": "a"}).load().step == 6, bit
        said = capsys.readouterr().err
        assert "safetensors: corrupt (" in said, bit
        assert said.endswith("): not used\n")
        assert said.count("\n") == 1


@pytest.mark.fault(18)
@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, 1000, -1])
def test_a_truncated_state_is_corrupt_and_the_one_before_is_resumed(left, two_states, tmp_path, capsys, uninterrupted):
    laid_out(two_states, tmp_path, lambda content: content[:left], 7)
    assert_same(attempt(Checkpoint(tmp_path, {"seed": 0, "data": "a"})), uninterrupted["exact"])
    said = capsys.readouterr().err
    assert "corrupt (" in said
    assert "resumes at step 6 of 10" in said


@pytest.mark.fault(18)
def test_when_both_states_are_corrupt_it_says_so_and_starts_again(two_states, tmp_path, capsys, uninterrupted):
    laid_out(two_states, tmp_path, lambda content: flipped(content, 8 * len(content) - 9), 6, 7)
    assert_same(attempt(Checkpoint(tmp_path, {"seed": 0, "data": "a"})), uninterrupted["exact"])
    said = capsys.readouterr().err
    assert said.count("corrupt (its checksum is another): not used") == 2
    assert "starts again" in said
    assert "resumes" not in said


@pytest.mark.fault(18)
def test_after_a_corrupt_newest_state_the_next_takes_its_place_and_the_whole_one_stays(two_states, tmp_path, monkeypatch):
    key = {"seed": 0, "data": "a"}
    laid_out(two_states, tmp_path, lambda content: content[:-1], 7)
    checkpoint = Checkpoint(tmp_path, key)
    loaded = checkpoint.load()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: die())
        with pytest.raises(Killed):
            checkpoint.save(loaded)
    assert Checkpoint(tmp_path, key).load().step == 6
    checkpoint.save(replace(loaded, step=8))
    assert {path.read_bytes() for path in tmp_path.iterdir()} & set(two_states.values()) == {
        content for content in two_states.values() if steps_of(content) == 6
    }
    assert Checkpoint(tmp_path, key).load().step == 8


@pytest.mark.fault(18)
@pytest.mark.parametrize(
    "tensors", [{}, {"step": [1]}, {"step": [1, 2], "history": [[1.0]]}, {"history": [[1, 1, 0.5]]}, {"history": [["a"]], "step": [1]}]
)
def test_a_state_that_is_whole_but_no_state_is_corrupt(tensors, tmp_path, capsys):
    arrays = {
        name: torch.tensor([ord(x[0]) if isinstance(x, list) and x[0] == "a" else 1 for x in value]).numpy()
        for name, value in tensors.items()
    }
    metadata = json.dumps({"key": "{}", "sha256": checkpoints.Checkpoint(tmp_path, {})._sum("{}", arrays)})
    files.write_bytes(tmp_path / "one.safetensors", safetensors.numpy.save(arrays, {"checkpoint": metadata}))
    assert Checkpoint(tmp_path, {}).load() is None
    assert "one.safetensors: corrupt (" in capsys.readouterr().err


@pytest.mark.fault(19)
def test_a_state_of_other_parameters_code_or_data_is_not_used_and_says_what_differs(two_states, tmp_path, capsys, uninterrupted):
    laid_out(two_states, tmp_path, lambda content: content)
    assert_same(attempt(Checkpoint(tmp_path, {"seed": 0, "data": "another"})), uninterrupted["exact"])
    said = capsys.readouterr().err
    assert said.count("safetensors: of another training (data): not used") == 2
    assert "resumes" not in said


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    ("saved", "now"),
    [
        ({"seed": 0, "model": "x"}, {"seed": 0}),
        ({"seed": 0}, {"seed": 0, "model": "x"}),
        ({"seed": 0, "model": 1}, {"seed": 0, "model": True}),
        ({"seed": 0, "model": 0.0}, {"seed": 0, "model": -0.0}),
    ],
    ids=["dropped", "added", "a number for a truth", "another zero"],
)
def test_a_state_with_a_part_that_this_training_lacks_is_as_foreign_as_one_without_a_part_of_its(saved, now, tmp_path, capsys):
    """What is left out because it is as by default, such as the tutorial's network, is another value."""
    Checkpoint(tmp_path, saved).save(checkpoints.State(1, [], {}))
    assert Checkpoint(tmp_path, saved).load() is not None
    assert Checkpoint(tmp_path, now).load() is None
    assert "of another training (model): not used" in capsys.readouterr().err


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
            r"device 'cpu': out of memory \(CUDA out of .* 2 GiB\); free",
        ),
        (
            torch.AcceleratorError("CUDA error: unspecified launch failure\nmore"),
            r"device 'cpu': failed \(CUDA error: .*\); see nvidia-smi and",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "device 'cpu': out of memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device 'cpu': failed"),
        (MemoryError(), "device 'cpu': out of memory"),
    ],
)
def test_a_device_that_fails_in_training_is_one_line_and_the_state_stays_valid(failure, said, uninterrupted, tmp_path, monkeypatch, capsys):
    def fail():
        raise failure

    with monkeypatch.context() as patched:
        at_step(5, fail, patched)
        with pytest.raises(UserError, match=said) as reason, devices.failures_explained(CPU):
            attempt(Checkpoint(tmp_path, {}))
    assert "\n" not in str(reason.value)
    assert_same(attempt(Checkpoint(tmp_path, {})), uninterrupted["exact"])
    assert "resumes at step 3 of 10" in capsys.readouterr().err
