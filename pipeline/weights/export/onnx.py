"""A run's network as an ONNX model that takes bytes: translated by torch.onnx, then checked with onnxruntime.

It computes with float32 kernels, so it gives close logits and no promise of bits.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.onnx import OnnxExporterError

from pipeline import __version__
from pipeline.data import dataset
from pipeline.data.dataset import Shape
from pipeline.device import CPU
from pipeline.exact.draws import random_integers
from pipeline.numerics import native
from pipeline.runs.outputs import Model
from pipeline.system import files
from pipeline.system.errors import UserError
from pipeline.weights.predict import Network

OPSET, IR_VERSION = 18, 8
"""The oldest that torch.onnx writes, which any runtime since 2023 reads."""
DRAWN_IMAGES = 1000
TOLERANCE = 2.0**-10
"""Of the largest logit: float32 kernels are far closer, a wrong graph is far off."""
_BATCH = 250
_DESCRIPTION = "{}: bytes {} (image, channel, row, column) to logits. Float32 kernels: no promise of bits."


def write(path: Path, model: Model) -> list[str]:
    """Write the ONNX model, once it gives the run's classes; return what is to be said of it.

    Raises:
        UserError: a package is missing, the run cannot be used, or onnxruntime gives other classes.
    """
    network = Network(model, CPU)
    try:
        content = serialised(model, network.module)
        checked = _check(content, network, *_images(model))
    except ModuleNotFoundError as missing:
        raise UserError(
            f"export to ONNX needs the package '{missing.name}': pip install --require-hashes -r requirements/export.txt"
        ) from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever these packages say of a network that they do not have
        said = " ".join(str(error).split())[:300] or type(error).__name__
        of = f"the ONNX model of the network {model.provenance.network.name}"
        raise UserError(f"{of} cannot be made or run: {said}; its page, or `predict`, computes without it") from error
    files.write_output(path, content)
    return [f"wrote {path}: bytes {_shape(network.shape)} -> logits and probabilities; float32 kernels, no promise of bits", checked]


def _shape(shape: Shape) -> str:
    return f"[N, {', '.join(map(str, shape))}]"


class _OfBytes(nn.Module):
    """The network from bytes on, as `numerics: native` computes it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities, float32 [N, classes], of uint8 [N, C, H, W]."""
        logits = native.heads(self.network(native.pixels(images)))[0]
        return logits, logits.softmax(1)


def serialised(model: Model, network: nn.Module) -> bytes:
    """The ONNX model of a network in evaluation: input `images`, uint8 [N, C, H, W]; outputs `logits` and
    `probabilities`, float32 [N, classes].

    Raises:
        UserError: torch.onnx has no translation for one of its operations.
    """
    from onnx import checker, helper
    from onnxscript import optimizer as _needed  # noqa: F401 - torch.onnx's; named here where it is missing

    shape, name = model.provenance.data.shape, model.provenance.network.name
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _OfBytes(network), (torch.zeros(3, *shape, dtype=torch.uint8),), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=["images"], output_names=["logits", "probabilities"], dynamic_shapes=({0: torch.export.Dim("N")},),
            )  # fmt: skip
    except OnnxExporterError as error:
        said = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(f"torch.onnx cannot export the network {name}: {said}; its page, or `predict`, computes without it") from error
    assert program is not None  # of dynamo=True
    onnx_model = program.model_proto
    _forget_this_machine(onnx_model)
    onnx_model.ir_version, onnx_model.producer_name, onnx_model.producer_version = IR_VERSION, "pipeline", __version__
    onnx_model.graph.name, onnx_model.doc_string = name, _DESCRIPTION.format(name, _shape(shape))
    facts = {
        "classes": json.dumps(list(model.provenance.data.classes)),
        "fingerprint": model.fingerprint,
        "data": model.provenance.data.name,
        "numerics": model.provenance.numerics,
        "seed": str(model.provenance.seed),
    }
    helper.set_model_props(onnx_model, facts)
    checker.check_model(onnx_model, full_check=True)
    content: bytes = onnx_model.SerializeToString(deterministic=True)
    return content


def _forget_this_machine(onnx_model: Any) -> None:
    """Drop what torch.onnx notes beside the graph: lines of source files, with their folders."""
    graph = onnx_model.graph
    for each in (onnx_model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *onnx_model.functions):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")


def _images(model: Model) -> tuple[np.ndarray, str]:
    """What to check with, uint8 [M, C, H, W], and its name: the run's test images where data/ holds its data set, else drawn bytes."""
    if dataset.DATASET.exists():
        data = dataset.load()
        if data.digest == model.provenance.data.digest:
            return data.test_images, f"test images of {data.name}"
    shape = model.provenance.data.shape
    drawn = random_integers("onnx", 256, DRAWN_IMAGES * math.prod(shape)).astype(np.uint8).reshape(-1, *shape)
    return drawn, f"drawn images ({dataset.DATASET} does not hold the run's data set)"


def _check(content: bytes, network: Network, images: np.ndarray, name: str) -> str:
    """Compare onnxruntime's logits with the network's, and say how far they are apart. Raises UserError."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # errors
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    pairs = [(network(part).logits, session.run(["logits"], {"images": part})[0]) for part in _parts(images)]
    ours, theirs = (np.concatenate(side) for side in zip(*pairs, strict=True))  # each float32 [M, classes]
    difference = float(abs(ours - theirs).max())
    second, best = np.sort(ours, 1)[:, -2:].T
    decided = best - second > difference
    others = int((ours.argmax(1) != theirs.argmax(1))[decided].sum())
    if others or not difference <= TOLERANCE * float(abs(ours).max()):
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} gives other classes on {others} of {len(images)} {name}, its logits are up to "
            f"{difference:.2g} apart: nothing is written; try another release of it"
        )
    return (
        f"checked with onnxruntime on {len(images):,} {name}: logits at most {difference:.2g} apart; the same class on all "
        f"{decided.sum():,} whose two best logits are further apart than that"
    )


def _parts(images: np.ndarray) -> list[np.ndarray]:
    return np.split(images, range(_BATCH, len(images), _BATCH))
