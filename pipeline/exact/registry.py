"""The one table of operations that have an exact form, and the mode that puts the forms in the operations' place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from pipeline.exact import elementwise, pooling, precision, weighted
from pipeline.exact.errors import refusal
from pipeline.exact.later import QUESTIONS
from pipeline.exact.tape import Tape

Form = Callable[..., Tensor]
"""Given the tape and the operation's own arguments, computes what the operation does, exactly, and records the way back."""

FORMS: dict[str, tuple[Form, list[Any]]] = {
    "conv2d": (weighted.conv2d, [torch.conv2d]),
    "linear": (weighted.linear, [F.linear]),
    "relu": (elementwise.relu, [F.relu, torch.relu, Tensor.relu]),
    "relu_": (elementwise.relu_, [torch.relu_, Tensor.relu_]),
    "max_pool2d": (pooling.max_pool2d, [F.max_pool2d]),
    "addition": (elementwise.add, [torch.add, Tensor.add, Tensor.__add__]),
    "addition in place": (elementwise.add_, [Tensor.add_, Tensor.__iadd__]),
    "reshape": (elementwise.reshape, [Tensor.reshape, Tensor.view]),
    "flatten": (elementwise.flatten, [torch.flatten, Tensor.flatten]),
    "contiguous": (elementwise.contiguous, [Tensor.contiguous]),
}
"""The name of a form, the form, and the operations of PyTorch that it replaces."""
FORM_OF = {operation: form for form, operations in FORMS.values() for operation in operations}


def _uncompiled(form: Form) -> Form:
    """`form`, out of reach of torch.compile, if that was loaded: where a model is compiled, so is all that it calls."""
    return _disabled(form) if "torch._dynamo" in sys.modules else form


@cache
def _disabled(form: Form) -> Form:
    disabled: Form = torch.compiler.disable(form)  # type: ignore[no-untyped-call]
    return disabled


class Forms(TorchFunctionMode):
    """Around a model: replaces the operations that have a form, lets QUESTIONS pass, refuses all others by name.

    A compiler may contract what must be rounded step by step: so what torch.compile traces ends here, and it is kept from the forms.
    """

    def __init__(self, tape: Tape, form_of: Mapping[Any, Form] = FORM_OF) -> None:
        super().__init__()
        self._tape, self._form_of = tape, form_of

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling():
            raise refusal("a compiled model", "the model as it is")
        if precision.is_autocast():
            raise refusal("autocast, which lowers the precision of what forms compute with")
        form = self._form_of.get(func)
        if form is not None:
            try:
                return _uncompiled(form)(self._tape, *args, **(kwargs or {}))
            except TypeError:
                with suppress(TypeError):
                    signature(form).bind(self._tape, *args, **(kwargs or {}))
                    raise
                raise refusal(f"'{resolve_name(func) or func}' with these arguments: {', '.join(kwargs or {}) or len(args)}") from None
        if func in QUESTIONS:
            return func(*args, **(kwargs or {}))
        raise refusal(f"'{resolve_name(func) or func}'", f"{', '.join(FORMS)}; never under torch.compile")
