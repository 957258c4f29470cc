"""Native convolutions, ReLU and max-pooling in the layout in memory that oneDNN works in, with blocks of channels innermost.

PyTorch calls the same kernels, but copies each convolution's input into that layout and its output back, and has slower ones of its
own for the rest. Here what a convolution gives stays as it is for the operations that oneDNN has, and becomes a plain tensor for the
first other one: a step takes 0.8 of the time (docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.numerics import tiles
from pipeline.numerics.later import Later

LARGEST = 2.0**126
"""oneDNN's ReLU and max-pooling take NaN for nothing. So they are used only where no value can be as large as this, a quarter of
float32's largest: then nothing overflows, and there is no NaN."""
QUESTIONS = {Tensor.size, Tensor.dim, Tensor.shape.__get__}  # type: ignore[attr-defined]
"""Operations that only ask for a tensor's shape."""


class Blocked(Later):
    """A tensor in blocks, none of whose values is larger than `bound`; with a ReLU to come where `rectified`."""

    def __init__(self, source: Tensor, bound: float, rectified: bool = False) -> None:
        super().__init__(source)
        self.bound, self.rectified = bound, rectified

    def compute(self) -> Tensor:
        """The tensor in PyTorch's layout."""
        return self.blocks().to_dense()

    def blocks(self) -> Tensor:
        """The tensor, ReLU included."""
        return torch.relu(self.source) if self.rectified else self.source


def images(x: Tensor) -> Tensor:
    """What a model is given in the place of float32 images [N, C, H, W] from 0 to 1: the same in blocks, if there are any."""
    return Blocked(x.to_mkldnn(), 1.0).placeholder() if x.numel() else x


class BlockedLayout(TorchFunctionMode):
    """Around a model that computes on the CPU: has conv2d, ReLU and max-pooling in blocks where they can be."""

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
    """The convolution of x [N, C, H, W] in blocks; None where PyTorch must compute it."""
    if x.dim() != 4 or not x.numel() or isinstance(padding, str) or {x.dtype, weight.dtype} != {torch.float32}:
        return None
    before = _blocked(x)
    x = _plain(x) if before is None else x
    largest = before.bound if before else float(x.detach().abs().amax())
    bound = largest * float(weight.detach().abs().sum()) + (0.0 if bias is None else float(bias.detach().abs().amax()))
    if not bound < LARGEST:  # or it is NaN
        return None
    blocks = before.blocks() if before else x.to_mkldnn()
    return Blocked(torch.conv2d(blocks, weight, bias, stride, padding, dilation, groups), bound).placeholder()


def relu(x: Tensor, inplace: bool = False) -> Tensor | None:
    """ReLU of a tensor in blocks, which waits for the max-pooling that may follow; None of any other."""
    before = _blocked(x)
    if before is None:
        return None
    if inplace:
        before.rectified = True
        return x
    return Blocked(before.source, before.bound, True).placeholder()


def max_pool2d(x: Tensor, *arguments: Any, **named: Any) -> Tensor | None:
    """Max-pooling of a tensor in blocks, before a ReLU that waits: the maxima are a fraction of the elements. None of any other."""
    before, k = _blocked(x), tiles.square(*arguments, **named)
    if before is None or k is None:
        return None
    return Blocked(torch.max_pool2d(before.source, k, k), before.bound, before.rectified).placeholder()


_FORMS: dict[Any, Any] = {
    torch.conv2d: conv2d,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), relu),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), max_pool2d),
}


def _blocked(x: Tensor) -> Blocked | None:
    """What stands behind x, unless it was used as a plain tensor, which may have changed since."""
    later = Later.of(x)
    return later if isinstance(later, Blocked) and later.value is None else None


def _plain(value: Any) -> Any:
    """`value` with plain tensors in the place of those in blocks; the same tensor each time."""
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    later = Later.of(value) if isinstance(value, Tensor) else None
    if later is None:
        return value
    if later.value is None:
        later.value = later.compute()
    return later.value
