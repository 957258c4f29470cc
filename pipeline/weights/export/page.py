"""A run's network as one HTML file that classifies images in the browser, with exact-3 in JavaScript (exact.js)."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.data import pictures
from pipeline.data.dataset import Shape
from pipeline.device import CPU
from pipeline.exact.draws import random_integers
from pipeline.models import received, recorded, recording
from pipeline.runs.outputs import NETWORK, Model
from pipeline.system import files, offline, schema
from pipeline.system.errors import UserError
from pipeline.weights.predict import Network

VERSION = "exact-3"
"""The numerics that exact.js computes."""
_FOLDER = Path(__file__).parent
SCRIPTS = ("exact.js", "picture.js", "page.js")
_ELSE = "--to FILE.onnx takes any network"


def write(path: Path, model: Model) -> list[str]:
    """Write the page of `model`; return what is to be said of it. Raises UserError."""
    native = model.provenance.numerics == "native"
    if model.network is None and (named := model.provenance.network).is_own:
        raise UserError(f"{named.name}: the run has no {NETWORK}, and a page is made of that; {_ELSE}")
    network = Network(model, CPU, VERSION if native else model.provenance.numerics)
    if network.numerics.version != VERSION:
        raise UserError(f"numerics '{network.numerics.version}': the page computes {VERSION}; use the version of the pipeline that has it")
    files.write_output(path, render(model, network))
    if native:
        return [f"wrote {path}: it computes with {VERSION}; the run's numerics are native, so it is close to `predict`, not bit for bit"]
    return [f"wrote {path}: it computes with {VERSION}, bit for bit as `predict` does"]


def render(model: Model, network: Network) -> bytes:
    """The page; `network` is the model's, computing exact-3. Raises UserError."""
    provenance = model.provenance
    return offline.render(
        _FOLDER,
        [_script(name) for name in SCRIPTS],
        {
            "classes": network.classes,
            "network": content(_recording(model, network), network.module, network.shape),
            "selfTest": _self_test(network),
        },
        name=network.network.name,
        classes=network.classes,
        size=network.shape[-1],
        fingerprint=model.fingerprint,
        data=provenance.data.name,
        seed=provenance.seed,
        numerics=provenance.numerics,
        computed=VERSION,
        exact=provenance.numerics == VERSION,
    )


def content(found: recorded.Recording, module: nn.Module, shape: Shape) -> dict[str, Any]:
    """What exact.js computes: the recorded evaluation, with the weights of `module`. Raises UserError, which names what exact.js lacks."""
    graph = found.evaluation
    if lacking := list(dict.fromkeys(_lacking(graph, found.held))):
        raise UserError(f"a page cannot compute {', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}; {_ELSE}")
    held = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
    named = sorted({what for kind, what in _kinds([graph.calls, graph.gives]) if kind == "held"})
    tensors = {name: {"shape": held[name].shape, "data": _float32s(held[name].detach().numpy())} for name in named}
    return {"shape": shape, "calls": graph.calls, "gives": graph.gives, "held": tensors}


def _recording(model: Model, network: Network) -> recorded.Recording:
    """The run's network.json, of a network of somebody's own; what a name makes is recorded here, as `predict` makes it here."""
    found = model.network
    if found is None or not network.network.is_own:
        found = recording.record(network.module, network.shape, network.numerics, torch.device(CPU), trained=True)
    read = received.read(found, model.weights, len(network.classes), network.shape, NETWORK)
    if read is None:
        reason = schema.decode(recorded.Unrecorded, found, NETWORK).refused
        raise UserError(f"{network.network.name}: a page needs a fixed list of operations, but {reason}; {_ELSE}")
    return read


def _script(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _operations() -> dict[str, list[str]]:
    """What the operations of exact.js take, by PyTorch's names; exact.js says what the marks mean."""
    table = re.search(r"^const OPERATIONS = (\{.*?^\});$", _script("exact.js"), re.M | re.S)
    assert table is not None
    return {name: takes.split() for takes, names in json.loads(table[1]).values() for name in names.split()}


def _lacking(graph: recorded.Graph, held: dict[str, recorded.Held]) -> Iterator[str]:
    """Operations that exact.js lacks, and arguments."""
    operations = _operations()
    for name, args, kwargs in graph.calls:
        if (takes := operations.get(name)) is None:
            yield name
            continue
        marked = {re.sub(r"[*.]+$|=.*", "", each): each for each in takes}
        names = list(marked)
        if takes[-1].endswith("..."):
            names += names[-1:] * len(args)
        given = itertools.zip_longest(names[: len(args)], args, fillvalue="another argument")
        for parameter, each in [*given, *kwargs.items()]:
            if not _fits(marked.get(parameter, ""), each, held):
                yield f"{name} with {parameter} = {json.dumps(each)[:40]}"


def _fits(marked: str, given: Any, held: dict[str, recorded.Held]) -> bool:
    """Whether exact.js has a form for an argument of a parameter with its marks; there is no parameter without a name."""
    if "=" in marked:
        return marked.partition("=")[2] == json.dumps(given).strip('"')
    kinds = {"tuple", "slice", "images", "number", "ellipsis", "memory_format", *(("value", "held") if marked.endswith("*") else ())}
    return marked != "" and all(kind in kinds and (kind != "held" or held[what].dtype == "float32") for kind, what in _kinds(given))


def _kinds(given: Any) -> Iterator[tuple[str, Any]]:
    """What encoded arguments are made of besides JSON's own values."""
    if isinstance(given, dict):
        yield from given.items()
    for each in given.values() if isinstance(given, dict) else given if isinstance(given, list | tuple) else ():
        yield from _kinds(each)


def _float32s(array: np.ndarray) -> str:
    """Float32 values, little-endian, in base64."""
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def _self_test(network: Network) -> dict[str, Any]:
    """A drawn picture as a PNG, its bytes, and the confidences that the page must give for it."""
    image = random_integers("self-test", 256, math.prod(network.shape)).astype(np.uint8).reshape(network.shape)
    picture, pixels = (base64.b64encode(part).decode() for part in (pictures.png(image), image.tobytes()))
    return {"picture": picture, "bytes": pixels, "confidences": _float32s(network(image[None]).confidences[0])}
