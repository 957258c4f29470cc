"""Max-pooling over k x k tiles (stride k, no padding) by slices: on a CPU a fraction of the time of PyTorch's kernel.

Comparisons, and products with 0 and 1: nothing rounds. Each place in the tiles is one tensor, a view where its runs in memory are
long, else a contiguous copy.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from pipeline.exact.arguments import pair


def maxima(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """X float32 [N, C, H, W] -> the maximum of each tile [N, C, H // k, W // k], and the tiles, which `spread` needs.

    The maxima lie in memory in x's order of dimensions where the batch is innermost.
    """
    tiles = places(x, k) if x.stride(0) == 1 else places(x, k).contiguous()
    rows = reduce(torch.maximum, tiles.unbind())  # [k, ...]
    return reduce(torch.maximum, rows.unbind()), tiles


def spread(gradient: Tensor, x: Tensor, tiles: Tensor, y: Tensor) -> Tensor:
    """The gradient of x: that of each tile goes to the first maximum in row-major order."""
    k, batch_last = len(tiles), x.stride(0) == 1
    covered = x.shape[2] % k == x.shape[3] % k == 0
    d_x = torch.empty_like(x) if covered else torch.zeros_like(x)
    (*of_x, _), (*of_d_x, last) = _in_order(tiles), _in_order(places(d_x, k))
    beside = torch.empty_like(y)  # contiguous, where the places of d_x are not
    rest = last if batch_last else torch.empty_like(y)
    left = gradient if gradient.stride() == y.stride() else rest.copy_(gradient)  # what no place has taken yet
    for of_place, d_place in zip(of_x, of_d_x, strict=True):
        taken = d_place if batch_last else beside
        torch.eq(of_place, y, out=taken).mul_(left)  # 0 or 1 in float32: the comparison's fastest form
        if not batch_last:
            d_place.copy_(taken)
        left = torch.sub(left, taken, out=rest)
    if left is not last:
        last.copy_(left)
    return d_x


def _in_order(tiles: Tensor) -> list[Tensor]:
    """Tiles [k, k, ...] -> the k * k places, row by row."""
    return [place for row in tiles.unbind() for place in row.unbind()]


def places(x: Tensor, k: int) -> Tensor:
    """A view of x [N, C, H, W] as [k, k, N, C, H // k, W // k]: the places in the tiles first."""
    return x.unfold(2, k, k).unfold(3, k, k).permute(4, 5, 0, 1, 2, 3)


def square(kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False) -> int | None:
    """The side of the tiles, from the arguments of torch.nn.functional.max_pool2d; None if its windows are not such tiles."""
    sides = pair(kernel_size)
    plain = stride is None or pair(stride) == sides
    return sides[0] if (
        sides[0] == sides[1] and plain and pair(padding) == (0, 0) and pair(dilation) == (1, 1) and not ceil_mode
    ) else None  # fmt: skip
