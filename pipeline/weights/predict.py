"""The `predict` command: image files and the weights of a run -> classes and confidences, as evaluation gives them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import select
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.cells import cell_len

from pipeline import device as devices
from pipeline import evaluation, models, numerics
from pipeline.data import pictures
from pipeline.data.dataset import Shape
from pipeline.models import of_runs
from pipeline.runs import outputs
from pipeline.runs.outputs import Model
from pipeline.system import paths
from pipeline.system.errors import UserError, printable

STDIN = "-"
BEST = 3
"""Classes that an answer names."""
Refuse = Callable[[str], None]
"""Takes one line for each name that cannot be answered."""


class Scores(NamedTuple):
    """What the network makes of N images, for C classes."""

    logits: np.ndarray  # float32 [N, C]
    confidences: np.ndarray  # float32 [N, C]


class Network:
    """The network of a run, on a device, with the numerics that trained it or others."""

    def __init__(self, model: Model, device_name: str, numerics_name: str | None = None) -> None:
        """Raises UserError: the device or the numerics cannot be used, or the weights are not the network's."""
        self._device, self.numerics = numerics.prepared(device_name, numerics_name or model.provenance.numerics)
        described = model.provenance.data
        self.shape, self.classes = described.shape, list(described.classes)
        self.network = model.provenance.network
        named = (self.network, model.provenance.source)
        found = of_runs.recorded_network(model.network, *named, model.weights, len(self.classes), self.shape, self.numerics.version)
        self.module = of_runs.build(found, self.network, len(self.classes), self.shape, model.weights)
        if found is None and (said := models.changed(*named)):
            print(printable(said), file=sys.stderr)
        with devices.failures_explained(self._device):
            self.module.to(self._device).eval()
        self.fingerprint = model.fingerprint

    def __call__(self, images: np.ndarray) -> Scores:
        """The scores of uint8 images [N, *shape]."""
        with torch.inference_mode(), devices.failures_explained(self._device), models.mistakes_explained(self.network):
            logits = self.numerics.logits(self.module, torch.from_numpy(images).to(self._device))
            return Scores(logits.cpu().numpy(), self.numerics.probabilities(logits).cpu().numpy())


# --- answers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What an image shows."""

    image: str
    """The name of its file, as the operating system gave it."""
    best: list[tuple[str, np.float32]]
    """The BEST classes and their confidences, the most likely first; of equal logits the first class."""


def answers(network: Network, names: Iterable[str], refuse: Refuse) -> Iterator[Answer]:
    """An answer for each image of `names`: files, folders, which stand for their image files in order of name, and STDIN.

    The images are read and computed evaluation.at_once at a time, so that a folder of any size takes the same memory.
    """
    images = _readable(_files(names, refuse), network.shape, refuse)
    at_once = evaluation.at_once(network.shape)
    while batch := list(islice(images, at_once)):
        scores = network(np.stack([image for _, image in batch]))
        for (name, _), logits, confidences in zip(batch, *scores, strict=True):
            if np.isnan(confidences).any():
                refuse(f"{name}: the network gives it scores that are not finite, so no class; train again with a smaller lr")
                continue
            best = np.argsort(-logits, kind="stable")[:BEST]
            yield Answer(name, [(network.classes[i], confidences[i]) for i in best])


def _files(names: Iterable[str], refuse: Refuse) -> Iterator[str]:
    for name in names:
        if name == STDIN or not os.path.isdir(name):
            yield name
            continue
        try:
            listed = sorted((entry for entry in os.listdir(name) if entry.lower().endswith(pictures.SUFFIXES)), key=os.fsencode)
        except OSError as error:
            refuse(f"{name}: cannot be read: {error.strerror}")
            continue
        if not listed:
            refuse(f"{name}: a folder without image files ({', '.join(pictures.SUFFIXES)})")
        yield from (os.path.join(name, entry) for entry in listed)


def _readable(names: Iterable[str], shape: Shape, refuse: Refuse) -> Iterator[tuple[str, np.ndarray]]:
    """The images that can be read, uint8 of `shape`, with their names."""
    for name in names:
        try:
            with pictures.quietly():
                image = _read(name, shape)
            yield name, image
        except UserError as reason:
            refuse(str(reason))


def _read(name: str, shape: Shape) -> np.ndarray:
    called = "standard input" if name == STDIN else name
    try:
        content = _standard_input() if name == STDIN else paths.read(Path(name))
        return pictures.read(io.BytesIO(content), called, shape)
    except OSError as error:
        raise UserError(f"{called}: cannot be read: {error.strerror}") from None


def _standard_input() -> bytearray:
    """All that comes, whether or not standard input waits for it. Raises UserError and OSError as `paths.read` does."""
    content = bytearray()
    while len(content) <= paths.LARGEST_BYTES:
        select.select([0], [], [])
        if not (more := os.read(0, 2**20)):
            return content
        content += more
    raise UserError(f"standard input: more than {paths.LARGEST_BYTES} bytes")


def predict(folder: Path, names: Iterable[str], device_name: str, write: Callable[[Network, Iterable[Answer]], None]) -> tuple[int, int]:
    """Answer `names` with the run in `folder`: answers through `write`, a line on standard error for each that has none; count both.

    Raises:
        UserError: the run, its numerics or the device cannot be used.
    """
    model = outputs.read_model(folder)
    network = Network(model, device_name)
    answered = refused = 0

    def refuse(line: str) -> None:
        nonlocal refused
        refused += 1
        print(f"error: {printable(line)}", file=sys.stderr)

    def counted() -> Iterator[Answer]:
        nonlocal answered
        for answer in answers(network, names, refuse):
            answered += 1
            yield answer

    write(network, counted())
    return answered, refused


# --- ways to write them, each an answer at a time ------------------------------------------------------------------


def write_json(network: Network, given: Iterable[Answer]) -> None:
    """One JSON object. Bytes of a name that are no UTF-8 are lone surrogates, as Python's os.fsdecode gives them."""
    head = json.dumps({"fingerprint": network.fingerprint, "numerics": network.numerics.version})
    print(f'{head[:-1]}, "images": [', end="")
    for number, answer in enumerate(given):
        best = [{"class": name, "confidence": float(str(confidence))} for name, confidence in answer.best]
        print(",\n " if number else "\n ", json.dumps({"image": answer.image, "best": best}), sep="", end="", flush=True)
    print("\n]}")


def write_csv(network: Network, given: Iterable[Answer]) -> None:
    """CSV, a row an image, with the names' own bytes; a confidence in the form in which predictions.csv has it.

    No name is a formula in a spreadsheet, which would compute it: such a file is called `./=...`, and before such a class stands a '.
    On a terminal names are shown on one line, without what would steer it.
    """
    heads = ("predicted", "confidence", "second", "second_confidence", "third", "third_confidence")
    _write_row("image", *heads[: 2 * len(network.classes)])
    for answer in given:
        image = f"./{answer.image}" if _is_formula(answer.image) and answer.image != STDIN else answer.image
        best = ((f"'{name}" if _is_formula(name) else name, confidence) for name, confidence in answer.best)
        _write_row(printable(image) if sys.stdout.isatty() else image, *(cell for one in best for cell in one))


def _is_formula(name: str) -> bool:
    """Whether spreadsheets would compute a cell that holds it; a plain number stays what it is."""
    return name[:1] in ("=", "+", "-", "@", "\t", "\r") and not re.fullmatch(r"[+-]\d+(\.\d+)?", name)


def _write_row(*cells: object) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    sys.stdout.buffer.write(text.getvalue().encode(errors="surrogateescape"))
    sys.stdout.buffer.flush()


def write_table(network: Network, given: Iterable[Answer]) -> None:
    """A table as wide as the terminal, at least 80 columns; a name that is too long loses its beginning."""
    class_width = min(10, max(map(cell_len, network.classes)))
    widths = [class_width + 9, class_width + 8, class_width + 8][: len(network.classes)]
    name_width = max(80, shutil.get_terminal_size().columns) - sum(widths) - 2 * len(widths)
    print("  ".join([_fitted("image", name_width), *map(_fitted, ("prediction", "second", "third"), widths)]).rstrip())
    for answer in given:
        cells = [f"{_fitted(name, class_width)} {100 * float(confidence):{width - class_width - 3}.2f} %"
                 for (name, confidence), width in zip(answer.best, widths, strict=True)]  # fmt: skip
        print("  ".join([_fitted(answer.image, name_width, keep_end=True), *cells]), flush=True)


def _fitted(text: str, width: int, *, keep_end: bool = False) -> str:
    """`text` on one line in exactly `width` columns of a terminal."""
    text = printable(text)
    if cell_len(text) > width:
        while cell_len(text) > width - 1:
            text = text[1:] if keep_end else text[:-1]
        text = f"\N{HORIZONTAL ELLIPSIS}{text}" if keep_end else f"{text}\N{HORIZONTAL ELLIPSIS}"
    return text + " " * (width - cell_len(text))
