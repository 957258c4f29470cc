"""How a model's operations are computed, chosen around the model, not inside it: exact, or PyTorch's own (native)."""

from __future__ import annotations

import torch

from pipeline import device as devices
from pipeline.exact import VERSION, hardware, self_test
from pipeline.exact.errors import Imprecise
from pipeline.numerics.exact import Exact
from pipeline.numerics.native import Native
from pipeline.system.errors import UserError

Numerics = Exact | Native


def prepared(device_name: str, name: str, worker: int = 0, workers: int = 1) -> tuple[torch.device, Numerics]:
    """The device that `device_name` is for one of several workers on this machine, prepared, and the numerics called `name` on it.

    Raises:
        UserError: as `device.select`, `device.prepare` and `select` do.
    """
    device = devices.select(device_name, worker, workers)
    devices.prepare(device, workers)
    return device, select(name, device)


def select(name: str, on: torch.device) -> Numerics:
    """The numerics called `name` in params.yaml (`exact-3` counts as exact where that is this version), for a device.

    For exact ones the device's kernels are proved first, which takes milliseconds.

    Raises:
        UserError: the device has no float64, or less precision than exact numerics need, or fails, or the version is another.
    """
    if name == "native":
        return Native()
    if name not in ("exact", VERSION):
        raise UserError(f"numerics '{name}': this version of the pipeline has {VERSION} and native; use the version that made the run")
    if not hardware.has_float64(on):
        raise UserError(f"numerics 'exact' needs float64, which device '{on}' has not; set numerics: native, or device: cpu")
    try:
        with devices.failures_explained(on):
            self_test.check(on)
    except Imprecise as reason:
        raise UserError(f"{reason}, or set numerics: native") from None
    return Exact()
