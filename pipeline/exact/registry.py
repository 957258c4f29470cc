"""The one table of operations that have an exact form, and the mode that puts the forms in the operations' place."""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from pipeline.exact import activations, arithmetic, attention, constants, masks, normalisation, parts, pooling, precision, products, shapes
from pipeline.exact.arguments import leaves, tensors
from pipeline.exact.copies import as_type, clone, contiguous, detach, float32, to
from pipeline.exact.errors import Unsupported, refusal
from pipeline.exact.pixels import behind, is_seen, seen
from pipeline.exact.tape import Tape
from pipeline.exact.values import Images, Shape

Form = Callable[..., Any]
"""Given the tape and the operation's own arguments, computes what the operation does, exactly, and records the way back."""

FORMS: dict[str, tuple[Form, list[Any]]] = {
    "conv2d": (products.conv2d, [torch.conv2d]),
    "linear": (products.linear, [F.linear]),
    "matmul": (products.matmul, [torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm]),
    "addition": (arithmetic.add, [torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__]),
    "subtraction": (arithmetic.subtract, [torch.sub, Tensor.sub, Tensor.__sub__]),
    "reversed subtraction": (arithmetic.reverse_subtract, [Tensor.__rsub__, torch.rsub]),
    "multiplication": (arithmetic.multiply, [torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply]),
    "division": (arithmetic.divide, [torch.div, Tensor.div, Tensor.__truediv__, Tensor.__div__]),
    "reversed division": (arithmetic.reverse_divide, [Tensor.__rtruediv__, Tensor.__rdiv__]),
    "maximum": (arithmetic.maximum, [torch.maximum, Tensor.maximum]),
    "minimum": (arithmetic.minimum, [torch.minimum, Tensor.minimum]),
    "negation": (arithmetic.negative, [torch.neg, Tensor.neg, Tensor.__neg__]),
    "power": (arithmetic.power, [torch.pow, Tensor.pow, Tensor.__pow__]),
    "square": (arithmetic.square, [torch.square, Tensor.square]),
    "sqrt": (arithmetic.sqrt, [torch.sqrt, Tensor.sqrt]),
    "abs": (arithmetic.absolute, [torch.abs, Tensor.abs]),
    "exp": (arithmetic.exp, [torch.exp, Tensor.exp]),
    "log": (arithmetic.log, [torch.log, Tensor.log]),
    "clamp": (arithmetic.clamp, [torch.clamp, Tensor.clamp, torch.clip, Tensor.clip]),
    "clamp_min": (arithmetic.clamp_min, [torch.clamp_min, Tensor.clamp_min]),
    "where": (arithmetic.where, [torch.where]),
    "where of": (arithmetic.where_of, [Tensor.where]),
    "masked_fill": (arithmetic.masked_fill, [torch.masked_fill, Tensor.masked_fill]),
    "relu": (activations.relu, [F.relu, torch.relu, Tensor.relu]),
    "relu6": (activations.relu6, [F.relu6]),
    "hardtanh": (activations.hardtanh, [F.hardtanh]),
    "hardsigmoid": (activations.hardsigmoid, [F.hardsigmoid]),
    "hardswish": (activations.hardswish, [F.hardswish]),
    "leaky_relu": (activations.leaky_relu, [F.leaky_relu]),
    "prelu": (activations.prelu, [F.prelu, torch.prelu]),
    "elu": (activations.elu, [F.elu]),
    "celu": (activations.celu, [F.celu]),
    "selu": (activations.selu, [F.selu]),
    "softplus": (activations.softplus, [F.softplus]),
    "sigmoid": (activations.sigmoid, [torch.sigmoid, Tensor.sigmoid, F.sigmoid]),
    "tanh": (activations.tanh, [torch.tanh, Tensor.tanh, F.tanh]),
    "gelu": (activations.gelu, [F.gelu]),
    "silu": (activations.silu, [F.silu]),
    "mish": (activations.mish, [F.mish]),
    "batch_norm": (normalisation.batch_norm, [F.batch_norm]),
    "layer_norm": (normalisation.layer_norm, [F.layer_norm]),
    "group_norm": (normalisation.group_norm, [F.group_norm]),
    "instance_norm": (normalisation.instance_norm, [F.instance_norm]),
    "softmax": (normalisation.softmax, [F.softmax, torch.softmax, Tensor.softmax]),
    "log_softmax": (normalisation.log_softmax, [F.log_softmax, torch.log_softmax, Tensor.log_softmax]),
    "mean": (normalisation.mean, [torch.mean, Tensor.mean]),
    "sum": (normalisation.total, [torch.sum, Tensor.sum]),
    "amax": (pooling.amax, [torch.amax, Tensor.amax]),
    "amin": (pooling.amin, [torch.amin, Tensor.amin]),
    "normalize": (normalisation.normalize, [F.normalize]),
    "max_pool2d": (pooling.max_pool2d, [F.max_pool2d]),
    "avg_pool2d": (pooling.avg_pool2d, [F.avg_pool2d]),
    "adaptive_avg_pool2d": (pooling.adaptive_avg_pool2d, [F.adaptive_avg_pool2d]),
    "adaptive_max_pool2d": (pooling.adaptive_max_pool2d, [F.adaptive_max_pool2d]),
    "interpolate": (pooling.interpolate, [F.interpolate]),
    "dropout": (masks.dropout, [F.dropout, torch.dropout]),
    **{f"dropout{axes}d": (masks.feature_dropout(axes), [operation])
       for axes, operation in enumerate((F.dropout1d, F.dropout2d, F.dropout3d), 1)},
    "bernoulli_": (masks.bernoulli_, [Tensor.bernoulli_]),
    "empty": (masks.empty, [torch.empty]),
    "reshape": (shapes.reshape, [torch.reshape, Tensor.reshape, Tensor.view]),
    "flatten": (shapes.flatten, [torch.flatten, Tensor.flatten]),
    "unflatten": (shapes.unflatten, [torch.unflatten, Tensor.unflatten]),
    "contiguous": (contiguous, [Tensor.contiguous]),
    "conversion": (to, [Tensor.to]),
    "type": (as_type, [Tensor.type]),
    "float": (float32, [Tensor.float]),
    "clone": (clone, [torch.clone, Tensor.clone]),
    "detach": (detach, [Tensor.detach]),
    "permute": (shapes.permute, [torch.permute, Tensor.permute]),
    "transpose": (shapes.transpose, [torch.transpose, Tensor.transpose, torch.swapaxes, Tensor.swapaxes, torch.swapdims, Tensor.swapdims]),
    "t": (shapes.t, [torch.t, Tensor.t]),
    "T": (shapes.reverse, [Tensor.T.__get__]),  # type: ignore[attr-defined]
    "mT": (shapes.turned, [Tensor.mT.__get__]),  # type: ignore[attr-defined]
    "movedim": (shapes.movedim, [torch.movedim, Tensor.movedim, torch.moveaxis]),
    "unsqueeze": (shapes.unsqueeze, [torch.unsqueeze, Tensor.unsqueeze]),
    "squeeze": (shapes.squeeze, [torch.squeeze, Tensor.squeeze]),
    "flip": (shapes.flip, [torch.flip, Tensor.flip]),
    "roll": (shapes.roll, [torch.roll, Tensor.roll]),
    "pad": (shapes.pad, [F.pad, torch._C._nn.pad]),
    "expand": (shapes.expand, [Tensor.expand]),
    "expand_as": (shapes.expand_as, [Tensor.expand_as]),
    "repeat": (shapes.repeat, [Tensor.repeat]),
    "cat": (parts.joined, [torch.cat, torch.concat, torch.concatenate]),
    "stack": (parts.stack, [torch.stack]),
    "chunk": (parts.chunk, [torch.chunk, Tensor.chunk]),
    "split": (parts.split, [torch.split, Tensor.split]),
    "unbind": (parts.unbind, [torch.unbind, Tensor.unbind]),
    "select": (parts.select, [torch.select, Tensor.select]),
    "narrow": (parts.narrow, [torch.narrow, Tensor.narrow]),
    "indexing": (parts.get, [Tensor.__getitem__]),
    "pixel_shuffle": (shapes.pixel_shuffle, [F.pixel_shuffle]),
    "channel_shuffle": (shapes.channel_shuffle, [F.channel_shuffle]),
    **{f"comparison {each.__name__}": (arithmetic.compare(each), [getattr(torch, each.__name__), getattr(Tensor, each.__name__),
                                                                   getattr(Tensor, f"__{each.__name__}__")])
       for each in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)},
}  # fmt: skip
"""The name of a form, the form, and the operations of PyTorch that it replaces."""
NAME_OF = {operation: name for name, (_, operations) in FORMS.items() for operation in operations}
FORM_OF = {operation: form for form, operations in FORMS.values() for operation in operations}

IMAGES_FIRST = {operation for name in (
    "conv2d", "group_norm", "instance_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate",
    "dropout1d", "dropout2d", "dropout3d", "pixel_shuffle", "channel_shuffle",
) for operation in FORMS[name][1]}  # fmt: skip
"""Operations that take the first axis for that of the images, whatever the network has there."""

SIZED = {operation for name in ("reshape", "unflatten", "expand", "repeat", "empty") for operation in FORMS[name][1]} | constants.EVEN
"""Operations that may be told the number of images: as a size."""

COMPOSED: dict[Any, Form] = {
    F.scaled_dot_product_attention: attention.scaled_dot_product_attention,
    F.multi_head_attention_forward: attention.multi_head_attention_forward,
    torch.einsum: attention.einsum,
    torch.functional.einsum: attention.einsum,
}
"""Operations of PyTorch that are computed by others."""

IN_PLACE: dict[Any, Any] = {
    Tensor.__iadd__: Tensor.add, Tensor.add_: Tensor.add, Tensor.__isub__: Tensor.sub, Tensor.sub_: Tensor.sub,
    Tensor.__imul__: Tensor.mul, Tensor.mul_: Tensor.mul, Tensor.__itruediv__: Tensor.div, Tensor.div_: Tensor.div,
    Tensor.__idiv__: Tensor.div, Tensor.relu_: F.relu, torch.relu_: F.relu, Tensor.clamp_: torch.clamp, Tensor.clamp_min_: torch.clamp_min,
    Tensor.sigmoid_: torch.sigmoid, Tensor.tanh_: torch.tanh, Tensor.neg_: torch.neg, Tensor.exp_: torch.exp, Tensor.sqrt_: torch.sqrt,
    Tensor.masked_fill_: Tensor.masked_fill, Tensor.zero_: lambda x: x.masked_fill(torch.ones_like(x, dtype=torch.bool), 0.0),
}  # fmt: skip
"""Operations in place, and what they compute."""

MAY_BE_IN_PLACE = {each for each in FORM_OF if inspect.isfunction(each) and "inplace" in each.__code__.co_varnames}
"""Operations that are told by a name whether they are in place."""

QUESTIONS = {
    *(getattr(Tensor, name) for name in (
        "size", "dim", "numel", "nelement", "ndimension", "is_floating_point", "is_contiguous", "get_device", "__len__",
    )),
    *(getattr(Tensor, name).__get__ for name in (
        "shape", "dtype", "device", "ndim", "is_nested", "is_cuda", "requires_grad", "layout", "is_sparse", "is_quantized",
    )),
    torch.numel, torch.is_floating_point, torch.is_tensor, torch._assert,
}  # fmt: skip
"""Operations that only ask for what is known without a tensor's values: they compute nothing."""
SHAPES = {Tensor.size, Tensor.shape.__get__}  # type: ignore[attr-defined]


def _uncompiled(form: Form) -> Form:
    """`form`, out of reach of torch.compile, if that was loaded: where a model is compiled, so is all that it calls."""
    return _disabled(form) if "torch._dynamo" in sys.modules else form


@cache
def _disabled(form: Form) -> Form:
    disabled: Form = torch.compiler.disable(form)
    return disabled


class Forms(TorchFunctionMode):
    """Around a model: replaces the operations that have a form, lets QUESTIONS pass, refuses all others by name.

    A compiler may contract what must be rounded step by step: so what torch.compile traces ends here, and it is kept from the forms.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape, self._used = tape, constants.Used(tape)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling():
            raise refusal("a compiled model", "the model as it is")
        if precision.is_autocast():
            raise refusal("autocast, which lowers the precision of what forms compute with")
        kwargs = kwargs or {}
        try:
            return self._computed(func, args, kwargs)
        except Unsupported as reason:
            reason.at_the_users_line()
            raise

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        tape, operands = self._tape, []
        for each in leaves((args, kwargs)):
            if isinstance(each, Tensor):
                if tape.is_of_another_pass(each):
                    raise refusal("what was computed in another pass", "what this pass computes, and buffers")
                operands.append(each)
            elif isinstance(each, Images) and func not in SIZED:
                raise refusal(
                    f"{NAME_OF.get(func) or resolve_name(func)} with the number of images", "numbers that do not depend on the batch"
                )
        inplace = func in IN_PLACE
        if func in MAY_BE_IN_PLACE and "inplace" in kwargs:
            inplace = kwargs["inplace"]
            kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
        elif func is F.relu and len(args) == 2:
            inplace, args = args[1], args[:1]
        if func in constants.OF_CONSTANTS and all(tape.value(x) is None for x in operands):
            if func in constants.CHANGING:
                self._used.check(args[0])
            return constants.computed(func, args, kwargs)
        if inplace:
            return self._in_place(IN_PLACE.get(func, func), args, kwargs)
        if (form := FORM_OF.get(func)) is not None:
            if func in IMAGES_FIRST and operands:
                tape.check_images_first(operands[0], resolve_name(func).rpartition(".")[2])
            taken, named = args, kwargs
            if any(map(is_seen, operands)):
                taken, named, operands = behind(args), behind(kwargs), list(map(behind, operands))
            if form not in (arithmetic.add, arithmetic.subtract, arithmetic.reverse_subtract):  # which keep no operand for the way back
                self._used.note(operands, form in (shapes.expand, shapes.expand_as))
            try:
                given = seen(tape, _uncompiled(form)(tape, *taken, **named))
            except TypeError:
                try:
                    inspect.signature(form).bind(tape, *taken, **named)
                except TypeError as error:
                    raise refusal(f"{NAME_OF[func]} with these arguments ({error})", "those that docs/exact-numerics.md lists") from None
                raise
            known = not isinstance(given, Tensor) or tape.value(given) is not None or form.__module__ == masks.__name__  # or drawn by rule
            return given if known else constants.as_pytorch(func, args, kwargs, given)
        if func == Tensor.requires_grad.__get__ and tape.value(args[0]) is not None:  # type: ignore[attr-defined]
            return tape.learns_from(args[0])
        if func in QUESTIONS:
            return self._shape(func(*args, **kwargs), *args, **kwargs) if func in SHAPES else func(*args, **kwargs)
        if func in COMPOSED:
            with self:
                return COMPOSED[func](*args, **kwargs)
        if func in constants.MAKING:
            return constants.made(tape, func, args, kwargs)
        if func is Tensor.__setitem__:
            self._used.note(tensors(args))
            return tape.replace(args[0], _uncompiled(parts.put)(tape, *behind(args)))
        raise refusal(f"'{resolve_name(func) or func}'", "those that docs/exact-numerics.md lists")

    def _in_place(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation in place: a new tensor, which takes the place of the old one, also in the tensor that it was a part of."""
        tape, x = self._tape, next(tensors((args, kwargs)))
        with self:
            y = func(*args, **kwargs)
        if tape.value(x) is None:
            if tape.value(y) is not None:
                raise refusal("an operation in place that puts what is computed into a constant", "its plain form")
            self._used.check(x)
            return constants.changed(x, y)
        changed, new = x, tape.replace(x, y)
        while (part := tape.part_of(changed)) is not None:  # the tensor that it is a part of shows the same
            whole, index = part
            tape.show(new, whole, index)  # so is what it became
            new = tape.replace(whole, _uncompiled(parts.put)(tape, tape.newest(whole), index, new))
            changed = whole
        tape.renew(y)
        return y

    def _shape(self, given: Any, x: Tensor, dim: int | None = None) -> Any:
        """A shape that says which of its numbers is the number of images, if one is."""
        tape = self._tape
        axis = tape.axis(x) if isinstance(x, Tensor) else None
        if axis is None or not x.dim() or x.shape[axis] != tape.images:
            return given
        if isinstance(given, int):
            return Images(given) if dim is not None and dim % x.dim() == axis else given
        return Shape([*given[:axis], Images(given[axis]), *given[axis + 1 :]])
