"""What lowers precision is switched off, refused by name, or found by the self-test before anything is computed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest
import torch

from pipeline import device as devices
from pipeline import numerics
from pipeline.exact import hardware, precision, registry, self_test
from pipeline.exact.errors import Imprecise
from pipeline.machine import doctor
from pipeline.system.errors import UserError
from tests.conftest import ROOT
from tests.dispatched import Dispatched
from tests.steps import CPU, trained_fingerprint

# --- what can be switched off ----------------------------------------------------------------------------------------

SETTINGS = {
    "set_float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "oneDNN's products": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "oneDNN's convolutions": lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    "every backend": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "cuDNN": lambda: setattr(torch.backends.cudnn, "fp32_precision", "tf32"),
    "cuDNN's convolutions": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "tf32"),
    "CUDA's products": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "allow_tf32": lambda: (setattr(torch.backends.cuda.matmul, "allow_tf32", True), setattr(torch.backends.cudnn, "allow_tf32", True)),
    "float16 accumulation": lambda: setattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", True),
    "flushing of subnormals": lambda: torch.set_flush_denormal(True),
}


def precisions() -> list[object]:
    of = torch.backends
    return [
        of.cuda.matmul.allow_tf32, of.cudnn.allow_tf32, torch.get_float32_matmul_precision(), of.cuda.matmul.allow_fp16_accumulation,
        of.cuda.matmul.allow_bf16_reduced_precision_reduction, of.cuda.matmul.allow_fp16_reduced_precision_reduction,
        *(part.fp32_precision for part in (of.mkldnn.matmul, of.mkldnn.conv, of.mkldnn.rnn, of.cudnn.conv, of.cudnn.rnn, of.cuda.matmul)),
        (torch.tensor(2.0**-100) * 2.0**-40).item(),
    ]  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_reduced_precision_is_off_even_where_it_was_set_before(setting):
    SETTINGS[setting]()
    devices.prepare(CPU)
    assert precisions() == [False, False, "highest", False, False, False, *["ieee"] * 6, 2.0**-140]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "name", "value"),
    [
        ("cpu", "ONEDNN_DEFAULT_FPMATH_MODE", "BF16"),
        ("cpu", "DNNL_DEFAULT_FPMATH_MODE", "any"),
        ("cuda", "NVIDIA_TF32_OVERRIDE", "1"),
        ("cuda", "CUBLAS_EMULATE_DOUBLE_PRECISION", "1"),
        ("cuda:1", "CUBLAS_EMULATE_SINGLE_PRECISION", "1"),
    ],
)
def test_a_variable_that_pytorch_cannot_undo_is_refused_by_name(device, name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^{name}='{value}' makes device '{device}' compute in less precision, .*; unset it$"):
        devices.prepare(torch.device(device))


@pytest.mark.parametrize(
    ("device", "name", "value"),
    [
        ("cpu", "ONEDNN_DEFAULT_FPMATH_MODE", ""),
        ("cpu", "ONEDNN_DEFAULT_FPMATH_MODE", "STRICT"),
        ("cpu", "CUBLAS_EMULATE_DOUBLE_PRECISION", "1"),
        ("cpu", "NVIDIA_TF32_OVERRIDE", "1"),
        ("cuda", "NVIDIA_TF32_OVERRIDE", "0"),
        ("cuda", "CUBLAS_EMULATE_DOUBLE_PRECISION", "0"),
        ("cuda", "ONEDNN_DEFAULT_FPMATH_MODE", "BF16"),
    ],
)
def test_a_variable_that_does_a_device_no_harm_is_not_refused(device, name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    devices.prepare(torch.device(device))


def test_a_run_with_such_a_variable_ends_with_one_line_and_code_2(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}
    code = "import torch\nfrom pipeline import device\ndevice.prepare(torch.device('cpu'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "UserError: ONEDNN_DEFAULT_FPMATH_MODE='BF16' makes device 'cpu' compute in less precision" in done.stderr


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_training_after_such_a_setting_has_the_right_bits(setting):
    plain = trained_fingerprint(steps=1)
    SETTINGS[setting]()
    assert trained_fingerprint(steps=1) == plain


# --- what the self-test finds ----------------------------------------------------------------------------------------


class Planted(Dispatched):
    """Kernels that give less than they should."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def call(self, func, args, kwargs):
        return getattr(self, f"_{self.fault}")(func._schema.name.removeprefix("aten::"), func, args, kwargs)

    def _operands(self, name, func, args, kwargs, less):
        if name in ("mm", "bmm"):
            return func(less(args[0]), less(args[1])).to(args[0].dtype)
        if name == "baddbmm_":
            return func(args[0], less(args[1]).to(args[0].dtype), less(args[2]).to(args[0].dtype))
        return func(*args, **kwargs)

    def _bfloat16_operands(self, name, func, args, kwargs):
        return self._operands(name, func, args, kwargs, lambda x: x.bfloat16().to(x.dtype))

    def _bfloat16_float32_products(self, name, func, args, kwargs):
        return self._operands(name, func, args, kwargs, lambda x: x.bfloat16().float() if x.dtype == torch.float32 else x)

    def _tf32_operands(self, name, func, args, kwargs):
        return self._operands(name, func, args, kwargs, lambda x: ((x * 2.0**-8).half().to(x.dtype)) * 2.0**8)

    def _float32_products(self, name, func, args, kwargs):
        return self._operands(name, func, args, kwargs, lambda x: x.float()) if name != "baddbmm_" else func(*args, **kwargs)

    def _byte_products_in_float32(self, name, func, args, kwargs):
        result = func(*args, **kwargs)
        return result.float().int() if name == "_int_mm" else result

    def _float32_sums(self, name, func, args, kwargs):
        result = func(*args, **kwargs)
        return result.float().to(result.dtype) if name == "sum" else result

    def _products_of_32_bits(self, name, func, args, kwargs):
        """As an emulation of float64 by integers might cut them."""
        result = func(*args, **kwargs)
        if name not in ("mm", "bmm"):
            return result
        fraction, exponent = torch.frexp(result)
        return torch.ldexp((fraction * 2.0**32).trunc(), exponent - 32)

    def _products_of_one_term(self, name, func, args, kwargs):
        """As a library might compute where strides are ambiguous."""
        result = func(*args, **kwargs)
        return result + 1 if name == "bmm" and args[0].shape[-1] == 1 else result

    def _byte_products_of_two_terms(self, name, func, args, kwargs):
        result = func(*args, **kwargs)
        return result + 1 if name == "_int_mm" and args[0].shape[-1] == 2 else result

    def _contracted(self, name, func, args, kwargs):
        """A product whose rounding waits for the sum that follows."""
        if name in ("mul", "mul_"):
            self.product = (args[0].clone(), args[1])
            result = func(*args, **kwargs)
            self.of = result
            return result
        if name in ("add", "add_") and args[0] is getattr(self, "of", None) and not kwargs:
            x, y = self.product
            precise = x.to(torch.float64) * y + args[1]
            if args[0].dtype == torch.float64:  # the lost part of the product, by splitting
                product = x * y
                high = lambda v: (v * 134217729.0) - ((v * 134217729.0) - v)  # noqa: E731 - Dekker
                y = y if isinstance(y, torch.Tensor) else torch.tensor(y, dtype=torch.float64)
                xh, yh = high(x), high(y)
                lost = ((xh * yh - product) + xh * (y - yh) + (x - xh) * yh) + (x - xh) * (y - yh)
                precise = (product + args[1]) + lost
            return args[0].copy_(precise.to(args[0].dtype)) if name == "add_" else precise.to(args[0].dtype)
        return func(*args, **kwargs)

    def _flushed_subnormals(self, name, func, args, kwargs):
        result = func(*args, **kwargs)
        if name in ("mul", "mul_") and result.dtype == torch.float32:
            flushed = torch.where(result.abs() < 2.0**-126, 0, result)
            return args[0].copy_(flushed) if name == "mul_" else flushed
        return result

    def _reciprocals(self, name, func, args, kwargs):
        if name == "div_":
            return args[0].copy_(args[0] * (1 / args[1]))
        return func(*args, **kwargs)

    def _int64_by_float64(self, name, func, args, kwargs):
        if name == "_to_copy" and args[0].dtype == torch.int64 and kwargs.get("dtype") == torch.float32:
            return args[0].double().float()
        return func(*args, **kwargs)

    def _half_away_from_zero(self, name, func, args, kwargs):
        if name == "round_":
            return args[0].copy_((args[0].abs() + 0.5).floor() * args[0].sign())
        return func(*args, **kwargs)

    def _library_exp(self, name, func, args, kwargs):
        if name == "add_" and args[0].dtype == torch.float64 and args[0].shape == (2,):
            return args[0].add_(args[1]).mul_(1 + 2.0**-52)
        return func(*args, **kwargs)


FAULTS = {
    "bfloat16_operands": "linear in float64",
    "bfloat16_float32_products": "conv2d over rows of bytes",
    "tf32_operands": "linear in float64",
    "float32_products": "linear in float64",
    "byte_products_in_float32": "the weight gradient of conv2d by digits of bytes",
    "float32_sums": "the weight gradient of conv2d over rows",
    "products_of_32_bits": "linear in float64",
    "products_of_one_term": "conv2d over windows",
    "byte_products_of_two_terms": "the weight gradient of conv2d by digits of bytes",
    "contracted": "a product and a sum in torch.float32",
    "flushed_subnormals": "a product that is subnormal",
    "reciprocals": "a quotient in float32",
    "int64_by_float64": "rounding int64 to float32",
    "half_away_from_zero": "rounding to integers",
    "library_exp": "exp",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_self_test_finds_a_planted_fault_and_names_operation_and_device(fault, monkeypatch):
    monkeypatch.setattr(hardware, "multiplies_bytes", lambda: True)
    with Planted(fault), pytest.raises(Imprecise) as refusal:
        self_test.check(CPU)
    assert str(refusal.value).startswith(
        f"numerics 'exact': on device 'cpu' {FAULTS[fault]} gives other results than exact arithmetic does"
    )
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("fault", ["contracted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_planted_contraction_is_one(fault, dtype):
    a = torch.tensor([1 + 2.0**-20 if dtype == torch.float32 else 1 + 2.0**-40], dtype=dtype)
    with Planted(fault):
        contracted = (a * a).add_(torch.full_like(a, -1))
    assert contracted.item() != (a * a).add_(torch.full_like(a, -1)).item()


def test_the_self_test_passes_here_and_is_run_before_exact_numerics_are_given(monkeypatch):
    self_test.check(CPU)
    checked = []
    monkeypatch.setattr(self_test, "check", checked.append)
    numerics.select("native", CPU)
    assert checked == []
    numerics.select("exact", CPU)
    assert checked == [CPU]


def test_the_self_test_names_what_is_set_that_may_have_done_it(monkeypatch):
    for name in precision.MAY_LOWER_PRECISION:
        monkeypatch.delenv(name, raising=False)
    with (
        Planted("float32_sums"),
        pytest.raises(Imprecise, match=r"no setting known to do this is set\); use another device$"),
    ):
        self_test.check(CPU)
    monkeypatch.setenv("CUBLAS_EMULATION_STRATEGY", "eager")
    with (
        Planted("float32_sums"),
        pytest.raises(Imprecise, match=r"\(set here: CUBLAS_EMULATION_STRATEGY=eager\); unset that$"),
    ):
        self_test.check(CPU)


def test_the_doctor_says_that_the_kernels_are_proved_and_counts_the_forms():
    (finding,) = doctor.examine("numerics")
    assert finding.ok
    assert finding.text.startswith("exact-3 is proved on cpu")
    assert f"; {len(registry.FORMS)} operations have exact forms" in finding.text
    with Planted("float32_sums"), contextlib.suppress(Imprecise):
        (finding,) = doctor.examine("numerics")
    assert not finding.ok
    assert "gives other results than exact arithmetic does" in finding.text


@pytest.mark.cuda
def test_the_self_test_passes_on_cuda(cuda):
    devices.prepare(cuda)
    self_test.check(cuda)
