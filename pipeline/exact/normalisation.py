"""Exact forms of what takes means over axes: batch, layer, group and instance norm, softmax, means and sums.

Every sum is a tree of float64 additions (trees.py). Batch norm's over the images takes one exchange between workers, forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.exact import arithmetic, blocks, hardware, transcendental
from pipeline.exact.arguments import check_from, check_shape
from pipeline.exact.errors import refusal
from pipeline.exact.tape import Gradient, Tape
from pipeline.exact.trees import over_images, tree


def batch_norm(
    tape: Tape, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """The exact form of batch_norm, for x [N, C, ...]: in training over the whole batch of all workers."""
    x = arithmetic.floats(tape, x, "batch_norm")
    if x.dim() < 2 or tape.axis(x) != 0:
        raise refusal(f"batch_norm of {x.dim()} dimensions, or where the images are not the first axis", "the images first")
    check_shape("batch_norm", (x.shape[1],), running_mean, running_var, weight, bias)
    rows = tape.elements(x) // max(1, math.prod(x.shape[1:]))  # of x for each image
    count = tape.batch_images * rows * math.prod(x.shape[2:])
    learning = training and tape.learns
    if training and not tape.learns:
        raise refusal("batch_norm in training mode where nothing is learnt", "model.eval()")
    if learning and count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(x.shape)}")

    some = hardware.channels_at_once(x)

    def per_channel(*products: Callable[[slice], Tensor]) -> Sequence[Tensor]:
        """Sums over places, images and workers of what each gives of some channels: float64 [C] each, by one exchange."""
        sums = torch.cat([tree(product(channels), *range(2, x.dim()), overwrite=True) for product in products for channels in some], 1)
        if rows > 1:
            sums = tree(sums.unflatten(0, (-1, rows)), 1)
        return over_images(sums, tape.batch_images, tape.group).tensor_split(len(products))

    def affine(a: Tensor, b: Tensor, *more: tuple[Tensor, Tensor]) -> Tensor:
        """X times a, plus b, plus each other tensor times its factor, by channel: some channels at a time, which stay in the caches."""
        y = torch.empty_like(x)
        of_a, of_b, *factors = (by_channel(values, x) for values in (a, b, *(factor for _, factor in more)))
        for channels in some:
            part = torch.mul(x[:, channels], of_a[:, channels], out=y[:, channels]).add_(of_b[:, channels])
            for (other, _), factor in zip(more, factors, strict=True):
                part.add_(other[:, channels] * factor[:, channels])
        return y

    if any(t is not None and tape.of_images(t) for t in (weight, bias, running_mean, running_var)):
        raise refusal("batch_norm with a weight, bias or statistics that were made from the images", "a norm, then a product and a sum")
    given = [None if t is None else tape.input(t, "batch_norm") for t in (weight, bias)]
    gamma, beta = (None if t is None else t.double() for t in given)
    n = torch.full((x.shape[1],), float(count), dtype=torch.float64, device=x.device)
    if learning:
        s1, s2 = per_channel(lambda part: x[:, part], lambda part: (of := x[:, part].double()).mul_(of))
        mean = s1 / n
        var = (s2 / n - mean * mean).clamp_min_(0)
        if running_mean is not None and running_var is not None:
            kept, new = (arithmetic.number(running_mean, value) for value in (1 - momentum, momentum))
            running_mean.copy_(running_mean * kept + mean.float() * new)
            running_var.copy_(running_var * kept + (var * (n / (n - 1))).float() * new)
    else:
        if running_mean is None or running_var is None:
            raise refusal("batch_norm without running statistics in evaluation", "track_running_stats=True")
        mean, var = running_mean.double(), running_var.double()
    inverse = 1 / transcendental.square_root(var + eps)
    a = inverse if gamma is None else gamma * inverse
    b = -(mean * a) if beta is None else beta - mean * a
    y = affine(a, b)

    def backward(g: Tensor) -> list[Gradient]:
        s0, s1 = per_channel(lambda part: g[:, part], lambda part: g[:, part].double().mul_(x[:, part]))
        sh = (s1 - mean * s0) * inverse
        gradients: list[Gradient] = [None, *(each.float() for each, t in ((sh, weight), (s0, bias)) if t is not None)]
        if tape.learns_from(x):
            if learning:
                slope = (a * inverse) * (sh / n)
                constant = slope * mean - a * (s0 / n)
                gradients[0] = affine(-slope, constant, (g, a))
            else:
                gradients[0] = g * by_channel(a, x)
        return gradients

    return tape.record(y, [x, *(t for t in given if t is not None)], backward)


def by_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values [C], rounded to float32, in the shape [1, C, 1, ...] of `x` [N, C, ...]."""
    return values.float().view(1, -1, *[1] * (x.dim() - 2))


def normalised(tape: Tape, x: Tensor, axes: int, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the last `axes` axes: mean and variance by tree, in two passes."""
    x = arithmetic.floats(tape, x, "a norm")
    dims = range(-axes, 0)
    tape.check_within_images(x, dims, "a norm")
    n = torch.full((), float(math.prod(x.shape[x.dim() - axes :])), dtype=torch.float64, device=x.device)

    def mean(x: Tensor) -> Tensor:
        return (tree(x, *dims) / n)[(..., *[None] * axes)]

    inverses: list[Tensor] = []

    def of_rows(x: Tensor) -> Tensor:
        from_mean = (of_x := x.double()) - mean(of_x)
        inverses.append(1 / transcendental.square_root(mean(from_mean * from_mean) + eps))
        return from_mean.mul_(inverses[-1])

    apart = x.dim() > axes
    y = blocks.by_rows(of_rows, x, apart=apart)
    inverse = torch.cat(inverses)

    def gradient(g: Tensor, y: Tensor, inverse: Tensor) -> Tensor:
        of_g, of_y = g.double(), y.double()
        return ((of_g - mean(of_g)) - of_y * mean(of_g * of_y)) * inverse

    return tape.record(y, (x,), lambda g: (blocks.by_rows(gradient, g, y, inverse, apart=apart),))


def _affine(tape: Tape, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = arithmetic.multiply(tape, x, weight)
    return x if bias is None else arithmetic.add(tape, x, bias)


def layer_norm(tape: Tape, x: Tensor, normalized_shape: Sequence[int] | int, weight: Tensor | None = None, bias: Tensor | None = None,
               eps: float = 1e-5) -> Tensor:  # fmt: skip
    """The exact form of layer_norm."""
    shape = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
    if not shape or list(x.shape[x.dim() - len(shape) :]) != shape:
        raise RuntimeError(f"layer_norm: normalized_shape={shape}, but the input is {list(x.shape)}")
    check_shape("layer_norm", tuple(shape), weight, bias)
    return _affine(tape, normalised(tape, x, len(shape), eps), weight, bias)


def group_norm(tape: Tape, x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
               eps: float = 1e-5) -> Tensor:  # fmt: skip
    """The exact form of group_norm."""
    x = arithmetic.floats(tape, x, "group_norm")
    check_from(1, "group_norm in groups", num_groups)
    check_shape("group_norm", (x.shape[1],), weight, bias)
    if x.shape[1] % num_groups:
        raise RuntimeError(f"group_norm: {x.shape[1]} channels cannot be parted into {num_groups} groups")
    parted = (x.shape[0], num_groups, x.shape[1] // num_groups, *x.shape[2:])
    grouped = tape.record(x.reshape(parted), (x,), lambda g: (g.reshape(x.shape),))
    y = normalised(tape, grouped, len(parted) - 2, eps)
    y = tape.record(y.reshape(x.shape), (y,), lambda g: (g.reshape(parted),))
    weight, bias = (None if t is None else _channels_first(tape, t, x) for t in (weight, bias))
    return _affine(tape, y, weight, bias)


def _channels_first(tape: Tape, t: Tensor, x: Tensor) -> Tensor:
    t = tape.input(t, "a norm")
    return tape.record(t.view(-1, *[1] * (x.dim() - 2)), (t,), lambda g: (g.flatten(),), shares=t)


def instance_norm(
    tape: Tape, x: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """The exact form of instance_norm without running statistics: a group a channel."""
    if running_mean is not None or not use_input_stats:
        raise refusal("instance_norm with running statistics", "track_running_stats=False")
    return group_norm(tape, x, x.shape[1], weight, bias, eps)


def softmax(tape: Tape, x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """The exact form of softmax over one axis."""
    return _softmax(tape, x, dim, dtype or _stacklevel, "softmax")


def log_softmax(tape: Tape, x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """The exact form of log_softmax over one axis."""
    return _softmax(tape, x, dim, dtype or _stacklevel, "log_softmax")


def _softmax(tape: Tape, x: Tensor, dim: int | None, dtype: torch.dtype | int, what: str) -> Tensor:
    if dim is None or (isinstance(dtype, torch.dtype) and dtype != torch.float32):  # given by place, it is where others have a number
        raise refusal(f"{what} with dim={dim}, dtype={dtype}", "one dim, float32")
    x = arithmetic.floats(tape, x, what)
    tape.check_within_images(x, (dim,), what)
    if not x.shape[dim] and x.dim():
        raise refusal(f"{what} over no numbers", "at least one")

    def exponentials(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers less the largest, their exponentials, and the sums of these."""
        z = x.double()
        z = z - z.amax(dim, keepdim=True)
        e = transcendental.exp(z)
        return z, e, tree(e, dim).unsqueeze(dim)

    if what == "log_softmax":
        z, e, total = exponentials(x)
        p = e / total
        y = (z - transcendental.log(total)).float()
        return tape.record(y, (x,), lambda g: ((g.double() - p * tree(g, dim).unsqueeze(dim)).float(),))

    def of_rows(x: Tensor) -> Tensor:
        _, e, total = exponentials(x)
        return e / total

    def gradient(g: Tensor, y: Tensor) -> Tensor:
        of_g, p = g.double(), y.double()
        return (of_g - tree(of_g * p, dim).unsqueeze(dim)) * p

    apart = x.dim() > 0 and dim % x.dim() != 0
    y = blocks.by_rows(of_rows, x, apart=apart)
    return tape.record(y, (x,), lambda g: (blocks.by_rows(gradient, g, y, apart=apart),))


def axes(x: Tensor, dim: int | Sequence[int] | None, what: str) -> list[int]:
    """The axes of x that `what` is asked to work along, in order."""
    if dim is None or (isinstance(dim, Sequence) and not dim):
        raise refusal(f"{what} over all axes, and so over images", "the axes of an image")
    dims = [dim] if isinstance(dim, int) else list(dim)
    if wrong := [d for d in dims if not -x.dim() <= d < x.dim()]:
        raise IndexError(f"dimension out of range (expected to be in range of [{-x.dim()}, {x.dim() - 1}], but got {wrong[0]})")
    found = sorted(d % x.dim() for d in dims)
    if twice := [a for a, b in pairwise(found) if a == b]:
        raise RuntimeError(f"dim {twice[0]} appears multiple times in the list of dims")
    return found


def mean(tape: Tape, x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The exact form of a mean over axes."""
    x = arithmetic.floats(tape, x, "a mean")
    dims = axes(x, dim, "a mean")
    return _reduced(tape, x, dims, keepdim, float(math.prod(x.shape[d] for d in dims)))


def total(tape: Tape, x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The exact form of a sum over axes."""
    x = arithmetic.floats(tape, x, "a sum")
    return _reduced(tape, x, axes(x, dim, "a sum"), keepdim, None)


def _reduced(tape: Tape, x: Tensor, dims: list[int], keepdim: bool, count: float | None) -> Tensor:
    tape.check_within_images(x, dims, "a mean or sum")
    sums = tree(x, *dims)
    y = (sums if count is None else sums / arithmetic.number(sums, count)).float()
    axis = tape.axis(x)
    if axis is not None and not keepdim:
        axis -= sum(d < axis for d in dims)
    kept = [1 if i in dims else size for i, size in enumerate(x.shape)]

    def backward(g: Tensor) -> tuple[Tensor]:
        g = g if count is None else g / arithmetic.number(g, count)
        return (g.view(kept).expand(x.shape),)

    return tape.lay(tape.record(y.view(kept) if keepdim else y, (x,), backward), axis)


def normalize(tape: Tape, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    """The exact form of torch.nn.functional.normalize for p = 2."""
    if p != 2.0 or out is not None or not isinstance(dim, int):
        raise refusal(f"normalize with p={p}, dim={dim}", "p=2, one dimension")
    x = arithmetic.floats(tape, x, "normalize")
    tape.check_within_images(x, (dim,), "normalize")
    of_x = x.double()
    length = transcendental.square_root(tree(of_x * of_x, dim).float()).unsqueeze(dim)

    def backward(g: Tensor) -> tuple[Tensor]:
        return (x * (g / length).masked_fill_(length == 0, 0),)

    tape.record(length, (x,), backward)
    return arithmetic.divide(tape, x, arithmetic.clamp(tape, length, min=eps))  # type: ignore[no-any-return]
