"""Where exact numerics first differ from the golden: the step, the direction, the operation or layer, and the tensor."""

from __future__ import annotations

import re
import shutil

import pytest
import torch

from pipeline.exact import transcendental
from pipeline.machine import trace
from tests import goldens
from tests.conftest import ROOT, command
from tests.dispatched import Dispatched
from tests.steps import CPU


def difference() -> str | None:
    return trace.first_difference(trace.trace(CPU), trace.golden())


class OneUlp(Dispatched):
    """Adds one unit in the last place to the first result of the n-th call of an operation."""

    def __init__(self, name: str, call: int) -> None:
        super().__init__()
        self.name, self.left = name, call

    def call(self, func, args, kwargs):
        result = func(*args, **kwargs)
        if func._schema.name == self.name:
            self.left -= 1
            if self.left == 0:
                first = (0,) * result.dim()
                result[first] = torch.nextafter(result[first], torch.full_like(result[first], torch.inf))
        return result


def test_every_tensor_of_two_steps_is_the_goldens():
    assert difference() is None
    labels = [line.split("  ", 1)[1] for line in trace.golden()]
    assert len(set(labels)) == len(labels) > 100
    assert [label for label in labels if label.startswith("step 1, forward")] == [
        f"step 1, forward, {number} {operation}, output"
        for number, operation in enumerate(
            [
                "conv2d conv1", "relu", "max_pool2d", "conv2d conv2", "relu", "max_pool2d", "a change of shape",
                "linear fc1", "relu", "linear fc2", "relu", "linear fc3",
            ],
            1,
        )
    ]  # fmt: skip


@pytest.mark.cuda
def test_every_tensor_is_the_goldens_on_cuda(cuda):
    assert trace.first_difference(trace.trace(cuda), trace.golden()) is None


def test_the_trace_ends_in_the_weights_that_a_training_gives():
    """The two steps are not only the golden's: the second implementation computes the same weights."""
    lines = {line.split("  ", 1)[1]: line.split("  ", 1)[0] for line in trace.golden()}
    reference = goldens.Reference()
    pixels = trace.random_integers("trace/images", 256, trace.STEPS * trace.IMAGES * 3072).astype("uint8")
    images = pixels.reshape(trace.STEPS, trace.IMAGES, 3, 32, 32)
    labels = (trace.random_integers("trace/labels", 2**32, trace.STEPS * trace.IMAGES) % 10).reshape(trace.STEPS, trace.IMAGES)
    weights = goldens.reference.initial_weights(0)
    velocity = {name: array * 0 for name, array in weights.items()}
    for step in range(trace.STEPS):
        _, results = reference.one_step(weights, velocity, images[step], labels[step])
        weights, velocity = ({name: results[f"{name}{suffix}"] for name in weights} for suffix in ("", " velocity"))
        for name, array in weights.items():
            flat = {"weights": array, "velocity": velocity[name]}
            for kind, values in flat.items():
                assert lines[f"step {step + 1}, update, {name}, {kind}"] == goldens._hash(values.flatten()), (step, name, kind)


@pytest.mark.parametrize(
    ("operation", "call", "named"),
    [
        ("aten::relu", 1, "step 1, forward, 2 relu, output"),
        ("aten::relu", 3, "step 1, forward, 9 relu, output"),
        ("aten::relu", 6, "step 2, forward, 5 relu, output"),
        ("aten::threshold_backward", 1, "step 1, backward, 11 relu, gradient of input 1"),
        ("aten::hardshrink", 1, "step 1, update, conv1.weight, velocity"),
        ("aten::hardshrink", 4, "step 2, update, conv1.weight, weights"),
    ],
)
def test_a_kernel_that_is_wrong_in_one_last_place_is_named_by_step_direction_operation_and_tensor(operation, call, named):
    with OneUlp(operation, call) as mode:
        message = difference()
    assert mode.left <= 0
    assert message is not None
    assert re.fullmatch(rf"{re.escape(named)}: [0-9a-f]{{16}}, but the golden has [0-9a-f]{{16}}", message), message


def test_an_exponential_that_is_too_large_by_a_factor_is_found_in_the_loss_for_the_gradient_has_none(monkeypatch):
    monkeypatch.setattr(transcendental, "exp", lambda x: torch.exp(x) * (1 + 2**-20))
    assert (difference() or "").startswith("step 1, loss, mean: ")


def test_the_command_says_that_all_is_well_or_what_is_not_with_its_exit_code(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    done = command("doctor", "--trace", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"on cpu all {len(trace.golden())} tensors of two training steps are the golden's\n")


def test_the_command_names_the_first_difference(monkeypatch, capsys):
    wanted = trace.golden()
    wanted[3] = wanted[3].replace(wanted[3][:16], "0" * 16)
    monkeypatch.setattr(trace, "golden", lambda: wanted)
    assert not trace.show("cpu")
    which, value = wanted[3].split("  ", 1)[1], trace.GOLDEN.read_text().splitlines()[3][:16]
    assert capsys.readouterr().out == f"on cpu differs first: {which}: {value}, but the golden has {'0' * 16}\n"


if __name__ == "__main__":  # a new golden takes a new version and a line in the changelog
    trace.GOLDEN.write_text("\n".join(trace.trace(CPU)) + "\n")
