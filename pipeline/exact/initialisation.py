"""Initial weights by rule: what a constructor asks for, without the bits of PyTorch's generators, which differ with instruction sets.

While a module is built, a mode notes which random filling was asked for each tensor, with its arguments, and what was done to it after.
Then each parameter is drawn for its name in the module: integers of SHAKE-256, and IEEE operations alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.overrides import TorchFunctionMode, resolve_name

from pipeline.exact.errors import Unsupported
from pipeline.exact.fillings import RULES, Step, drawn

_AFTER = {
    Tensor.mul_: "times", Tensor.__imul__: "times", Tensor.mul: "times", Tensor.__mul__: "times", Tensor.__rmul__: "times",
    Tensor.add_: "plus", Tensor.__iadd__: "plus", Tensor.add: "plus", Tensor.__add__: "plus", Tensor.__radd__: "plus",
    Tensor.div_: "over", Tensor.__itruediv__: "over", Tensor.div: "over", Tensor.__truediv__: "over",
    Tensor.sub_: "less", Tensor.__isub__: "less", Tensor.sub: "less", Tensor.__sub__: "less", Tensor.clamp_: "clamp", torch.mul: "times",
}  # fmt: skip
_SAME = {Tensor.data.__get__, Tensor.detach, Tensor.view, Tensor.reshape, Tensor.requires_grad_, Tensor.t, Tensor.to, Tensor.flatten}  # type: ignore[attr-defined]
_OTHERWISE_RANDOM = {
    torch.normal, torch.randint, torch.randint_like, torch.randperm, torch.bernoulli, torch.multinomial, torch.poisson,
    *(getattr(Tensor, name) for name in (
        "bernoulli", "bernoulli_", "multinomial", "random_", "exponential_", "cauchy_", "geometric_", "log_normal_",
    )),
}  # fmt: skip
_CONSTANT = {Tensor.fill_, Tensor.zero_, Tensor.copy_, nn.init.constant_}


def _uniformly(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Any = None) -> tuple[Tensor, Step]:
    return tensor, ("uniform", (a, b))


def _normally(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> tuple[Tensor, Step]:
    return tensor, ("normal", (mean, std))


def _fan(tensor: Tensor, mode: Any) -> int:
    """PyTorch's fan; 1 of a tensor without elements, for which the number does not matter."""
    fan: int = nn.init._calculate_correct_fan(tensor, mode)
    return fan or 1


def _kaiming_uniformly(tensor: Tensor, a: float = 0, mode: Any = "fan_in", nonlinearity: Any = "leaky_relu",
                       generator: Any = None) -> tuple[Tensor, Step]:  # fmt: skip
    fan = _fan(tensor, mode)
    # the default of Linear and Conv2d, whose gain and sqrt(3) cancel but for the last bit
    usual = (a, nonlinearity) == (math.sqrt(5), "leaky_relu")
    bound = 1 / math.sqrt(fan) if usual else math.sqrt(3.0) * (nn.init.calculate_gain(nonlinearity, a) / math.sqrt(fan))
    return tensor, ("uniform", (-bound, bound))


def _kaiming_normally(tensor: Tensor, a: float = 0, mode: Any = "fan_in", nonlinearity: Any = "leaky_relu",
                      generator: Any = None) -> tuple[Tensor, Step]:  # fmt: skip
    fan = _fan(tensor, mode)
    return tensor, ("normal", (0.0, nn.init.calculate_gain(nonlinearity, a) / math.sqrt(fan)))


_INIT: dict[Any, Callable[..., tuple[Tensor, Step]]] = {
    nn.init.uniform_: _uniformly, nn.init.normal_: _normally,
    nn.init.kaiming_uniform_: _kaiming_uniformly, nn.init.kaiming_normal_: _kaiming_normally,
}  # fmt: skip
"""Functions of torch.nn.init that a mode sees whole."""


class _Noting(TorchFunctionMode):
    """Notes what is asked for each tensor, by its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[int, list[Step]] = {}
        self._held: list[Tensor] = []  # so that no memory is used again

    def note(self, x: Tensor, *steps: Step, first: bool) -> Tensor:
        """Add what is done to `x` to its notes; the first steps anew."""
        memory = x.untyped_storage()
        self._held.append(x)
        whole = memory.nbytes() == x.numel() * x.element_size()
        known = [] if first else self.notes.get(memory.data_ptr(), [])
        self.notes[memory.data_ptr()] = [*known, *steps] if whole else [("part", ())]
        return x

    def of(self, x: Tensor) -> list[Step]:
        """The notes of a tensor's memory."""
        return self.notes.get(x.untyped_storage().data_ptr(), [])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _INIT:
            return self.note(*_INIT[func](*args, **kwargs), first=True)
        if func in (Tensor.uniform_, torch.rand, Tensor.normal_, torch.randn, torch.rand_like, torch.randn_like):
            y = func(*args, **kwargs)
            uniform = func in (Tensor.uniform_, torch.rand, torch.rand_like)
            numbers = [0.0, 1.0]
            if func in (Tensor.uniform_, Tensor.normal_):
                for place, name in enumerate(("from", "to") if uniform else ("mean", "std")):
                    numbers[place] = float(kwargs.get(name, args[1 + place] if len(args) > 1 + place else numbers[place]))
            return self.note(y, ("uniform" if uniform else "normal", tuple(numbers)), first=True)
        if func in _OTHERWISE_RANDOM:
            return self.note(func(*args, **kwargs), ("unknown " + str(resolve_name(func) or func), ()), first=True)
        if func in _CONSTANT:
            y = func(*args, **kwargs)
            if self.of(y) or (func is Tensor.copy_ and self.of(args[1])):
                whole = y.untyped_storage().nbytes() == y.numel() * y.element_size()
                copied = self.of(args[1]) if func is Tensor.copy_ else []
                self.notes[y.untyped_storage().data_ptr()] = copied if whole else [("part", ())]
            return y
        noted = [each for each in args if isinstance(each, Tensor) and self.of(each)]
        y = func(*args, **kwargs)
        if noted and func is Tensor.__setitem__:
            self.notes[args[0].untyped_storage().data_ptr()] = [("part", ())]
            self._held.append(args[0])
        if noted and isinstance(y, tuple):
            for each in y:
                if isinstance(each, Tensor):
                    self.note(each, ("unknown " + str(resolve_name(func) or func), ()), first=True)
        elif noted and isinstance(y, Tensor) and func not in _SAME:
            numbers = args[1:] + tuple(kwargs.values())
            if func in _AFTER and all(isinstance(n, int | float) for n in numbers):
                self.note(y, *self.of(noted[0]) if y.data_ptr() != noted[0].data_ptr() else (), (_AFTER[func], tuple(map(float, numbers))),
                          first=y.data_ptr() != noted[0].data_ptr())  # fmt: skip
            elif y.dtype.is_floating_point:
                before = [step for x in noted for step in self.of(x) if step[0].startswith("unknown")]
                self.note(y, *before[:1] or [("unknown " + str(resolve_name(func) or func), ())], first=True)
        return y


@contextlib.contextmanager
def _noting() -> Iterator[_Noting]:
    noting = _Noting()

    def trunc_normal(x: Tensor, mean: float, std: float, a: float, b: float, generator: Any = None) -> Tensor:
        return noting.note(x, ("trunc_normal", (float(mean), float(std), float(a), float(b))), first=True)

    before = nn.init._no_grad_trunc_normal_
    nn.init._no_grad_trunc_normal_ = trunc_normal  # type: ignore[assignment]
    try:
        with noting:
            yield noting
    finally:
        nn.init._no_grad_trunc_normal_ = before


@contextlib.contextmanager
def initial_values(seed: int) -> Iterator[None]:
    """Modules that are built in the block get the initial values that they ask for, drawn by rule from `seed` for their names.

    Raises:
        Unsupported: a parameter was filled at random in a way that has no rule; names it.
    """
    built: dict[int, nn.Module] = {}
    children: set[int] = set()

    def parameter(module: nn.Module, name: str, value: Any) -> None:
        built[id(module)] = module

    def child(module: nn.Module, name: str, value: Any) -> None:
        built[id(module)] = module
        children.add(id(value))

    hooks = [modules.register_module_parameter_registration_hook(parameter), modules.register_module_module_registration_hook(child)]
    try:
        with _noting() as noting:
            yield
    finally:
        for hook in hooks:
            hook.remove()
    for key, module in built.items():
        if key not in children:
            _draw(module, seed, noting)


def initialise(model: nn.Module, seed: int) -> None:
    """Set the parameters of a module that stands, on the CPU: those that its layers' `reset_parameters` fill, by rule from `seed`.

    Buffers stay as they are.

    Raises:
        Unsupported: a parameter is filled at random in a way that has no rule, or by nothing that is known; names it. Nothing is set then.
    """
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    try:
        _reset_and_draw(model, seed)
    except Unsupported:
        _restore(before.values())
        raise
    buffers = {name for name, _ in model.named_buffers()}
    _restore(pair for name, pair in before.items() if name in buffers)


@torch.no_grad()
def _restore(tensors: Iterable[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in tensors:
        tensor.copy_(value)


def _reset_and_draw(model: nn.Module, seed: int) -> None:
    with _noting() as noting:
        reset = set()
        for name, layer in model.named_modules():
            for method in ("reset_parameters", "_reset_parameters"):
                if callable(own := getattr(layer, method, None)):
                    own()
                    reset |= {f"{name}.{part}".lstrip(".") for part, _ in layer.named_parameters(recurse=method == "_reset_parameters")}
    if left := [name for name, _ in model.named_parameters() if name not in reset]:
        raise Unsupported(f"does not know how parameter '{left[0]}' is filled", "build the model inside exact.initial_values(seed)")
    _draw(model, seed, noting)


def _draw(model: nn.Module, seed: int, noting: _Noting) -> None:
    asked: dict[str, list[Step]] = {}
    for name, parameter in model.named_parameters():
        if not (steps := noting.of(parameter)):
            continue  # a constant
        if unknown := [step for step, _ in steps if step not in RULES]:
            how = "in part" if unknown[0] == "part" else f"by {unknown[0].removeprefix('unknown ')}"
            raise Unsupported(f"has no rule for the initial value of parameter '{name}', which is filled at random {how}",
                              "use uniform_, normal_ or trunc_normal_, or start from weights of your own")  # fmt: skip
        asked[name] = steps
    values = {name: drawn(steps, seed, name, model.get_parameter(name).numel()) for name, steps in asked.items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in values:
                parameter.copy_(values[name].view(parameter.shape))
    note(model, asked)


def note(model: nn.Module, asked: dict[str, list[Step]]) -> None:
    """Note on a module how its initial values were asked for, by the names of its parameters."""
    model.__dict__["_exact_initial_values"] = asked


def noted(model: nn.Module) -> dict[str, list[Step]]:
    """What `note` noted; nothing of a module that was not built by rule."""
    asked: dict[str, list[Step]] = model.__dict__.get("_exact_initial_values", {})
    return asked
