"""Exact numerics: the same bits however the sums are computed; see docs/exact-numerics.md."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import numerics
from pipeline.draws import random_integers
from pipeline.errors import UserError
from pipeline.numerics import exact, grid, layers, transcendental
from pipeline.numerics.grid import Placed
from pipeline.numerics.reductions import Convolution, ConvolutionByRows, Matmul
from pipeline.params import Train
from pipeline.training import Trainer, train
from tests.steps import CPU, drawn_set, run_steps, trained_fingerprint, trainer

ROOT = Path(__file__).parent.parent


def ints(label: str, bits: int, *shape: int) -> torch.Tensor:
    """Drawn integers of `bits` bits and a sign, the extremes among them, as float64."""
    count = math.prod(shape)
    drawn = random_integers(label, 2 ** (bits + 2), count) % (2 ** (bits + 1) + 1) - 2**bits
    drawn[:2] = (2**bits, -(2**bits))[: len(drawn)]
    return torch.from_numpy(drawn.astype(np.float64)).view(shape)


# --- the sums are exact ----------------------------------------------------------------------------------------------


def test_a_matrix_product_of_operands_at_the_bound_equals_the_sum_in_python_integers():
    a = torch.tensor([[2.0**24] * 31 + [2.0**24 - 1] * 33], dtype=torch.float64)
    b = torch.tensor([[2.0**23 - 1] * 32 + [2.0**23] * 32], dtype=torch.float64)  # 24 + 23 + 6 = 53
    wanted = sum(int(x) * int(y) for x, y in zip(a[0], b[0], strict=True))
    assert wanted < 2**53
    assert int(Matmul().forward(a, b)[0, 0]) == wanted


def test_one_bit_beyond_the_bound_the_product_is_no_longer_the_sum_in_python_integers():
    a = torch.tensor([[2.0**25 - 1] * 64], dtype=torch.float64)  # 25 + 23 + 6 = 54
    b = torch.tensor([[2.0**23 - 1] * 63 + [2.0**23 - 2]], dtype=torch.float64)
    wanted = sum(int(x) * int(y) for x, y in zip(a[0], b[0], strict=True))
    assert wanted % 2 == 1
    assert wanted > 2**53
    assert int(Matmul().forward(a, b)[0, 0]) != wanted


PLAIN, FAST = Convolution(), ConvolutionByRows()


@pytest.mark.parametrize(
    ("x_shape", "w_shape"),
    [
        ((4, 3, 32, 32), (6, 3, 5, 5)),
        ((4, 6, 14, 14), (16, 6, 5, 5)),
        ((3, 2, 9, 8), (5, 2, 2, 3)),
        ((2, 1, 5, 5), (1, 1, 5, 5)),
        ((2, 4, 40, 40), (70, 4, 3, 3)),
    ],
)
def test_the_fast_convolution_gives_the_sums_of_the_plain_one(x_shape, w_shape):
    x, w = ints("x", 19, *x_shape), ints("w", 19, *w_shape)
    y = PLAIN.forward(PLAIN.operand(x, w.shape), w)
    assert torch.equal(FAST.forward(FAST.operand(x, w.shape), w), y)
    g = ints("g", 16, *y.shape)
    assert torch.equal(FAST.input_gradient(g, w, x.shape), PLAIN.input_gradient(g, w, x.shape))
    d_w = PLAIN.weight_gradient(g, PLAIN.operand(x, w.shape), w.shape)
    assert torch.equal(FAST.weight_gradient(g, FAST.operand(x, w.shape), w.shape), d_w)
    assert torch.equal(FAST.bias_gradient(g), PLAIN.bias_gradient(g))
    pixels = torch.from_numpy(random_integers("bytes", 256, x.numel()).astype(np.uint8)).view(x.shape)
    plain, fast = PLAIN.operand(pixels, w.shape), FAST.operand(pixels, w.shape)
    assert torch.equal(FAST.forward_bytes(fast, w).float(), PLAIN.forward_bytes(plain, w).float())
    assert torch.equal(FAST.weight_gradient(g, fast, w.shape), PLAIN.weight_gradient(g, plain, w.shape))


@pytest.mark.parametrize("operation", [PLAIN, Convolution((2, 1), (1, 2), (1, 2)), Convolution((3, 3))])
def test_the_plain_convolution_gives_the_sums_and_gradients_of_pytorchs_in_float64(operation):
    x, w = ints("x", 15, 3, 5, 19, 21).requires_grad_(), ints("w", 15, 7, 5, 3, 4).requires_grad_()
    wanted = F.conv2d(x, w, None, operation.stride, operation.padding, operation.dilation)
    g = ints("g", 10, *wanted.shape)
    d_x, d_w = torch.autograd.grad(wanted, (x, w), g)
    with torch.no_grad():
        windows = operation.operand(x, w.shape)
        assert torch.equal(operation.forward(windows, w), wanted)
        assert torch.equal(operation.input_gradient(g, w, x.shape), d_x)
        assert torch.equal(operation.weight_gradient(g, windows, w.shape), d_w)
    assert operation.terms(x.shape, w.shape) == 60
    assert operation.weight_terms(x.shape, w.shape) == 3 * wanted.shape[2] * wanted.shape[3]


def test_numpy_gives_the_same_sums_as_pytorch():
    x, w = ints("x", 19, 8, 6, 14, 14), ints("w", 19, 16, 6, 5, 5)
    windows = np.lib.stride_tricks.sliding_window_view(x.numpy(), (5, 5), (2, 3))  # [N, I, H', W', h, w]
    y = np.tensordot(windows, w.numpy(), ([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)
    assert np.array_equal(FAST.forward(FAST.operand(x, w.shape), w).numpy(), y)


def test_bytes_at_their_maximum_against_weights_at_theirs_stay_exact_in_float32_slices():
    x = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    for sign in (1, -1):
        w = torch.full((6, 3, 5, 5), sign * (2.0**19 - 1), dtype=torch.float64)
        plain = PLAIN.forward(PLAIN.operand(x, w.shape), w)
        assert torch.equal(FAST.forward_bytes(FAST.operand(x, w.shape), w).float(), plain.float())


class Chaos(TorchDispatchMode):
    """Permutes and splits the reduction axis of every matrix product and float64 sum: what another library might do."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.shuffled = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in ("aten::mm", "aten::bmm"):
            return self._product(func, *args)
        if name == "aten::baddbmm_":
            return self._added_products(func, *args)
        if name == "aten::sum" and func._overloadname == "dim_IntList" and len(args[1]) == 1 and len(args) < 3:
            return self._sum(func, *args) if args[0].dtype == torch.float64 else func(*args)
        if name == "aten::add" and kwargs and kwargs.get("alpha", 1) != 1:  # contracted: one rounding, not two
            self.shuffled += 1
            return torch.add(args[0].double(), args[1].double(), **kwargs).to(args[0].dtype)
        return func(*args, **(kwargs or {}))

    def _parts(self, length: int) -> list[list[int]]:
        self.shuffled += 1
        order = list(range(length))
        self.random.shuffle(order)
        cut = self.random.randint(0, length)
        return [part for part in (order[:cut], order[cut:]) if part]

    def _product(self, func, a, b):
        return sum(func(a[..., part], b[..., part, :]) for part in self._parts(a.shape[-1]))

    def _added_products(self, func, y, a, b):
        for part in self._parts(a.shape[-1]):
            func(y, a[..., part], b[..., part, :])
        return y

    def _sum(self, func, x, dims, keepdim=False):
        return sum(func(x.index_select(dims[0], torch.tensor(part)), dims, keepdim) for part in self._parts(x.shape[dims[0]]))


def test_the_weights_do_not_change_when_every_reduction_is_permuted_and_split():
    plain = trained_fingerprint(steps=6)
    for seed in range(3):
        with Chaos(seed) as chaos:
            assert trained_fingerprint(steps=6) == plain
        assert chaos.shuffled > 150


def test_the_same_chaos_changes_float64_sums_that_are_not_on_a_grid():
    x, w = ints("x", 19, 8, 400) / 3, ints("w", 19, 120, 400) / 7
    with Chaos(0):
        other = Matmul().forward(x, w)
    assert not torch.equal(other, Matmul().forward(x, w))


def instruction_sets() -> list[str]:
    """Those of ATen's kernels that this CPU can run, the oldest first; it would die of the others."""
    known = ["default", "avx2", "avx512"]
    best = torch.backends.cpu.get_cpu_capability().lower()
    return known[: known.index(best) + 1] if best in known else [best]


@pytest.fixture(scope="module")
def matrix() -> dict[tuple[str, str, str], list[str]]:
    """[exact, native] fingerprints for instruction sets x threads x MKL's reproducible mode, each in a process of its own."""

    def one(setting: tuple[str, str, str]) -> list[str]:
        capability, threads, cbwr = setting
        environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_CBWR")}
        environment |= {"ATEN_CPU_CAPABILITY": capability, "THREADS": threads, **({"MKL_CBWR": cbwr} if cbwr else {})}
        if capability in (isa := {"default": "SSE41", "avx2": "AVX2"}):
            environment["ONEDNN_MAX_CPU_ISA"] = isa[capability]
        done = subprocess.run(
            [sys.executable, "-m", "tests.steps", "exact", "native"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    settings = list(itertools.product(instruction_sets(), ("1", "2", "3"), ("", "COMPATIBLE")))
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(settings, pool.map(one, settings), strict=True))


def test_exact_gives_one_fingerprint_over_instruction_sets_threads_and_mkl_modes(matrix):
    assert {found[0] for found in matrix.values()} == {trained_fingerprint("exact")}


def test_native_gives_several_over_the_same_matrix_so_the_matrix_proves_something(matrix):
    assert len({found[1] for found in matrix.values()}) > 1


# --- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [1.0, 1.5, math.nextafter(2.0, 0), 2.0, 3e38, 1e-3, 2.0**-40])
def test_the_grid_is_the_finest_on_which_the_largest_magnitude_takes_19_bits(largest):
    x = torch.tensor([largest, -largest / 3], dtype=torch.float32)
    placed = grid.place(x, 19)
    top = placed.integers.abs().max().item()
    assert 2**18 <= top <= 2**19
    assert placed.grid.scale * placed.grid.unit == 1
    assert math.frexp(placed.grid.unit)[0] == 0.5  # a power of two
    assert abs(placed.integers[1].item() * placed.grid.unit + np.float32(largest / 3)) <= placed.grid.unit / 2


def test_a_tensor_of_zeros_or_of_next_to_nothing_has_a_grid_of_unit_2_to_the_minus_58():
    for value in (0.0, 1e-45, 2.0**-126, 2.0**-41):
        assert grid.choose(grid.magnitude(torch.tensor([value])), 19).unit == 2.0**-58


def test_the_units_of_two_operands_never_multiply_to_a_subnormal():
    unit = grid.choose(torch.tensor(0.0), grid.OPERAND_BITS).unit
    assert unit * unit == 2.0**-116 > np.finfo(np.float32).tiny


@pytest.mark.parametrize("largest", [0.0, 1e-45, 2.0**-40, 1.0, math.pi, 3e38])
@pytest.mark.parametrize("bits", [16, 19, 47, 53])
def test_a_grid_chosen_without_a_look_at_the_value_is_the_same(largest, bits):
    found, blind = (choose(torch.tensor(largest), bits) for choose in (grid.choose, grid.choose_on_device))
    assert (found.scale, found.unit) == (blind.scale.item(), blind.unit.item())


def test_placing_rounds_half_to_even():
    x = torch.tensor([2.0**18, 0.5, 1.5, 2.5, -0.5, -1.5])
    assert grid.place(x, 19).integers.tolist() == [2.0**18, 0, 2, 2, 0, -2]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_made_of_a_value_that_is_not_finite_is_not_finite(value):
    w = nn.Parameter(torch.ones(2, 3))
    y = layers.Weighted.apply(Matmul(), torch.tensor([[1.0, value, 1.0]]), w, None)
    assert not torch.isfinite(y).any()


def test_operands_get_fewer_bits_the_longer_the_sum_and_16_at_least():
    assert grid.operand_bits(2**15, 64, "test") == 19
    assert grid.operand_bits(2**15 + 1, 64, "test") == 18
    assert grid.operand_bits(2**21, 64, "test") == 16
    with pytest.raises(UserError, match="sums 2097164 products"):
        grid.operand_bits(2**21 + 12, 4, "test")


def test_a_batch_that_leaves_too_few_bits_is_refused_with_the_largest_that_does_not():
    with pytest.raises(
        UserError, match="batch_size 20972, which leaves 15 bits an operand; 16 are needed: set batch_size to at most 20971"
    ):
        grid.operand_bits(20972 * 100, 20972, "conv2d's gradient")
    assert grid.operand_bits(20971 * 100, 20971, "conv2d's gradient") == 16


def test_a_batch_of_400_which_leaves_its_weight_gradient_18_bits_trains_exactly_all_the_same():
    data = drawn_set(400)
    assert grid.operand_bits(400 * 100, 400, "conv2d's gradient") == 18
    plain = trained_fingerprint(steps=2, data=data, batch_size=400)
    with Chaos(1):
        assert trained_fingerprint(steps=2, data=data, batch_size=400) == plain


@pytest.mark.parametrize("at_once", [1, 24, 64, 400])
def test_the_weights_do_not_change_with_the_number_of_images_computed_at_once(at_once, monkeypatch):
    data = drawn_set(130)
    plain = trained_fingerprint(steps=2, data=data, batch_size=130)
    for operation in (Convolution, Matmul):
        monkeypatch.setattr(operation, "images_at_once", at_once)
    assert trained_fingerprint(steps=2, data=data, batch_size=130) == plain


def test_a_coarser_grid_keeps_the_value_to_half_its_unit():
    fine = Placed(torch.tensor([5.0, 6.0, 7.0, -6.0], dtype=torch.float64), grid.choose(torch.tensor(4.0), 19), 19)
    coarse = grid.coarser(fine, 17)
    assert coarse.integers.tolist() == [1, 2, 2, -2]  # 1.25, 1.5 (to even), 1.75, -1.5 (to even)
    assert coarse.grid.unit == fine.grid.unit * 4
    assert grid.coarser(fine, 19) is fine


# --- exp, log, the loss ----------------------------------------------------------------------------------------------


def test_exp_and_log_are_within_1e_11_of_the_true_values():
    x = -torch.from_numpy(random_integers("exp", 2**40, 20000).astype(np.float64)) / 2**40 * 45
    assert ((transcendental.exp(x) - torch.from_numpy(np.exp(x.numpy()))).abs() / torch.exp(x)).max() < 1e-11
    assert transcendental.exp(torch.zeros(1, dtype=torch.float64)).item() == 1
    y = 1 + torch.from_numpy(random_integers("log", 2**40, 20000).astype(np.float64)) / 2**40 * 1000
    assert (transcendental.log(y) - torch.from_numpy(np.log(y.numpy()))).abs().max() < 1e-11
    assert transcendental.log(torch.ones(1, dtype=torch.float64)).item() == 0


def test_the_exact_loss_and_its_gradient_are_pytorchs_to_float32_rounding():
    logits = (ints("logits", 19, 64, 10) / 2**15).float().requires_grad_()
    labels = torch.from_numpy(random_integers("labels", 2**30, 64) % 10)
    wanted = F.cross_entropy(logits.double(), labels)
    (d_wanted,) = torch.autograd.grad(wanted, logits)
    with exact.Exact().computing():
        found = F.cross_entropy(logits, labels)
    (d_found,) = torch.autograd.grad(found, logits)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-7)
    assert (d_found - d_wanted).abs().max() < 1e-9


def test_of_equal_logits_the_first_class_is_predicted():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    _, predicted, confidence = exact.Exact().scores(logits, torch.tensor([0, 0]))
    assert predicted.tolist() == [1, 0]
    assert confidence[1].item() == np.float32(1 / 3)


def test_max_pool_gives_pytorchs_values_and_sends_the_gradient_to_the_first_of_equal_maxima():
    for k, height, width in ((2, 28, 28), (2, 7, 9), (3, 10, 11)):
        x = (random_integers("pool", 4, 4 * 5 * height * width) - 2).astype(np.float32)
        x = torch.from_numpy(x).view(4, 5, height, width).requires_grad_()
        g = ints("pool g", 10, 4, 5, height // k, width // k).float()
        stock, ours = F.max_pool2d(x, k), layers.MaxPool.apply(x, k)
        assert torch.equal(stock, ours)
        assert torch.equal(torch.autograd.grad(stock, x, g)[0], torch.autograd.grad(ours, x, g)[0])
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    (d_x,) = torch.autograd.grad(layers.MaxPool.apply(x, 2), x, torch.ones(1, 1, 1, 1))
    assert d_x.flatten().tolist() == [1, 0, 0, 0]


# --- the update ------------------------------------------------------------------------------------------------------


def test_the_update_is_sgd_with_momentum_each_step_rounded_by_itself():
    weights, velocity, gradient = (ints(name, 19, 1000).float() / 2**20 for name in ("w", "v", "g"))
    lr, momentum = np.float32(0.01), np.float32(0.9)
    v = velocity.numpy() * momentum + gradient.numpy()
    w = weights.numpy() - v * lr
    exact.Exact().update(weights, velocity, gradient, torch.tensor(0.01), torch.tensor(0.9))
    assert np.array_equal(velocity.numpy(), v)
    assert np.array_equal(weights.numpy(), w)


def test_the_state_holds_no_subnormal_and_no_negative_zero():
    tiny = torch.tensor([1e-44, -1e-44, -0.0, 2.0**-65, -(2.0**-64), 2.0**-63])
    weights, velocity = tiny.clone(), tiny.clone()
    exact.Exact().update(weights, velocity, torch.zeros(6), torch.tensor(0.5), torch.tensor(1.0))
    for state in (weights, velocity):
        assert state[:5].tolist() == [0] * 5
        assert not torch.signbit(state[:5]).any()
    assert velocity[5].item() == 2.0**-63


# --- around the model ------------------------------------------------------------------------------------------------


class Viewed(nn.Module):
    """A last layer that views its input as rows, as the guide's model does, but straight after a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(60, 10)

    def forward(self, x):
        return self.fc(x.view(-1, 60))


def gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor, name: str) -> list[torch.Tensor]:
    chosen = numerics.select(name, CPU)
    inputs = chosen.images(x)
    with chosen.computing():
        loss = F.cross_entropy(model(inputs), y)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def test_a_users_own_network_of_these_layers_computes_exactly_and_close_to_native():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(8, 12, (5, 1), bias=False), Viewed(),
    )  # fmt: skip
    data = drawn_set(32)
    x, y = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels).long()
    plain = gradients(model, x, y, "exact")
    with Chaos(3):
        other = gradients(model, x, y, "exact")
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    for a, b in zip(plain, gradients(model, x, y, "native"), strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.BatchNorm2d(3, track_running_stats=False), "batch_norm"),
        (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3)), "conv2d with groups=3"),
        (nn.AvgPool2d(2), "avg_pool2d"),
        (nn.MaxPool2d(3, 2), "max_pool2d with overlapping"),
        (nn.Tanh(), "tanh"),
        (nn.Dropout(0.5), "dropout"),
    ],
)
def test_an_operation_without_an_exact_form_is_refused_by_name(layer, named):
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(UserError, match=f"numerics 'exact' has no form of '?.*{named}.*numerics: native"), exact.Exact().computing():
        layer(x)


def test_a_compiled_model_is_never_computed_by_what_a_compiler_made():
    compiled = []

    def compiler(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    model, x = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), torch.from_numpy(drawn_set(8).train_images)
    with torch.no_grad(), exact.Exact().computing():
        plain = model(x)
        with contextlib.suppress(UserError):
            assert torch.equal(torch.compile(model, backend=compiler)(x), plain)
    assert compiled == []


@pytest.mark.parametrize("name", ["exact", "native"])
@pytest.mark.parametrize(("poison", "reason"), [(math.nan, "the loss is nan"), (math.inf, "the loss is nan")])
def test_a_loss_that_is_not_finite_stops_training_with_the_step(name, poison, reason, monkeypatch):
    step = Trainer._step

    def poisoned(self, offsets):
        if int(self.position) == 64 * 2:
            self.parameters["fc3.weight"].data[3, 3] = poison
        step(self, offsets)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    settings = Train(epochs=3, batch_size=64, lr=0.01, momentum=0.9, log_every=7)
    with pytest.raises(UserError, match=rf"training stopped at step 3: {reason}; set a smaller lr than 0.01"):
        train(drawn_set(), CPU, 0, numerics.select(name, CPU), settings)


@pytest.mark.parametrize("name", ["exact", "native"])
def test_a_gradient_that_is_not_finite_stops_training_with_the_step(name, monkeypatch):
    chosen = numerics.select(name, CPU)
    monkeypatch.setattr(chosen, "update", lambda weights, velocity, *_: velocity.fill_(math.inf))
    settings = Train(epochs=1, batch_size=64, lr=0.01, momentum=0.9, log_every=7)
    with pytest.raises(UserError, match="training stopped at step 1: a gradient is not finite"):
        train(drawn_set(), CPU, 0, chosen, settings)


def test_exact_numerics_on_a_device_without_float64_are_refused_with_the_way_out():
    with pytest.raises(UserError, match="needs float64, which device 'mps' has not; set numerics: native"):
        numerics.select("exact", torch.device("mps"))


def test_float32_products_run_in_float32_and_reduced_precision_is_off():
    trainer()
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


ALLOWED = set((ROOT / "tests" / "golden" / "aten-operations.txt").read_text().split())


def test_training_and_evaluation_call_no_aten_operation_outside_the_list():
    called = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.add(func._schema.name.removeprefix("aten::"))
            return func(*args, **(kwargs or {}))

    made = trainer()
    with Names():
        run_steps(made, 2)
        exact.Exact().scores(torch.zeros(4, 10), torch.zeros(4, dtype=torch.int64))
    assert called <= ALLOWED


def test_the_order_in_which_weights_and_images_come_does_not_depend_on_pytorchs_generators():
    torch.manual_seed(1)
    one = trained_fingerprint(steps=2)
    torch.manual_seed(2)
    assert trained_fingerprint(steps=2) == one


# --- with a GPU ------------------------------------------------------------------------------------------------------


def floats(label: str, dtype: torch.dtype, count: int = 2**20) -> torch.Tensor:
    """Drawn bit patterns, those of finite normal numbers."""
    bits = torch.from_numpy(random_integers(label, 2**63, count))
    drawn = (bits.int() if dtype == torch.float32 else bits * 2).view(dtype)
    return torch.where(drawn.isfinite() & (drawn.abs() >= torch.finfo(dtype).tiny), drawn, 1.0)


def bits_of(x: torch.Tensor) -> torch.Tensor:
    """The low 31 bits of each float, as float64s up to 2^31."""
    return (x.contiguous().view(torch.int32)[: len(x)] & 0x7FFFFFFF).double()


ELEMENTWISE = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "round": lambda a, _: a.round(),
    "to float32": lambda a, _: a.float(),
    "to float64": lambda a, _: a.double(),
    "times a number": lambda a, _: a * 0.9,
    "add a power of two times": lambda a, b: torch.add(a, b, alpha=1024),
    "hardshrink": lambda a, _: F.hardshrink(a, exact.SNAP),
    "exp": lambda a, _: transcendental.exp(bits_of(a) * -(2.0**-26)),
    "log": lambda a, _: transcendental.log(1 + bits_of(a) * 2.0**-12),
}


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_elementwise_operation_gives_the_cpus_bits_on_cuda_for_a_million_drawn_operands(cuda, name, dtype):
    a, b = floats("a", dtype), floats("b", dtype)
    on_cpu, on_cuda = ELEMENTWISE[name](a, b), ELEMENTWISE[name](a.to(cuda), b.to(cuda)).cpu()
    assert torch.equal(on_cpu.nan_to_num(), on_cuda.nan_to_num())


@pytest.mark.cuda
def test_a_captured_step_gives_the_bits_of_the_same_step_launched_kernel_by_kernel(cuda, monkeypatch):
    captured = trained_fingerprint(device=cuda)
    monkeypatch.setattr("pipeline.device.captured", lambda step, device, reset: step)
    assert trained_fingerprint(device=cuda) == captured == trained_fingerprint()
