"""What another library might do to exact sums: their terms permuted, cut in two, additions contracted.

Trees are left alone: they are additions one by one, whose order is the definition's.
"""

from __future__ import annotations

import random

import torch

from tests.dispatched import Dispatched


class Chaos(Dispatched):
    """Permutes and splits the reduction axis of every matrix product and of every float64 and int64 sum, and rounds contracted."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.shuffled = 0

    def call(self, func, args, kwargs):
        name = func._schema.name
        if name in ("aten::mm", "aten::bmm"):
            return self._product(func, *args)
        if name == "aten::baddbmm_":
            return self._added_products(func, *args)
        if name == "aten::sum" and args[0].dtype in (torch.float64, torch.int64) and len(args) < 3:
            return self._sum(func, *args)
        if name == "aten::index_add_":
            return self._added_by_index(func, *args)
        if name == "aten::add" and kwargs.get("alpha", 1) != 1:  # contracted: one rounding, not two
            self.shuffled += 1
            return torch.add(args[0].double(), args[1].double(), **kwargs).to(args[0].dtype)
        return func(*args, **kwargs)

    def _parts(self, length: int) -> list[list[int]]:
        self.shuffled += 1
        order = list(range(length))
        self.random.shuffle(order)
        cut = self.random.randint(0, length)
        return [part for part in (order[:cut], order[cut:]) if part] or [[]]

    def _product(self, func, a, b):
        return sum(func(a[..., part], b[..., part, :]) for part in self._parts(a.shape[-1]))

    def _added_products(self, func, y, a, b):
        for part in self._parts(a.shape[-1]):
            func(y, a[..., part], b[..., part, :])
        return y

    def _added_by_index(self, func, y, dim, index, x):
        for part in self._parts(len(index)):
            rows = torch.tensor(part, dtype=torch.int64)
            func(y, dim, index[rows], x.index_select(dim, rows))
        return y

    def _sum(self, func, x, dims=None):
        axis = 0 if not dims else self.random.choice(dims)
        parts = [func(x.index_select(axis, torch.tensor(part, dtype=torch.int64)), *[] if dims is None else [dims]) for part in
                 self._parts(x.shape[axis])]  # fmt: skip
        return sum(parts[1:], parts[0])
