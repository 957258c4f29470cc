"""Weights that somebody else's script saved: a checkpoint of PyTorch or a safetensors file -> named tensors. Nothing in it is executed."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import itertools
import pathlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.device import CPU
from pipeline.models import archives, normalisation
from pipeline.params import Model
from pipeline.system import paths
from pipeline.system.errors import UserError, shown

ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "model_ema", "state_dict_ema", "ema",
           "ema_state_dict")  # fmt: skip
"""Where scripts put a network's weights in what they save, the usual places first."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What DataParallel, torch.compile and modules around a network put before each name."""
SETTINGS: list[Any] = [argparse.Namespace, *((pathlib.PurePath, f"{module}.{kind}Path") for module in ("pathlib", "pathlib._local")
                                  for kind in ("Posix", "Windows", "PurePosix", "PureWindows"))]  # fmt: skip
"""What the training scripts of torchvision and timm save their own arguments as, beside the weights. They do nothing."""
LISTED = 5
LARGEST_BYTES = 2**34
"""Of a file of weights."""
MOST_TENSORS, LONGEST_NAME = 20_000, 1000
"""In such a file, and in characters: what is done to names takes longer, the more they are and the longer."""
MOST_TIMES = 4
"""How many times its bytes the tensors of a file may take: they may share memory, and a view of one number may be of any size."""
NEAREST_OF = 1000
"""Names among which the nearest is looked for."""


class Checkpoint(NamedTuple):
    """The weights in a file, float32 and int64 on the CPU."""

    weights: dict[str, np.ndarray]
    said: list[str]
    """What was done to them, a phrase each."""
    digest: str
    """The SHA-256 of the file."""


def read(path: Path, entry: str | None = None) -> Checkpoint:
    """The weights in a file, with the names that they have there; those under `entry`, if given, else under a usual one.

    Raises:
        UserError: it cannot be read, would execute something, or holds no weights.
    """
    whole = _read(path)
    content = whole.content
    said = []
    name = entry or ("" if _tensors(content) else next((key for key in ENTRIES if _tensors(_entry(content, key))), ""))
    if name:
        found, others = _tensors(_entry(content, name)), [key for key in ENTRIES if key != name and _tensors(_entry(content, key))]
        said.append(f"the weights are those under '{name}'" + (f" (also there: {', '.join(others)}; --entry takes one)" if others else ""))
    else:
        found = _tensors(content)
    if not found:
        keys = [shown(str(key)) for key in itertools.islice(content, LISTED)] if isinstance(content, Mapping) else [type(content).__name__]
        wanted = f"'{entry}'" if entry else "any of " + ", ".join(ENTRIES[:6])
        raise UserError(f"{path}: no weights under {wanted}; it holds {', '.join(keys)}: name the right one with --entry")
    _refuse_strange(found, path, whole.bytes)
    found.pop("n_averaged", None)  # AveragedModel's count
    weights = {}
    for dtype in sorted({str(value.dtype).removeprefix("torch.") for value in found.values()} - {"float32", "int64"}):
        said.append(f"{dtype} became {'float32' if getattr(torch, dtype).is_floating_point else 'int64'}")
    for key, value in found.items():
        try:
            to = torch.float32 if value.is_floating_point() else torch.int64
            weights[key] = value.detach().resolve_neg().to(to).contiguous().numpy()
        except (NotImplementedError, RuntimeError):  # a type that PyTorch only stores
            raise _strange(path, key, str(value.dtype)) from None
    return Checkpoint(weights, said, whole.digest)


def _refuse_strange(found: Mapping[str, Tensor], path: Path, size: int) -> None:
    """Raise UserError where tensors of a file of so many bytes are no plain arrays, or take more time or memory than it tells."""
    if len(found) > MOST_TENSORS or max(map(len, found)) > LONGEST_NAME:
        raise UserError(
            f"{path}: {len(found)} tensors, with names of up to {max(map(len, found))} characters; at most {MOST_TENSORS} of "
            f"{LONGEST_NAME} are read"
        )
    for key, value in found.items():
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        if value.is_complex() or value.is_quantized or kind != "strided" or value.device.type != CPU:
            raise _strange(path, key, f"{value.dtype}, {kind}, on {value.device}")
    if (takes := sum(value.numel() * value.element_size() for value in found.values())) > MOST_TIMES * size:
        raise UserError(f"{path}: its tensors take {takes} bytes, and the file has {size}; save copies of them there, with .clone()")


def _strange(path: Path, key: str, what: str) -> UserError:
    return UserError(f"{path}: {shown(key)} is {what}; a network of float32 weights takes none; convert it where it was made")


class _Read(NamedTuple):
    """What a file holds, and the digest and the number of the bytes that it was read from."""

    content: Any
    digest: str
    bytes: int


def _bytes(path: Path) -> bytearray:
    try:
        return paths.read(path, LARGEST_BYTES)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a .pth, .pt or .safetensors file") from None


def _read(path: Path) -> _Read:
    content = _bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return _Read(load(bytes(content)), digest, len(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused next
            with torch.serialization.safe_globals(SETTINGS):
                return _Read(torch.load(archives.readable(content), map_location=CPU, weights_only=True), digest, len(content))
    except pickle.UnpicklingError as error:
        text = str(error)
        if named := re.search(r"GLOBAL ([\w.]+)", text):
            raise UserError(
                f"{path}: would execute {named[1]}, so it is not read; where it was made, save the weights alone: "
                "torch.save(model.state_dict(), FILE)"
            ) from None
        raise UserError(f"{path}: not a checkpoint of PyTorch, or damaged; copy it again, or save it there with torch.save") from None
    except Exception as error:  # whatever a damaged file makes of PyTorch's and safetensors' readers
        if "TorchScript" in str(error) or archives.is_script(content):
            raise UserError(f"{path}: a TorchScript archive; where it was made, save torch.jit.load(FILE).state_dict()") from None
        said = " ".join(str(error).split())[:80] or type(error).__name__
        raise UserError(f"{path}: not a checkpoint of PyTorch, or damaged ({said}); copy it again") from None


# What a file gives may have attributes of any name, which would be taken for methods: so those of the classes are called.


def _entry(content: Any, name: str) -> Any:
    return dict.get(content, name) if isinstance(content, dict) else None


def _tensors(content: Any) -> dict[str, Tensor]:
    """A dict of names to tensors, if it is one; the tensors without attributes of their own."""
    if not isinstance(content, dict) or not content:
        return {}
    items = dict.items(content)
    good = all(isinstance(key, str) and isinstance(value, Tensor) for key, value in items)
    return {key: Tensor.detach(value) for key, value in items} if good else {}


def named(read: Checkpoint, network: nn.Module) -> Checkpoint:
    """Weights with the names that the network has: without what wrappings put before each, and with what it has there itself."""
    found, names, taken = read.weights, network.state_dict().keys() - normalisation.BUFFERS, list[str]()
    ways = [(found, [*taken])]
    while found and (prefixes := [each for each in PREFIXES if all(key.startswith(each) for key in found)]):
        found = {key.removeprefix(prefixes[0]): value for key, value in found.items()}
        taken.append(f"'{prefixes[0]}' was taken from each name")
        ways.insert(0, (found, [*taken]))
    own = {name.partition(".")[0] + "." for name in names}
    if len(own) == 1:
        (first,) = own
        ways.append(({first + key: value for key, value in found.items()}, [*taken, f"'{first}' was put before each name"]))
    best, done = max(ways, key=lambda way: sum(name in names for name in way[0]))  # of equals the first: the barest names
    return Checkpoint(best, [*read.said, *done], read.digest)


def classes_of(weights: Mapping[str, np.ndarray], network: nn.Module, classes: int) -> int:
    """How many classes weights are for, where `network` is built for `classes`: by the tensors that differ in their first size alone."""
    sizes = {
        weights[name].shape[0]
        for name, tensor in network.state_dict().items()
        if name in weights and weights[name].ndim and tensor.dim() and tensor.shape[0] == classes != weights[name].shape[0]
        and tuple(tensor.shape[1:]) == weights[name].shape[1:]
    }  # fmt: skip
    return int(sizes.pop()) if len(sizes) == 1 else classes


def fit(weights: Mapping[str, np.ndarray], network: nn.Module, path: Path, name: str) -> dict[str, np.ndarray]:
    """The weights, as the network's state has them; the numbers of its `model.normalize` are its own.

    Raises:
        UserError: some are missing, too many or of other shapes; lists them, with the nearest names.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    weights = {**weights, **{key: network.get_buffer(key).numpy() for key in normalisation.BUFFERS if key in wanted}}
    left = {key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")}
    surplus = sorted(set(weights) - set(wanted))
    wrong = [f"{shown(key)} is not the network's" for key in surplus]
    wrong += [f"{key} is {list(weights[key].shape)}, not {list(shape)}" for key, shape in wanted.items()
              if key in weights and weights[key].shape != shape]  # fmt: skip
    if wrong or left:
        said = [_missing(key, surplus) for key in sorted(left)[:LISTED]] + wrong[: max(0, LISTED - len(left))]
        if len(wrong) + len(left) > len(said):
            said.append(f"and {len(wrong) + len(left) - len(said)} more")
        there = f"{sum(key in weights for key in wanted)} of whose {len(wanted)} names it has"
        remedy = "name the network that they are of, with its arguments, or have it in a file of your own (docs/predict.md)"
        raise UserError(f"{path}: not the weights of {name}, {there}: {'; '.join([*said, remedy])}")
    count = np.zeros((), np.int64)  # old checkpoints have none, and nothing reads it where momentum is a number
    return {key: weights[key].reshape(shape) if key in weights else count for key, shape in wanted.items()}


def digest(model: Model) -> str:
    """The SHA-256 of the file that `model.weights` names, as `start` has it; nothing where it names none. Raises UserError."""
    return hashlib.sha256(_bytes(Path(model.weights))).hexdigest() if model.weights else ""


def start(model: Model) -> Checkpoint | None:
    """The weights that a training of `model` begins with; None where they are drawn. Raises as `read` does."""
    return read(Path(model.weights)) if model.weights else None


def begin(network: nn.Module, start: Checkpoint, model: Model, classes: int) -> str:
    """Put the weights of `model.weights` into a network that is to be trained for so many classes; what was done, in words.

    Layers that the file has for another number of classes, and the numbers of `model.normalize`, stay the network's own.

    Raises:
        UserError: other weights are missing, too many or of other shapes.
    """
    own = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    given, said, _ = named(start, network)
    theirs = classes_of(given, network, classes)
    heads = [
        key for key in own if theirs != classes and key in given and given[key].shape == (theirs, *own[key].shape[1:]) != own[key].shape
    ]
    weights = fit(given | {key: own[key] for key in heads}, network, Path(model.weights), model.name)
    network.load_state_dict({key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in weights.items()})
    count = len(own.keys() - heads - set(normalisation.BUFFERS))
    anew = f"{', '.join(heads)} begin anew, for {classes} classes in place of {theirs}" if heads else ""
    return "; ".join(filter(None, (f"{model.weights}: the training begins with its {count} tensors", *said, anew)))


def _missing(key: str, surplus: list[str]) -> str:
    near = difflib.get_close_matches(key, surplus[:NEAREST_OF], 1)
    return f"{key} is missing" + (f" (the nearest is {shown(near[0])})" if near else "")
