"""Exact forms of arithmetic, comparisons and choices, element by element: every operation a float32 rounding of its own.

Python numbers become tensors first, rounded to float32: a kernel that divides by a number may multiply by its reciprocal. The gradient
of an operand that was spread over axes is summed over them: of an activation by trees, of a weight on integers (`SpreadWeight`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.exact import blocks, grid, pixels, transcendental
from pipeline.exact.errors import refusal
from pipeline.exact.sums import Sums
from pipeline.exact.tape import Gradient, Tape
from pipeline.exact.trees import tree

Operand = Tensor | float


def floats(tape: Tape, x: Any, what: str, whole: bool = False) -> Tensor:
    """What to compute with for `x`: float32. Bytes of images become byte / 255; with `whole` constants of whole numbers keep their type."""
    if not isinstance(x, Tensor):
        raise refusal(f"{what} of {type(x).__name__}")
    x = tape.input(x, what)
    assert isinstance(x, Tensor)
    if tape.is_bytes(x):
        return tape.record(pixels.as_floats(x), (x,), lambda g: (None,))
    if x.dtype != torch.float32 and (not whole or tape.of_images(x) or x.dtype.is_floating_point):
        raise refusal(f"{what} of {x.dtype}", "float32")
    return x


def of_any_type(tape: Tape, x: Tensor, what: str) -> Tensor:
    """What to compute with for `x` where no type is refused: bytes of images become byte / 255."""
    x = tape.input(x, what)
    return floats(tape, x, what) if tape.is_bytes(x) else x


def number(like: Tensor, value: float) -> Tensor:
    """A Python number as a tensor beside `like`, of its type, or of float32 where that is one of whole numbers and the number is not."""
    return torch.full((), value, dtype=torch.result_type(like, value), device=like.device)


def spread(tape: Tape, y: Tensor, x: Tensor, g: Tensor) -> Gradient:
    """The gradient of the operand `x` from its product `g`, of y's shape: summed over the axes over which x was spread."""
    if not tape.learns_from(x):
        return None
    if tape.of_images(y) and not tape.of_images(x):
        return SpreadWeight(tape, x, y, g)
    if x.shape == g.shape:
        return g
    beyond = g.dim() - x.dim()
    dims = [*range(beyond), *(i + beyond for i in range(x.dim()) if x.shape[i] == 1 != g.shape[i + beyond])]
    return tree(g, *dims).float().view(x.shape)


class SpreadWeight(Sums):
    """The gradient of a weight that was spread over images and axes: exact sums, on a grid for each element of the weight."""

    def __init__(self, tape: Tape, weight: Tensor, y: Tensor, g: Tensor) -> None:
        """Of `weight`, from the product `g` of the gradient of `y`, of y's shape."""
        shape = [1] * (g.dim() - weight.dim()) + list(weight.shape)
        dims = [i for i, size in enumerate(shape) if size == 1]
        others = [i for i, size in enumerate(shape) if size != 1]
        self.shape = weight.shape
        terms = math.prod(g.shape[i] for i in dims)
        self.g = g.permute(*dims, *others).reshape(terms, weight.numel())  # float32 [terms, elements]
        rows = -(-tape.batch_images * tape.elements(y) // max(1, weight.numel()))
        if rows << grid.OPERAND_BITS > 1 << grid.INT64_BITS:
            raise refusal(f"a sum of {rows} products for a weight of {tuple(weight.shape)}", "a smaller batch")
        self.fit_float64 = rows << grid.OPERAND_BITS <= 1 << grid.FLOAT64_BITS
        self.magnitudes = grid.largest(self.g.abs()).clamp_min_(grid.FLOOR)

    def integers(self, scales: Tensor) -> Tensor:
        """The sums, one an element."""
        placed = grid.place(self.g, scales)
        return (placed.double() if self.fit_float64 else placed.long()).sum(0)

    def round(self, sums: Tensor, units: Tensor) -> list[Tensor]:
        """The gradient."""
        return [sums.float().mul_(units).view(self.shape)]


def _binary(name: str, compute: Callable[[Tensor, Tensor], Tensor], gradients: Callable[..., tuple[Callable[[], Tensor], ...]]) -> Any:
    """A form of two operands, spread over each other's axes.

    `gradients(g, a, b, y)` gives, for each operand, what computes its product with the gradient, of y's shape.
    """

    def form(tape: Tape, a: Operand, b: Operand, **named: Any) -> Tensor:
        if named.pop("alpha", 1) != 1 or named:
            raise refusal(f"{name} with {', '.join(named) or 'a factor'}", f"{name} of two operands")
        a, b = (floats(tape, x, name, whole=True) if isinstance(x, Tensor) else x for x in (a, b))
        given = [x for x in (a, b) if isinstance(x, Tensor)]
        if not given or not all(isinstance(x, Tensor | int | float) for x in (a, b)):
            raise refusal(f"{name} of {type(a).__name__} and {type(b).__name__}")
        float32 = [x for x in given if x.dtype == torch.float32]
        if not float32 and (len(given) == 2 or name != "division"):
            return compute(a, b)  # type: ignore[arg-type]  # constants of integers: PyTorch's own, which do not round
        like = (float32 or given)[0]
        tape.check_alike(name, a, b)
        x, other = (_as_float32(each, like) for each in (a, b))
        y = compute(x, other)

        def backward(g: Tensor) -> tuple[Gradient, ...]:
            return tuple(
                spread(tape, y, operand, product()) if tape.learns_from(operand) else None
                for operand, product in zip((x, other), gradients(g, x, other, y), strict=True)
            )

        return tape.lay(tape.record(y, (x, other), backward), axis_of_spread(tape, y, x, other))

    form.__doc__ = f"The exact form of {name}."
    return form


def axis_of_spread(tape: Tape, y: Tensor, *operands: Tensor) -> int | None:
    """The images' axis of `y`, over which operands are spread: they are aligned at their last axes."""
    return next((axis + y.dim() - x.dim() for x in operands if (axis := tape.axis(x)) is not None), None)


def _as_float32(x: Operand, like: Tensor) -> Tensor:
    """`x` itself if it is a float32 tensor; a constant of another type, or a number, as one."""
    if not isinstance(x, Tensor):
        return torch.full((), x, dtype=torch.float32, device=like.device)
    if not x.dim():  # kernels of a GPU may multiply by the reciprocal of a number in the CPU's memory
        x = x.to(like.device)
    return x if x.dtype == torch.float32 else x.float()


add = _binary("addition", torch.add, lambda g, a, b, y: (lambda: g, lambda: g))
subtract = _binary("subtraction", torch.sub, lambda g, a, b, y: (lambda: g, lambda: g.neg()))
multiply = _binary("multiplication", torch.mul, lambda g, a, b, y: (lambda: g * b, lambda: g * a))
# a zero that divides counts as +0: its sign may differ between kernels
divide = _binary("division", lambda a, b: a / (b + 0), lambda g, a, b, y: (lambda: g / (b + 0), lambda: (g * y / (b + 0)).neg_()))
maximum = _binary("maximum", torch.maximum, lambda g, a, b, y: (lambda: g * (a >= b), lambda: g * (b > a)))
minimum = _binary("minimum", torch.minimum, lambda g, a, b, y: (lambda: g * (a <= b), lambda: g * (b < a)))


def reverse_subtract(tape: Tape, a: Operand, b: Operand) -> Tensor:
    """The exact form of b - a."""
    return subtract(tape, b, a)  # type: ignore[no-any-return]


def reverse_divide(tape: Tape, a: Operand, b: Operand) -> Tensor:
    """The exact form of b / a."""
    return divide(tape, b, a)  # type: ignore[no-any-return]


def unary(name: str, compute: Callable[..., Tensor], gradient: Callable[..., Tensor], whole: str = "refused") -> Any:
    """A form of one operand and numbers: `compute(x, *numbers)`, `gradient(g, x, y, *numbers)`.

    A constant of whole numbers is "refused", "kept" as it is, or first "rounded" to float32, as PyTorch does each.
    """

    def form(tape: Tape, x: Tensor, *numbers: Any) -> Tensor:
        x = floats(tape, x, name, whole != "refused")
        if whole == "rounded":
            x = _as_float32(x, x)
        y = compute(x, *numbers)
        return tape.record(y, (x,), lambda g: (gradient(g, x, y, *numbers) if tape.learns_from(x) else None,))

    form.__doc__ = f"The exact form of {name}."
    return form


def chosen(condition: Tensor, g: Tensor) -> Tensor:
    """The gradient `g` where the condition holds, else 0."""
    return torch.where(condition, g, torch.zeros_like(g))


def in_double(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of float64 for float32, rounded once."""
    return lambda x: blocks.elementwise(lambda part: function(part.double()), x)


exp = unary("exp", in_double(transcendental.exp_of_any), lambda g, x, y: g * y, "rounded")
log = unary("log", in_double(transcendental.log_of_any), lambda g, x, y: g / (x + 0), "rounded")
sqrt = unary("sqrt", transcendental.square_root, lambda g, x, y: g / (y + y + 0), "rounded")
absolute = unary("abs", torch.abs, lambda g, x, y: g * x.sign(), "kept")
negative = unary("negation", torch.neg, lambda g, x, y: g.neg(), "kept")
square = unary("square", lambda x: x * x, lambda g, x, y: g * (x + x), "kept")
_clamped = unary(
    "clamp",
    lambda x, low, high: x.clamp(low, high),
    lambda g, x, y, low, high: chosen(
        (x >= (-torch.inf if low is None else low)).logical_and(x <= (torch.inf if high is None else high)), g
    ),
    "kept",
)


def clamp(tape: Tape, x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """The exact form of torch.clamp by numbers."""
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        raise refusal("clamp by tensors", "clamp by numbers")
    return _clamped(tape, x, min, max)  # type: ignore[no-any-return]


def clamp_min(tape: Tape, x: Tensor, min: float) -> Tensor:
    """The exact form of torch.clamp_min."""
    return clamp(tape, x, min)


def power(tape: Tape, x: Tensor, exponent: float) -> Tensor:
    """The exact form of a power: whole ones from 1 to 8 by repeated multiplication, from the left; 0.5 is sqrt."""
    if isinstance(exponent, Tensor) or exponent not in (0.5, *range(1, 9)):
        raise refusal(f"a power of {exponent}", "0.5 and the whole numbers from 1 to 8")
    if exponent == 0.5:
        return sqrt(tape, x)  # type: ignore[no-any-return]
    x = floats(tape, x, "a power", whole=True)
    if exponent == 1:
        return multiply(tape, x, 1.0)  # type: ignore[no-any-return]  # a tensor of its own
    y = x
    for _ in range(int(exponent) - 1):
        y = multiply(tape, y, x)
    return y


def where(tape: Tape, condition: Tensor, a: Operand, b: Operand) -> Tensor:
    """The exact form of torch.where: nothing rounds."""
    condition = tape.input(condition, "where")
    like = next((each for each in (a, b) if isinstance(each, Tensor)), torch.empty((), device=condition.device))
    tape.check_alike("where", condition, a, b)
    a, b = (floats(tape, x, "where", whole=True) if isinstance(x, Tensor) else number(like, x) for x in (a, b))
    y = torch.where(condition, a, b)

    def backward(g: Tensor) -> tuple[Gradient, ...]:
        return (None, spread(tape, y, a, chosen(condition, g)), spread(tape, y, b, chosen(~condition, g)))

    return tape.lay(tape.record(y, (condition, a, b), backward), axis_of_spread(tape, y, condition, a, b))


def where_of(tape: Tape, a: Tensor, condition: Tensor, b: Operand) -> Tensor:
    """The exact form of Tensor.where."""
    return where(tape, condition, a, b)


def masked_fill(tape: Tape, x: Tensor, mask: Tensor, value: float) -> Tensor:
    """The exact form of Tensor.masked_fill."""
    if isinstance(value, Tensor):
        raise refusal("masked_fill with a tensor", "a number")
    x, mask = floats(tape, x, "masked_fill", whole=True), tape.input(mask, "masked_fill")
    tape.check_alike("masked_fill", x, mask, value)
    y = x.masked_fill(mask, value)
    tape.record(y, (x, mask), lambda g: (spread(tape, y, x, chosen(~mask, g)), None))
    return tape.lay(y, axis_of_spread(tape, y, x, mask))


def compare(operation: Callable[[Any, Any], Tensor]) -> Any:
    """The form of a comparison: its result is no number that anybody learns from."""

    def form(tape: Tape, a: Operand, b: Operand) -> Tensor:
        a, b = (of_any_type(tape, x, "a comparison") if isinstance(x, Tensor) else x for x in (a, b))
        tensors = [x for x in (a, b) if isinstance(x, Tensor)]
        tape.check_alike("a comparison", a, b)
        y = tape.record(operation(a, b), tensors, lambda g: [None] * len(tensors))
        return tape.lay(y, axis_of_spread(tape, y, *tensors))

    form.__doc__ = "The exact form of a comparison."
    return form


def total(tape: Tape, x: Tensor, dims: Sequence[int]) -> Tensor:
    """The sum over axes, as trees, rounded once to float32: float32, without these axes."""
    y = tree(x, *dims).float()

    def backward(g: Tensor) -> tuple[Tensor]:
        for dim in sorted(d % x.dim() for d in dims):
            g = g.unsqueeze(dim)
        return (g.expand(x.shape),)

    return tape.record(y, (x,), backward)
