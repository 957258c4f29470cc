"""Native convolutions, ReLU and max-pooling on a CPU with the batch innermost in memory, as the exact forms have it.

The products, of a column of the kernel each (reductions.py), and the slices of max-pooling (tiles.py) are the exact forms' own, in
float32. PyTorch's kernels fill blocks of 8 or 16 channels, of which SimpleCNN's first layers have 3 and 6, and its max-pooling before
ReLU would take four times the elements (docs/performance.md has the figures).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from pipeline.numerics import tiles
from pipeline.numerics.later import QUESTIONS, Later
from pipeline.numerics.reductions import ConvolutionByRows, Pair, in_lines

BY_ROWS = ConvolutionByRows()


class Innermost(Later):
    """A float32 tensor [N, C, H, W] with the batch innermost in memory; with a ReLU to come where `rectified`."""

    def __init__(self, source: Tensor, rectified: bool = False) -> None:
        super().__init__(source)
        self.rectified = rectified

    def compute(self) -> Tensor:
        """The tensor in PyTorch's layout, a copy, which may be changed in place."""
        return self.tensor().clone(memory_format=torch.contiguous_format)

    def tensor(self) -> Tensor:
        """The tensor, ReLU included."""
        return torch.relu(self.source) if self.rectified else self.source


def images(pixels: Tensor) -> Tensor:
    """What a model is given for uint8 images [N, C, H, W]: float32 in [0, 1], with the batch innermost. The bytes are put in order."""
    rows = pixels.permute(2, 1, 3, 0).contiguous().float().div_(255)  # [H, C, W, N]
    return Innermost(rows.permute(3, 1, 0, 2)).placeholder() if pixels.numel() else rows.view(pixels.shape)


class BatchInnermost(TorchFunctionMode):
    """Around a model that computes on the CPU: has conv2d, ReLU and max-pooling with the batch innermost where they can be."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in QUESTIONS or torch.compiler.is_compiling():
            return func(*args, **kwargs)
        form = _FORMS.get(func)
        if form is not None and (y := form(*args, **kwargs)) is not None:
            return y
        return func(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor | None:
    """The convolution of x [N, C, H, W]; None where PyTorch must compute it."""
    if x.dim() != 4 or not x.numel() or groups != 1 or isinstance(padding, str) or {x.dtype, weight.dtype} != {torch.float32}:
        return None
    height, width = tiles.pair(padding)
    fits = x.shape[2] + 2 * height >= weight.shape[2] and x.shape[3] + 2 * width >= weight.shape[3]
    if not fits or {*tiles.pair(stride), *tiles.pair(dilation)} != {1}:
        return None
    before = _innermost(x)
    x = before.tensor() if before else _plain(x)
    return Innermost(_Convolution.apply(x, weight, bias, (height, width))).placeholder()


class _Convolution(torch.autograd.Function):
    """X [N, C, H, W], weight [O, C, h, w], bias [O] or None, the padding -> [N, O, H', W']."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair) -> Tensor:
        lines = in_lines(x.permute(2, 1, 3, 0), x.dtype, padding)
        ctx.save_for_backward(lines, weight)
        ctx.padding = padding
        y = BY_ROWS.forward(lines, weight)
        return y if bias is None else y.add_(bias.view(-1, 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (lines, weight), (of_x, of_weight, of_bias, _), (height, width) = ctx.saved_tensors, ctx.needs_input_grad, ctx.padding
        padded = lines.permute(3, 1, 0, 2).shape
        inner = slice(height, padded[2] - height), slice(width, padded[3] - width)
        return (
            BY_ROWS.input_gradient(g, weight, padded)[:, :, *inner] if of_x else None,
            BY_ROWS.weight_gradient(g, lines, weight.shape) if of_weight else None,
            BY_ROWS.bias_gradient(g) if of_bias else None,
            None,
        )


def relu(x: Tensor, inplace: bool = False) -> Tensor | None:
    """ReLU of a tensor with the batch innermost, which waits for the max-pooling that may follow; None of any other."""
    before = _innermost(x)
    if before is None:
        return None
    if inplace:
        before.rectified = True
        return x
    return Innermost(before.source, True).placeholder()


def max_pool2d(x: Tensor, *arguments: Any, **named: Any) -> Tensor | None:
    """Max-pooling of a tensor with the batch innermost, before a ReLU that waits: maxima are a fraction of the elements. Else None."""
    before, k = _innermost(x), tiles.square(*arguments, **named)
    if before is None or k is None:
        return None
    return Innermost(_MaxPooling.apply(before.source, k), before.rectified).placeholder()


class _MaxPooling(torch.autograd.Function):
    """[N, C, H, W] -> the maxima of its tiles of k x k."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        maxima, places = tiles.maxima(x, k)
        ctx.save_for_backward(x, places, maxima)
        return maxima

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        x, places, maxima = ctx.saved_tensors
        return tiles.spread(g, x, places, maxima), None


_FORMS: dict[Any, Any] = {
    torch.conv2d: conv2d,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), relu),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), max_pool2d),
}


def _innermost(x: Tensor) -> Innermost | None:
    """What stands behind x, unless it was used as a plain tensor, which may have changed since."""
    later = Later.of(x)
    return later if isinstance(later, Innermost) and later.value is None else None


def _plain(value: Any) -> Any:
    """`value` with plain tensors in the place of those with the batch innermost; the same tensor each time."""
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    later = Later.of(value) if isinstance(value, Tensor) else None
    if later is None:
        return value
    if later.value is None:
        later.value = later.compute()
    return later.value
