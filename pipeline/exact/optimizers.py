"""SGD, Adam and AdamW as torch.optim defines them, each operation an IEEE rounding of its own, so the same bits on every device.

They are used as torch.optim's are: `exact.SGD(model.parameters(), lr=0.1, momentum=0.9)`. What torch.optim computes with `addcmul`,
`addcdiv`, `lerp` or an alpha may be contracted into one rounding on one device and not on another; none of them stands here.
Hyperparameters are rounded to the weights' type. A learning rate may be a tensor on the weights' device, which a captured CUDA graph
reads at each step. Weights and gradients that are float64 give float64's results.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.exact import blocks
from pipeline.exact.transcendental import square_root

SNAP = 2.0**-64
"""Weights, velocities and first moments up to this become zero, so the state holds no subnormal and no negative zero."""
SNAP_SQUARES = 2.0**-100
"""The same for second moments, which are squares."""
_POWERS = "beta_powers"


class _Optimizer(torch.optim.Optimizer):
    """What all have in common: a step over the parameters that have a gradient; the others stay as they are."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        for group in self.param_groups:
            for name, value in group.items():
                if name not in ("params", "nesterov", "param_names"):
                    _check(name, value)
            for parameter in group["params"]:
                self.state[parameter].update(self._initial(parameter))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim's, without loading torch.compile's 700 modules, which takes as long as PyTorch itself."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def _initial(self, parameter: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def _advance(self, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """What changes once a step, before the weights do."""

    def _update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """The step of some weights: each depends on its own gradient and state alone."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; the loss of `closure`, where one is given, which computes them first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if not self.state[parameter]:  # added later, by add_param_group
                        self.state[parameter].update(self._initial(parameter))
                    self._advance(self.state[parameter], group)
                    self._in_blocks(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def _in_blocks(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """`_update`, so many weights at a time as stay in a CPU's caches."""
        given = {"parameter": parameter, "gradient": gradient, **state, **{k: v for k, v in group.items() if isinstance(v, Tensor)}}
        whole = {name: tensor for name, tensor in given.items() if tensor.shape == parameter.shape}
        if not blocks.are_worth_it(parameter) or not all(each.is_contiguous() for each in whole.values()):
            self._update(parameter, gradient, state, group)
            return
        for parts in zip(*(each.view(-1).split(blocks.size()) for each in whole.values()), strict=True):
            some = dict(zip(whole, parts, strict=True))
            self._update(some["parameter"], some["gradient"], {**state, **some}, {**group, **some})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch.optim's, which rounds every float of a state to the parameter's type: powers of beta stay float64."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            if (powers := state_dict["state"].get(number, {}).get(_POWERS)) is not None:
                self.state[parameter][_POWERS] = powers.detach().clone().to(parameter.device)


class SGD(_Optimizer):
    """SGD with momentum, as torch.optim.SGD with dampening 0.

    Args:
        params: parameters, or groups of them, as torch.optim takes them.
        lr: the rate, a number or a 0-dim tensor on the parameters' device.
        momentum: at least 0.
        weight_decay: times the weight is added to the gradient; a number, or a tensor of the parameter's shape with one for each weight.
        nesterov: whether to look ahead by one velocity.

    Raises:
        ValueError: a hyperparameter is out of range.
    """

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-3, momentum: float = 0.0, weight_decay: float | Tensor = 0.0, *,
        nesterov: bool = False,
    ) -> None:  # fmt: skip
        if nesterov and momentum <= 0:
            raise ValueError("Nesterov momentum requires a momentum above 0")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def _initial(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(parameter)}

    def _update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        momentum, velocity = _number(group["momentum"], parameter), state["momentum_buffer"]
        gradient = _with_decay(gradient, parameter, group["weight_decay"])
        torch.add(velocity * momentum, gradient, out=velocity)
        velocity.copy_(F.hardshrink(velocity, SNAP))
        direction = velocity * momentum + gradient if group["nesterov"] else velocity
        parameter.copy_(F.hardshrink(parameter - direction * _number(group["lr"], parameter), SNAP))


class Adam(_Optimizer):
    """Adam, as torch.optim.Adam: the weight decay is added to the gradient.

    Args:
        params: parameters, or groups of them, as torch.optim takes them.
        lr: the rate, a number or a 0-dim tensor on the parameters' device.
        betas: of the two moments' running means, from 0 to below 1.
        eps: added to the square root of the second moment.
        weight_decay: a number, or a tensor of the parameter's shape with one for each weight.

    Raises:
        ValueError: a hyperparameter is out of range.

    Source: Kingma and Ba, https://arxiv.org/abs/1412.6980.
    """

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float | Tensor = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _initial(self, parameter: Tensor) -> dict[str, Tensor]:
        ones = torch.ones(2, dtype=torch.float64, device=parameter.device)
        return {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter), _POWERS: ones}

    def _decayed(self, parameter: Tensor, gradient: Tensor, rate: Tensor, weight_decay: float | Tensor) -> tuple[Tensor, Tensor]:
        """The weights and the gradient to go on with."""
        return parameter, _with_decay(gradient, parameter, weight_decay)

    def _advance(self, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        for power, beta in zip(state[_POWERS].unbind(), group["betas"], strict=True):
            power.mul_(torch.full_like(power, beta))

    def _update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        first, second, powers = state["exp_avg"], state["exp_avg_sq"], state[_POWERS]
        rate = _number(group["lr"], parameter)
        weights, gradient = self._decayed(parameter, gradient, rate, group["weight_decay"])
        torch.add(first * _number(beta1, parameter), gradient * _number(1 - beta1, parameter), out=first)
        first.copy_(F.hardshrink(first, SNAP))
        torch.add(second * _number(beta2, parameter), (gradient * gradient) * _number(1 - beta2, parameter), out=second)
        second.copy_(F.hardshrink(second, SNAP_SQUARES))
        corrections = torch.ones_like(powers) - powers  # float64 [2]
        step_size = (rate.double() / corrections[0]).to(parameter.dtype)
        denominator = square_root(second) / square_root(corrections[1].to(parameter.dtype)) + _number(group["eps"], parameter)
        parameter.copy_(F.hardshrink(weights - (first / denominator) * step_size, SNAP))


class AdamW(Adam):
    """AdamW, as torch.optim.AdamW: the weights themselves decay. The arguments are Adam's.

    Source: Loshchilov and Hutter, https://arxiv.org/abs/1711.05101.
    """

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float | Tensor = 1e-2,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay)

    def _decayed(self, parameter: Tensor, gradient: Tensor, rate: Tensor, weight_decay: float | Tensor) -> tuple[Tensor, Tensor]:
        if _is_zero(weight_decay):
            return parameter, gradient
        decay = rate.double() * _number(weight_decay, parameter.double() if isinstance(weight_decay, Tensor) else rate.double())
        return parameter * (torch.ones_like(decay) - decay).to(parameter.dtype), gradient


def _number(value: float | Tensor, like: Tensor) -> Tensor:
    """A hyperparameter in the type of `like`, on its device, without a copy that a CUDA graph could not hold."""
    return value.to(like.dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=like.dtype, device=like.device)


def _is_zero(value: float | Tensor) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _with_decay(gradient: Tensor, weights: Tensor, weight_decay: float | Tensor) -> Tensor:
    return gradient if _is_zero(weight_decay) else gradient + weights * _number(weight_decay, weights)


def _check(name: str, value: Any) -> None:
    """Raise ValueError for a hyperparameter that is out of range."""
    numbers = value if isinstance(value, tuple | list) else () if isinstance(value, Tensor) else (value,)
    if not all(0 <= number < (1 if name == "betas" else torch.inf) for number in numbers):
        raise ValueError(f"Invalid {name}: {value}")
