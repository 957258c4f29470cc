"""A run's network as an ONNX model that takes bytes: written layer by layer, then checked with onnxruntime.

It computes with float32 kernels, so it gives close logits and no promise of bits.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import __version__, files
from pipeline.data import dataset
from pipeline.data.dataset import TUTORIAL, Shape
from pipeline.device import CPU
from pipeline.errors import UserError
from pipeline.exact.draws import random_integers
from pipeline.predict import Network
from pipeline.runs.outputs import Model

OPSET, IR_VERSION = 17, 8
"""Old enough for any runtime since 2022."""
DRAWN_IMAGES = 1000
TOLERANCE = 2.0**-10
"""Of the largest logit: float32 kernels are far closer, a wrong graph is far off."""
_BATCH = 250
_DESCRIPTION = "SimpleCNN: bytes {} (image, channel, row, column) to logits. Float32 kernels: no promise of bits."


def write(path: Path, model: Model) -> list[str]:
    """Write the ONNX model, once it gives the run's classes; return what is to be said of it.

    Raises:
        UserError: a package is missing, the run cannot be used, or onnxruntime gives other classes.
    """
    network = Network(model, CPU)
    try:
        content = serialised(model, network.classes, network.shape)
        checked = _check(content, network, *_images(model))
    except ModuleNotFoundError as missing:
        raise UserError(
            f"export to ONNX needs the package '{missing.name}': pip install --require-hashes -r requirements/export.txt"
        ) from None
    files.write_output(path, content)
    return [f"wrote {path}: bytes {_shape(network.shape)} -> logits and probabilities; float32 kernels, no promise of bits", checked]


def _shape(shape: Shape) -> str:
    return f"[N, {', '.join(map(str, shape))}]"


def serialised(model: Model, classes: list[str], shape: Shape = TUTORIAL) -> bytes:
    """The ONNX model: input `images` uint8 [N, *shape]; outputs `logits` and `probabilities`, float32 [N, classes]."""
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes: list[Any] = []

    def add(operation: str, *inputs: str, **attributes: Any) -> str:
        output = f"{operation.lower()}{len(nodes)}"
        nodes.append(helper.make_node(operation, list(inputs), [output], **attributes))
        return output

    x = add("Div", add("Cast", "images", to=TensorProto.FLOAT), "byte_maximum")
    for layer in ("conv1", "conv2"):
        x = add("Conv", x, f"{layer}.weight", f"{layer}.bias")
        x = add("MaxPool", add("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    x = add("Flatten", x, axis=1)
    for layer in ("fc1", "fc2", "fc3"):
        x = add("Gemm", x if layer == "fc1" else add("Relu", x), f"{layer}.weight", f"{layer}.bias", transB=1)
    nodes.append(helper.make_node("Identity", [x], ["logits"]))
    nodes.append(helper.make_node("Softmax", [x], ["probabilities"], axis=1))

    constants = {"byte_maximum": np.array(255, np.float32), **{name: model.weights[name] for name in sorted(model.weights)}}
    graph = helper.make_graph(
        nodes,
        "SimpleCNN",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(classes)]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    onnx_model = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="pipeline",
        producer_version=__version__,
        doc_string=_DESCRIPTION.format(_shape(shape)),
    )
    provenance = model.provenance
    facts = {
        "classes": json.dumps(classes),
        "fingerprint": model.fingerprint,
        "data": provenance.data.name,
        "numerics": provenance.numerics,
        "seed": str(provenance.seed),
    }
    helper.set_model_props(onnx_model, facts)
    checker.check_model(onnx_model, full_check=True)
    content: bytes = onnx_model.SerializeToString(deterministic=True)
    return content


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
