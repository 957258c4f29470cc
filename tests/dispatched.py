"""Tests that look at, or change, the operations that PyTorch's dispatcher calls."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Dispatched(TorchDispatchMode):
    """Hands each operation to `call`; in the place of one that PyTorch makes of others, which comes here in inference mode, the others."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "prim":  # a question, as for a tensor's device
            return func(*args, **(kwargs or {}))
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        return self.call(func, args, kwargs or {}) if result is NotImplemented else result

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the operation gives."""
        raise NotImplementedError


class Names(Dispatched):
    """Collects the operations' names."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def call(self, func, args, kwargs):
        self.called.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **kwargs)


NEVER = re.compile(
    r"(_foreach_)?(mean|rsqrt|addcmul|addcdiv|lerp|hardswish|hardsigmoid|exp2?|expm1|log(2|10|1p)?|tanh|erf(c|inv)?|pow|std|var)(_backward)?_?"
    r"|_?(log_)?softmax(_backward_data)?|log_?sigmoid\w*|logsumexp|(sigmoid|gelu|silu|mish|softplus|elu|selu|celu)(_backward)?_?|logit_?"
    r"|\w*(batch|layer|group|instance|rms)_norm\w*|(linalg_vector_)?norm|renorm_?|(std|var)_mean"
    r"|_fused_\w+|cudnn_\w+|mkldnn_\w+|_?convolution\w*|_scaled_dot_product\w+|scaled_dot_product_attention"
)
"""ATen operations whose bits depend on the device, the instruction set, a library or an order: no exact form may call one."""
EXACT_OF_WHOLE = {"addcmul_"}
"""Those of them that reductions.py may call: what it multiplies and adds are integers that float64 holds, so nothing rounds there."""
ATOMIC = re.compile(r"(scatter_add|index_add|scatter_reduce|index_reduce|cumsum|cumprod|_foreach_scatter_add|embedding_dense_backward)_?")
"""Those that add in an order of their own; integers they add exactly."""
WAITS = {"_local_scalar_dense", "equal", "nonzero", "item", "is_nonzero", "masked_select", "unique", "_unique2"}
"""Those that look at a value, for which the host waits for the device."""


class Rules(Names):
    """Collects beside the names each call that breaks a rule of exact numerics, as `broken`."""

    def __init__(self, gpu: bool = False, device: torch.device | None = None) -> None:
        """With `gpu` by a GPU's rules too: no look at a value, no division by a number. With a device every tensor must be on it."""
        super().__init__()
        self.gpu, self.device = gpu, device
        self.broken: list[str] = []
        self.calls = 0

    def call(self, func, args, kwargs):
        self.calls += 1
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        name = func._schema.name.removeprefix("aten::")
        result = super().call(func, args, kwargs)
        self.broken += [f"{name}: {rule}" for rule in self._broken(name, given, result)]
        return result

    def _broken(self, name: str, given: dict[str, Any], result: Any) -> Iterator[str]:
        tensors = [each for each in tree_leaves((given, result)) if isinstance(each, torch.Tensor)]
        if NEVER.fullmatch(name) and not (name in EXACT_OF_WHOLE and _in_reductions()):
            yield "its bits are not the same everywhere"
        if (ATOMIC.fullmatch(name) or given.get("accumulate")) and any(each.is_floating_point() for each in tensors):
            yield "adds numbers that are no integers in an order of its own"
        # a product with a power of two is exact, so whether its sum is fused with it does not matter
        if not _is_power_of_two(given.get("alpha", 1)) or not _is_power_of_two(given.get("beta", 1)):
            yield f"a factor of {given.get('alpha', 1)}, {given.get('beta', 1)} that may be fused"
        if self.gpu and name in ("div", "div_", "true_divide", "floor_divide"):
            divisor = given["other"]
            if not isinstance(divisor, torch.Tensor) or divisor.device != given["self"].device:
                yield "divides by a number, for which CUDA multiplies by the reciprocal"
        if self.gpu and name in WAITS:
            yield "waits for a value"
        if self.device is not None and (
            elsewhere := {str(each.device) for each in tensors} - {str(self.device), "meta"}
        ):  # meta has shapes alone
            yield f"a tensor on {', '.join(sorted(elsewhere))}"


def _is_power_of_two(factor: float) -> bool:
    return abs(math.frexp(factor)[0]) == 0.5


def _in_reductions() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and Path(frame.f_code.co_filename).parent.name != "exact":
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.endswith("reductions.py")
