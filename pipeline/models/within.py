"""What an operation takes besides what it gives: parts that it goes through, margins, and what its exact form copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.exact import registry
from pipeline.exact.arguments import pair, tensors
from pipeline.exact.convolutions import convolution
from pipeline.exact.reductions import TERMS, Convolution
from pipeline.exact.rows import GAP


def places(x: Tensor) -> int:
    """The numbers of a tensor, each of 8 bytes as two, or the rows without any that it has: exact forms keep something of each row."""
    return math.prod(max(1, size) for size in x.shape) * max(1, x.element_size() // 4)


def _of_split(x: Tensor, split_size_or_sections: Any, dim: int = 0, **other: Any) -> int:
    size = split_size_or_sections
    return -(-x.shape[dim] // max(1, size)) if isinstance(size, int) else len(size)


def _with_margins(
    x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> int:
    """Numbers that a convolution's input has with the margins that its padding adds."""
    margins = _padding(weight, padding, dilation)
    return x.shape[:2].numel() * math.prod(size + 2 * each for size, each in zip(x.shape[2:], margins, strict=True))


def _padding(weight: Tensor, padding: Any, dilation: Any) -> tuple[int, int]:
    """A convolution's padding in pixels, where it is named, too."""
    if not isinstance(padding, str):
        return pair(padding)
    high, wide = (-(-each * (size - 1) // 2) for size, each in zip(weight.shape[2:], pair(dilation), strict=True))
    return (high, wide) if padding == "same" else (0, 0)


def _with_margins_of_pool(x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *args: Any, **kwargs: Any) -> int:
    """Numbers that a pool's input has with its margins, and with what its last windows may take beyond them."""
    sides = zip(x.shape[2:], pair(padding), pair(kernel_size), strict=True)
    return x.shape[:2].numel() * math.prod(size + 2 * margin + kernel for size, margin, kernel in sides)


def _of_product(y: Tensor, a: Tensor, b: Tensor) -> int:
    """Numbers of the matrices that a product multiplies, in float64, each spread over the other's leading axes."""
    return 2 * y.shape[:-2].numel() * (a.shape[-2:].numel() + b.shape[-2:].numel()) if min(a.dim(), b.dim()) > 1 else 0


def _of_convolution(
    y: Tensor, x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> int:
    """Numbers that the exact form copies, in float64: the windows, or each row of the input with what lies between rows."""
    if y.dim() != 4:
        return 0
    padding = _padding(weight, padding, dilation)
    way = convolution(pair(stride), padding, pair(dilation), groups, x, weight.shape, TERMS)
    if type(way) is Convolution:
        return 2 * len(y) * y.shape[2:].numel() * x.shape[1] * weight.shape[2:].numel()
    height, width = (size + 2 * margin for size, margin in zip(x.shape[2:], padding, strict=True))
    return int(2 * x.shape[1] * height * (width * len(y) + GAP))


def _of_mean_windows(y: Tensor, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *args: Any, **kwargs: Any) -> int:
    """Numbers that the exact form stacks, in float64: a row of the kernel each, over the whole width, and then a column each."""
    (high, wide), (_, margin) = pair(kernel_size), pair(padding)
    return 2 * (high * y.shape[:3].numel() * (x.shape[3] + 2 * margin) + wide * y.numel())


def _of_adaptive_windows(y: Tensor, x: Tensor, output_size: Any) -> int:
    """The same where windows are of several sizes: sums of rows, over the whole width."""
    return 2 * y.shape[:3].numel() * x.shape[3]


def _of_attention(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> int:
    """Numbers of the weights of an attention, with which native numerics draw a mask and multiply."""
    return 2 * query.shape[:-1].numel() * key.shape[-2]


def _of_heads(query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int, *args: Any, **kwargs: Any) -> int:
    """The same of several heads, of [L, N, E]."""
    return 2 * query.shape[:-1].numel() * num_heads * key.shape[0]


def _of_letters(equation: Any, *operands: Any) -> int:
    """Numbers that an einsum may give on its way: of more than two operands those of all its letters together."""
    if len(given := [*tensors(operands)]) < 3:
        return 0
    letters = equation.split("->")[0].replace(",", "").replace(" ", "")
    return int(math.prod(dict(zip(letters, [n for x in given for n in x.shape], strict=True)).values()))


def _of_pool(x: Tensor, kernel_size: Any, *args: Any, **kwargs: Any) -> int:
    return math.prod(pair(kernel_size))


def _of_adaptive_pool(x: Tensor, output_size: Any, *args: Any, **kwargs: Any) -> int:
    sizes = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    wanted = [size or own for size, own in zip(sizes, x.shape[2:], strict=True)]
    return max(
        math.prod(wanted), math.prod(own // max(1, size) for size, own in zip(wanted, x.shape[2:], strict=True)) if wanted != [1, 1] else 0
    )


MOST_OPERANDS = 8
"""Tensors that an operation takes which joins none: a norm has six."""


def joined(given: Any) -> int:
    """The tensors that an operation joins: those of its arguments, where they are many."""
    return count if (count := sum(1 for _ in tensors(given))) > MOST_OPERANDS else 0


MARGINS: dict[Any, Callable[..., int]] = {
    torch.conv2d: _with_margins, F.max_pool2d: _with_margins_of_pool, F.avg_pool2d: _with_margins_of_pool
}  # fmt: skip
"""Numbers that an operation's input has with its margins."""
COMPOSED: dict[Any, Callable[..., int]] = {
    F.scaled_dot_product_attention: _of_attention, F.multi_head_attention_forward: _of_heads,
    torch.einsum: _of_letters, torch.functional.einsum: _of_letters,
}  # fmt: skip
"""Numbers that an operation which others compute gives on its way."""
TIMES = {
    **dict.fromkeys(("elu", "celu", "selu"), 15),
    **dict.fromkeys(("softmax", "log_softmax", "layer_norm", "group_norm", "instance_norm"), 13),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "bernoulli_"), 11), "normalize": 7,
}  # fmt: skip
"""How many times the numbers that it gives the exact form of an operation takes, measured, where that is most."""
COPIES: dict[Any, Callable[..., int]] = {
    **{operation: lambda y, *args, times=times, **kwargs: times * places(y) for name, times in TIMES.items()
       for operation in registry.FORMS[name][1]},
    torch.conv2d: _of_convolution, F.avg_pool2d: _of_mean_windows, F.adaptive_avg_pool2d: _of_adaptive_windows,
    **dict.fromkeys(registry.FORMS["matmul"][1], _of_product)
}  # fmt: skip
"""Numbers that the exact form of an operation copies, from what it gives and its arguments."""
PARTS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys((torch.roll, Tensor.roll), lambda x, shifts, *dims, **named: len(shifts) if isinstance(shifts, tuple | list) else 1),
    torch.conv2d: lambda x, weight, *other, **named: weight.shape[2:].numel() if weight.shape[1] == 1 else 0,  # of channels
    **dict.fromkeys((torch.unbind, Tensor.unbind), lambda x, dim=0: x.shape[dim]),
    **dict.fromkeys((torch.chunk, Tensor.chunk), lambda x, chunks, dim=0: min(chunks, x.shape[dim])),
    **dict.fromkeys((F.max_pool2d, F.avg_pool2d), _of_pool),
    **dict.fromkeys((F.adaptive_avg_pool2d, F.adaptive_max_pool2d), _of_adaptive_pool),
    **dict.fromkeys((torch.split, Tensor.split, torch.functional.split), _of_split),
}
"""How many parts an operation gives, or goes through one after the other, of its arguments."""
