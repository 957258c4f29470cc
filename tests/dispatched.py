"""Tests that look at, or change, the operations that PyTorch's dispatcher calls."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Dispatched(TorchDispatchMode):
    """Hands each operation to `call`; in the place of one that PyTorch makes of others, which comes here in inference mode, the others."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        return self.call(func, args, kwargs or {}) if result is NotImplemented else result

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the operation gives."""
        raise NotImplementedError


class Names(Dispatched):
    """Collects the operations' names."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def call(self, func, args, kwargs):
        self.called.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **kwargs)
