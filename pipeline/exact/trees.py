"""Sums whose shape is fixed by index: each addition is one IEEE operation in float64, so nothing about a device can change them.

`tree` folds the second half of an axis onto the first until one is left. Over the images of a batch neighbours are paired, so that a worker
with a run of them reduces whole subtrees of its own and sends a few rows (`over_images`).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pipeline.exact.group import Group


def tree(x: Tensor, *dims: int, overwrite: bool = False) -> Tensor:
    """The sum of `x` over `dims`, one after the other in increasing order, float64, without them. Of nothing it is 0.

    Where its values are needed no more, a float64 `x` may be overwritten, which saves a copy of half of it.
    """
    dims = tuple(sorted(dim % x.dim() for dim in dims))
    if not all(x.shape[dim] for dim in dims):
        return x.new_zeros([size for i, size in enumerate(x.shape) if i not in dims], dtype=torch.float64)
    first = next((dim for dim in dims if x.shape[dim] > 1), None)
    if first is None:
        x = x.double()
    elif not (overwrite and x.dtype == torch.float64):  # one pass makes float64 of it, memory of its own and half as long
        kept = (x.shape[first] + 1) // 2
        rest = x.narrow(first, kept, x.shape[first] - kept)
        x = x.narrow(first, 0, kept).to(torch.float64, copy=True)
        x.narrow(first, 0, rest.shape[first]).add_(rest)
    for dim in dims:
        while (n := x.shape[dim]) > 1:
            if n % 2:
                x.narrow(dim, 0, n // 2).add_(x.narrow(dim, n // 2 + 1, n // 2))
                x = x.narrow(dim, 0, n // 2 + 1)
            else:  # the same by fewer calls, which are most of the time of a small tree
                x, rest = x.chunk(2, dim)
                x.add_(rest)
    return x[tuple(0 if i in dims else slice(None) for i in range(x.dim()))]


def over_images(x: Tensor, batch_images: int, group: Group) -> Tensor:
    """The sum of this worker's rows `x` [N, C], float64, and all other workers', as one tree over the batch: [C].

    Neighbours are paired, 2 i and 2 i + 1, level by level; an odd last one goes up as it is. One exchange, none for a group of one.
    """
    if group.count == 1:
        while (n := len(x)) > 1:
            pairs = x[0 : n - n % 2 : 2] + x[1:n:2]
            x = torch.cat((pairs, x[n - 1 :])) if n % 2 else pairs
        return x.sum(0)  # of one row
    mine = _subtrees(*_bounds(group, group.rank, batch_images), batch_images)
    rows = dict(zip(mine, _reduced(x, mine, _bounds(group, group.rank, batch_images)[0], batch_images), strict=True)) if mine else {}
    layout = [node for rank in range(group.count) for node in _subtrees(*_bounds(group, rank, batch_images), batch_images)]
    filled = [rows[node] if node in rows else x.new_zeros(x.shape[1:]) for node in layout]
    total = group.total(torch.stack(filled).flatten()).view(len(layout), *x.shape[1:])
    return _joined(dict(zip(layout, total.unbind(), strict=True)), batch_images)


Node = tuple[int, int]
"""A subtree: its level, and its number there."""


def _bounds(group: Group, rank: int, images: int) -> tuple[int, int]:
    """The run of images of a worker, as Group.share has it."""
    return images * rank // group.count, images * (rank + 1) // group.count


@cache
def _subtrees(low: int, high: int, images: int) -> tuple[Node, ...]:
    """The largest subtrees of the batch's tree that lie within images `low` to `high`, in the order in which `_reduced` finds them."""
    nodes: list[Node] = []
    level = 0
    while low < high:
        if low == 0 and high == images:
            if images == 1:
                return (*nodes, (level, 0))
        else:
            if low % 2:
                nodes.append((level, low))
                low += 1
            if high % 2 and high != images and low < high:
                nodes.append((level, high - 1))
                high -= 1
        low, high, images, level = (low + 1) // 2, (high + 1) // 2, (images + 1) // 2, level + 1
    return tuple(nodes)


def _reduced(x: Tensor, nodes: tuple[Node, ...], low: int, images: int) -> list[Tensor]:
    """The sums of the subtrees `nodes` from this worker's rows, whose first is image `low`."""
    wanted, level = set(nodes), 0
    found: dict[Node, Tensor] = {}
    while len(found) < len(nodes):
        for row in range(len(x)):
            if (level, low + row) in wanted:
                found[level, low + row] = x[row]
        first = low % 2  # a row on the left that has no partner here is a subtree of its own
        x = x[first:]
        low, n = low + first, len(x)
        pairs = x[0 : n - n % 2 : 2] + x[1:n:2]
        x = torch.cat((pairs, x[n - 1 :])) if n % 2 and low + n == images else pairs
        low, images, level = low // 2, (images + 1) // 2, level + 1
    return [found[node] for node in nodes]


def _joined(rows: dict[Node, Tensor], images: int) -> Tensor:
    """The root of the tree over `images` images, from subtrees that cover it."""
    level = 0
    while (level, 0) not in rows or images > 1:
        for number in sorted(number for of, number in rows if of == level):
            if number % 2 == 0 and number + 1 < images:
                rows[level + 1, number // 2] = rows.pop((level, number)) + rows.pop((level, number + 1))
            elif number % 2 == 0:
                rows[level + 1, number // 2] = rows.pop((level, number))
        images, level = (images + 1) // 2, level + 1
    return rows[level, 0]
