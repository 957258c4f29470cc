"""How a network becomes data: it is computed with a mode around it that notes each operation.

Two passes of two images and three must give the same operations; where their numbers differ, they are the number of images.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from pipeline.exact import initialisation, registry
from pipeline.exact.arguments import tensors
from pipeline.models import received
from pipeline.models.bounds import MOST_CALLS
from pipeline.models.recorded import DTYPES, LAYOUTS, NAMES, Graph, Held, Recorded, Recording, Unrecorded
from pipeline.params import Model
from pipeline.system import schema
from pipeline.system.errors import UserError
from pipeline.workers import ALONE

LIKE = 1e-2
"""How far gradients of PyTorch's own kernels may be from each other, by their length: they may add in another order each time."""
MOST_VALUES = 2**18
"""Numbers of an initial value that no rule gives."""


class Refused(Exception):
    """A network cannot be recorded; says why."""


class _Noting(TorchFunctionMode):
    """Notes the operations that images go through."""

    def __init__(self, images: Tensor, held: dict[int, str]) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[Any], dict[str, Any]]] = []
        self._kept: list[Any] = [images]  # so that no id is another tensor's later
        self._known: dict[int, dict[str, Any]] = {number: {"held": name} for number, name in held.items()} | {id(images): {"value": 0}}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = func(*args, **kwargs)
        if not any(True for _ in tensors(given)) and func is not Tensor.__setitem__:
            if func not in registry.QUESTIONS and any(id(each) in self._known for each in tensors([args, kwargs])):
                raise Refused(f"{_name(func)} asks for the value of a tensor")
            return given
        if func not in NAMES:
            raise Refused(f"{_name(func)} has no exact form")
        if len(self.calls) == MOST_CALLS:
            raise Refused(f"it has more than {MOST_CALLS} operations")
        named = {name: {"device": True} if name == "device" and each is not None else self.encoded(each) for name, each in kwargs.items()}
        self.calls.append((NAMES[func], [self.encoded(each) for each in args], named))
        self._know(given, [len(self.calls)])
        return given

    def _know(self, given: Any, path: list[int]) -> None:
        self._kept.append(given)
        if isinstance(given, Tensor):
            self._known[id(given)] = {"value": path if len(path) > 1 else path[0]}
        elif isinstance(given, list | tuple):
            for place, each in enumerate(given):
                self._know(each, [*path, place])

    def encoded(self, given: Any) -> Any:
        """An argument as `network.json` has it."""
        if isinstance(given, Tensor):
            if (known := self._known.get(id(given))) is None:
                raise Refused(f"a tensor {list(given.shape)} is neither a weight nor a buffer (register_buffer makes one of it)")
            return known
        if given is None or isinstance(given, bool | str):
            return given
        if isinstance(given, int):
            return int(given)
        if isinstance(given, float):
            return given if math.isfinite(given) else {"number": str(given)}
        if isinstance(given, list):
            return [self.encoded(each) for each in given]
        if isinstance(given, tuple):
            return {"tuple": [self.encoded(each) for each in given]}
        if isinstance(given, slice):
            return {"slice": [self.encoded(each) for each in (given.start, given.stop, given.step)]}
        for kind, of in (("dtype", DTYPES), ("memory_format", LAYOUTS)):
            for name, value in of.items():
                if given is value:
                    return {kind: name}
        known = {"device": isinstance(given, torch.device), "ellipsis": given is Ellipsis, "strided": given is torch.strided}
        for kind, here in known.items():
            if here:
                return {kind: True}
        raise Refused(f"an argument is {type(given).__name__}")


class _Watched(nn.Module):
    """A network that notes what it does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.graph = network, Graph([], None)

    def forward(self, images: Tensor) -> Any:
        """As the network's."""
        held = [*self.network.named_parameters(), *self.network.named_buffers()]
        noting = _Noting(images, {id(tensor): name for name, tensor in held})
        with noting:
            given = self.network(images)
        self.graph = Graph(noting.calls, noting.encoded(given))
        return given


def record(network: nn.Module, shape: tuple[int, int, int], numerics: Any, device: torch.device, trained: bool = False) -> bytes:
    """The bytes of `network.json` for a network on a device that was built with initial values by rule, for images of `shape`.

    Of one that cannot be recorded they say why. One that is `trained` is recorded without initial values.
    """
    state = torch.get_rng_state()
    try:
        graphs = [_both(network, training, shape, numerics, device) for training in (True, False)]
        recording = Recording(1, _held(network, trained), *graphs)
        received.check(recording, shape)
        if numerics.version == "native" and not trained:  # exact numerics are tried beside autograd (trial.py)
            _check_learns(network, recording, shape, numerics, device)
        found: Recording | Unrecorded = recording
    except (Refused, ValueError) as reason:
        found = Unrecorded(1, str(reason)[:100])
    finally:
        torch.set_rng_state(state)
    content = msgspec.json.encode(found) + b"\n"
    if len(content) > schema.LARGEST_BYTES:
        return msgspec.json.encode(Unrecorded(1, f"it takes {len(content)} bytes, and {schema.LARGEST_BYTES} are the most")) + b"\n"
    return content


def _both(network: nn.Module, training: bool, shape: tuple[int, int, int], numerics: Any, device: torch.device) -> Graph:
    graphs = []
    for count in (2, 3):
        watched = _Watched(copy.deepcopy(network)).train(training)
        (numerics.heads if training else numerics.logits)(watched, _noise(count, shape, device))
        graphs.append(watched.graph)
    two, three = graphs
    if len(two.calls) != len(three.calls):
        raise Refused(f"of two images it has {len(two.calls)} operations, of three {len(three.calls)}")
    calls = []
    for (name, args, kwargs), (other, *others) in zip(two.calls, three.calls, strict=True):
        if name != other:
            raise Refused(f"{name} of two images is {other} of three")
        calls.append((name, _alike(args, others[0], name), _alike(kwargs, others[1], name)))
    return Graph(calls, _alike(two.gives, three.gives, "what it gives"))


def _noise(count: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    numbers = np.arange(count * math.prod(shape)) * 2654435761 % 2**32 >> 24
    return torch.from_numpy(numbers.astype(np.uint8).reshape(count, *shape)).to(device)


def _check_learns(network: nn.Module, recording: Recording, shape: tuple[int, int, int], numerics: Any, device: torch.device) -> None:
    """Raise Refused where a weight learns otherwise than by the operations: under no_grad, or by a way back of a function's own."""
    again = Recorded(recording).to(device)
    again.load_state_dict(network.state_dict())
    images, labels = _noise(2, shape, device), torch.zeros(2, dtype=torch.int64, device=device)
    found: list[dict[str, Tensor | None]] = []
    for each in (copy.deepcopy(network), again):
        names = [name for name, _ in each.named_parameters()]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            gradients = numerics.loss_and_gradients(each.train(), images, labels, ALONE, 2)[1]
        found.append(dict(zip(names, gradients, strict=True)))
    for name, gradient in found[0].items():
        other = found[1][name]
        if (gradient is None) != (other is None) or (
            gradient is not None and other is not None and not bool((gradient - other).norm() <= LIKE * gradient.norm())
        ):
            raise Refused(f"{name} learns otherwise than its operations say (no_grad, an autograd.Function)")


def check_unchanged(
    before: bytes, network: nn.Module, model: Model, shape: tuple[int, int, int], numerics: Any, device: torch.device
) -> None:
    """Raise UserError where a network that was recorded as `before` is now one of other operations: its evaluation would be another's."""
    if received.is_refusal(before):
        return
    now = record(network, shape, numerics, device, trained=True)
    if not received.is_refusal(now) and _graphs(now) != _graphs(before):  # one that now holds a constant that it made is refused
        raise UserError(f"model.name {model.name}: computes something else after the training than before it, by what it counts or keeps "
                        "beside its weights and buffers, which nothing that is kept would say; do without")  # fmt: skip


def _graphs(content: bytes) -> tuple[Graph, Graph]:
    recording = msgspec.json.decode(content, type=Recording)
    return recording.training, recording.evaluation


def _alike(two: Any, three: Any, name: str) -> Any:
    """An argument of a pass of two images and of one of three, as that of a pass of any number."""
    if type(two) is type(three) is list and len(two) == len(three):
        return [_alike(a, b, name) for a, b in zip(two, three, strict=True)]
    if type(two) is type(three) is dict and two.keys() == three.keys():
        return {key: _alike(value, three[key], name) for key, value in two.items()}
    if type(two) is type(three) and two == three:
        return two
    if type(two) is type(three) is int and two and two % 2 == 0 and two * 3 == three * 2:
        return {"images": two // 2}
    raise Refused(f"an argument of {name} is {str(two)[:40]} of two images and {str(three)[:40]} of three")


def _held(network: nn.Module, trained: bool) -> dict[str, Held]:
    asked, saved = initialisation.noted(network), network.state_dict(keep_vars=True)
    found: dict[str, Held] = {}
    first: dict[int, str] = {}
    both = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    order = {name: place for place, name in enumerate(saved)}
    for name, tensor in sorted(both, key=lambda each: order.get(each[0], len(order))):
        kind = ("weight" if tensor.requires_grad else "frozen") if isinstance(tensor, nn.Parameter) else "buffer"
        same = first.setdefault(id(tensor), name)
        known = same != name or (trained and name in saved)
        initial = [] if known else [(rule, [*map(float, numbers)]) for rule, numbers in asked.get(name) or _values(name, tensor)]
        found[name] = Held(
            shape=list(tensor.shape), dtype=_dtype(name, tensor), kind=cast(Any, kind if name in saved else "unsaved"),
            same=None if same == name else same, initial=initial,
        )  # fmt: skip
    return found


def _dtype(name: str, tensor: Tensor) -> Any:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in ("float32", "int64", "int32", "uint8", "bool"):
        raise Refused(f"{name} is {dtype}")
    return dtype


def _values(name: str, tensor: Tensor) -> list[tuple[str, list[float]]]:
    """Initial values that were not drawn, as a rule's steps."""
    values = tensor.detach().flatten().double().cpu()
    if not bool((values.isfinite() & (values == values.float())).all()):
        raise Refused(f"{name} holds what no finite float32 is")
    if not len(values) or bool((values == values[0]).all()):
        return [("plus", [float(values[0])])] if len(values) and float(values[0]) else []
    if len(values) > MOST_VALUES:
        raise Refused(f"{name} has {len(values)} initial values of its own, and {MOST_VALUES} are the most")
    return [("values", values.tolist())]


def _name(func: Any) -> str:
    return f"'{resolve_name(func) or func}'"
