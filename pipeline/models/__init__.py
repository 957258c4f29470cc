"""The network that params.yaml names: the tutorial's, one of torchvision's, or a class in a file of the user's own."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import sources
from pipeline.device import failures
from pipeline.exact.errors import Unsupported
from pipeline.exact.initialisation import initial_values
from pipeline.models import normalisation
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.numerics.exact import refusals_explained
from pipeline.params import SIMPLE_CNN, Model
from pipeline.system.errors import UserError, shown

NETWORKS = Path("networks")
"""The folder of the user's own networks, on which the stages depend."""
Shape = tuple[int, int, int]


def build(model: Model, shape: Shape, classes: int, seed: int | None = None) -> nn.Module:
    """The network for images of `shape` (channels, height, width) and so many classes, on the CPU; with a seed its initial weights are
    drawn by rule.

    Raises:
        UserError: there is no such network, it cannot be made with these arguments, or a weight's initial value has no rule.
    """
    make = _found(model, shape, classes)
    with refusals_explained(), mistakes_explained(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        with contextlib.nullcontext() if seed is None else initial_values(seed):
            network = make()
    if not isinstance(network, nn.Module):
        raise UserError(f"model.name is {shown(model.name)}, which makes {type(network).__name__}, not a torch.nn.Module")
    if model.normalize:
        normalisation.put_before(network, shape[0], model.normalize)
    return network


def _found(model: Model, shape: Shape, classes: int) -> Callable[[], Any]:
    if model.name == SIMPLE_CNN:
        return lambda: SimpleCNN(shape[0], shape[1], classes, **model.arguments)
    if model.is_own:
        make = of_file(model.name)
    else:
        make = _of_torchvision(model.name)
        if loads := [each for each in ("weights", "weights_backbone", "pretrained") if each in model.arguments]:
            raise UserError(f"model.arguments has {loads[0]}, which would load other weights; every network begins with those of its seed")
        if shape[0] != 3:
            raise UserError(f"model.name is {model.name}, for images of 3 channels, and these have {shape[0]}; set data.channels: 3")
    known = {
        **dict.fromkeys(("classes", "num_classes"), classes),
        **dict.fromkeys(("channels", "in_channels"), shape[0]),
        **dict.fromkeys(("size", "image_size"), shape[1]),
    }
    if make.__module__ == "torchvision.models.vision_transformer":
        fitting = {"num_classes": classes, "image_size": shape[1]}
    else:
        parameters = inspect.signature(make).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        fitting = {name: value for name, value in known.items() if name in parameters or (takes_any and name == "num_classes")}
    return lambda: make(**fitting | model.arguments)


def _of_torchvision(name: str) -> Callable[..., Any]:
    from torchvision import models

    def of_classification(name: str) -> bool:
        module = models.get_model_builder(name).__module__
        return bool(module.startswith("torchvision.models.") and module.count(".") == 2)

    names = [each for each in models.list_models() if of_classification(each)]
    if name not in names:
        import difflib

        near = difflib.get_close_matches(name, [SIMPLE_CNN, *names], 3) or ["resnet18", "mobilenet_v2", "vit_b_16"]
        raise UserError(
            f"model.name is {shown(name)}; allowed: {SIMPLE_CNN} | a classification network of torchvision's, such as {', '.join(near)} | "
            f"{NETWORKS}/FILE.py:CLASS"
        )
    builder: Callable[..., Any] = models.get_model_builder(name)
    return builder


def file_and_class(name: str) -> tuple[Path, str]:
    """The file that FILE.py:CLASS names, within `networks/`, and the name in it. Raises UserError: it is elsewhere, or not there."""
    path, wanted = place(name)
    if not path.is_file():
        raise UserError(f"model.name is {shown(name)}; there is no such file")
    return path, wanted


def place(name: str) -> tuple[Path, str]:
    """Where FILE.py:CLASS says that a network is, whether or not it is there. Raises UserError: it is not within `networks/`."""
    file, _, wanted = name.rpartition(":")
    path = Path(file)
    if NETWORKS not in path.parents or ".." in path.parts:  # a received run names a network too, and must not name what came with it
        raise UserError(
            f"model.name is {shown(name)}; a file of your own belongs into {NETWORKS}/, whose changes DVC sees: {NETWORKS}/{path.name}"
        )
    return path, wanted


def of_file(name: str) -> Callable[..., Any]:
    """What makes the network that FILE.py:CLASS names; starts the file. Raises UserError: there is no such file, or no such network."""
    path, wanted = file_and_class(name)
    module = _loaded(path)
    made = getattr(module, wanted, None)
    of_its_own = getattr(made, "__module__", None) == module.__name__  # not what it imports, which may do anything with any arguments
    if not callable(made) or not (of_its_own or (isinstance(made, type) and issubclass(made, nn.Module))):
        there = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise UserError(f"model.name is {shown(name)}; {path} has no {wanted}; it has {', '.join(there) or 'no network'}")
    return made  # type: ignore[no-any-return]


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)  # for what it imports from beside it
    before = set(sys.modules)
    try:
        with mistakes_explained(Model(name=str(path))):
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    _refuse_unseen(path, {getattr(sys.modules[name], "__file__", None) for name in sys.modules.keys() - before})
    return module


def _refuse_unseen(path: Path, imported: set[str | None]) -> None:
    """Refuse what a network imports from elsewhere in the project: after an edit there DVC would train nothing again."""
    seen = [NETWORKS.resolve(), Path(sys.prefix).resolve(), *(sources.PACKAGE / name for name in sources.STAGES["train"])]
    for file in map(Path, filter(None, imported)):
        if file.resolve().is_relative_to(Path.cwd()) and not any(file.resolve().is_relative_to(each) for each in seen):
            raise UserError(f"{path} imports {_shortened(str(file))}, whose changes DVC does not see; move it into {NETWORKS}/")


def source(model: Model, numerics: str) -> str:
    """What else the network's bits depend on: of a file's the digest of all modules in its folder, of torchvision's, for native numerics,
    the release; else nothing.
    """
    if model.name == SIMPLE_CNN:
        return ""
    if not model.is_own:
        import torchvision

        return f"torchvision {torchvision.__version__}" if numerics == "native" else ""
    digest = hashlib.sha256()
    for path in sorted(NETWORKS.rglob("*.py")):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        digest.update(f"{path.as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def changed(model: Model, trained: object) -> str:
    """A line where the sources of a file's network are others than those with the digest `trained`; else nothing."""
    if not model.is_own or source(model, "") == trained:
        return ""
    return f"{NETWORKS}/ has changed since the training: what {model.name} computes may be something else now"


@contextlib.contextmanager
def mistakes_explained(model: Model) -> Iterator[None]:
    """Turn what goes wrong in a network that is not the pipeline's into one line with the network's own line."""
    try:
        yield
    except (UserError, Unsupported):
        raise
    except Exception as error:
        if failures.is_out_of_memory(error) or failures.is_failure(error):  # the device's, and not the network's
            raise
        if (line := _own_line(error)) is None and model.name == SIMPLE_CNN and not model.arguments:
            raise
        said = " ".join(str(error).split())[:300] or type(error).__name__
        where = line or f"model.name {model.name}"
        remedy = "mend the network, its model.arguments, or the size of the images"
        if isinstance(error, ModuleNotFoundError):
            remedy = f"install it for {sys.executable}, or do without"
        if "more than 1 value per channel" in said:
            remedy = "a norm learns nothing of one image: set another train.batch_size, so that the last batch of an epoch has more"
        raise UserError(f"{where}: {type(error).__name__}: {said}; {remedy}") from error


def _own_line(error: BaseException) -> str | None:
    """The innermost line, FILE:LINE, of the network's own code in what raised `error`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shortened(error.filename)}:{error.lineno}"
    line, trace = None, error.__traceback__
    own, libraries = str(NETWORKS.resolve()), f"{Path(torch.__file__).parent.parent}/torchvision/"
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if str(Path(name).resolve()).startswith(own) or name.startswith(libraries):
            line = f"{_shortened(name)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return line


def _shortened(name: str) -> str:
    path = Path(name)
    return str(path.resolve().relative_to(Path.cwd())) if path.resolve().is_relative_to(Path.cwd()) else name


def load(network: nn.Module, weights: dict[str, np.ndarray] | Any, name: str = "SimpleCNN") -> None:
    """Put weights and buffers into a network.

    Raises:
        UserError: names, shapes or types differ; lists the differences.
    """
    _check_fit(network, weights, name)
    network.load_state_dict({key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in weights.items()})


def _check_fit(network: nn.Module, weights: dict[str, np.ndarray] | Any, name: str) -> None:
    wanted = {key: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in network.state_dict().items()}
    given = {key: (tuple(array.shape), array.dtype.name) for key, array in weights.items()}
    wrong = [f"{key} is {given[key][0] if key in given else 'missing'}, not {shape}" for key, (shape, _) in wanted.items()
             if key not in given or given[key][0] != shape]  # fmt: skip
    wrong += [f"{shown(key)} is unknown" for key in given if key not in wanted]
    wrong += [f"{key} is {given[key][1]}, not {dtype}" for key, (_, dtype) in wanted.items() if key in given and given[key][1] != dtype]
    if wrong:
        raise UserError(f"the weights are not {name}'s: {'; '.join(wrong[:10])}{'; ...' if len(wrong) > 10 else ''}")
