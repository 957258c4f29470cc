"""A run's network as one HTML file that classifies images in the browser, with exact-3 in JavaScript (exact2.js)."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, offline
from pipeline.data import pictures
from pipeline.device import CPU
from pipeline.errors import UserError
from pipeline.exact.draws import random_integers
from pipeline.predict import Network
from pipeline.runs.outputs import Model

VERSION = "exact-3"
"""The numerics that exact2.js computes."""
SCRIPTS = ("exact2.js", "picture.js", "page.js")


def write(path: Path, model: Model) -> list[str]:
    """Write the page of `model`; return what is to be said of it. Raises UserError."""
    native = model.provenance.numerics == "native"
    network = Network(model, CPU, VERSION if native else model.provenance.numerics)
    if network.numerics.version != VERSION:
        raise UserError(f"numerics '{network.numerics.version}': the page computes {VERSION}; use the version of the pipeline that has it")
    files.write_output(path, render(model, network))
    if native:
        return [f"wrote {path}: it computes with {VERSION}; the run's numerics are native, so it is close to `predict`, not bit for bit"]
    return [f"wrote {path}: it computes with {VERSION}, bit for bit as `predict` does"]


def render(model: Model, network: Network) -> bytes:
    """The page; `network` is the model's, computing exact-3."""
    provenance = model.provenance
    return offline.render(
        "export",
        [(Path(__file__).parent / name).read_text(encoding="utf-8") for name in SCRIPTS],
        {
            "classes": network.classes,
            "shape": network.shape,
            "tensors": {name: {"shape": array.shape, "data": _float32s(array)} for name, array in sorted(model.weights.items())},
            "selfTest": _self_test(network),
        },
        classes=network.classes,
        size=network.shape[-1],
        fingerprint=model.fingerprint,
        data=provenance.data.name,
        seed=provenance.seed,
        numerics=provenance.numerics,
        computed=VERSION,
        exact=provenance.numerics == VERSION,
    )


def _float32s(array: np.ndarray) -> str:
    """Float32 values, little-endian, in base64."""
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def _self_test(network: Network) -> dict[str, Any]:
    """A drawn picture as a PNG, its bytes, and the confidences that the page must give for it."""
    image = random_integers("self-test", 256, math.prod(network.shape)).astype(np.uint8).reshape(network.shape)
    picture, content = (base64.b64encode(part).decode() for part in (pictures.png(image), image.tobytes()))
    return {"picture": picture, "bytes": content, "confidences": _float32s(network(image[None]).confidences[0])}
