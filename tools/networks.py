"""`make networks`: docs/networks.md's tables of networks that train exactly: torchvision's, and small ones of the usual kinds.

Each takes two training steps and an evaluation on three small images, as one share and as two. What was seen of a network is kept in
results/networks.json: commit that, and a measurement that was interrupted goes on. `python -m tools.networks NAME...` measures some, again
if need be.
"""

from __future__ import annotations

import copy
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models import ConvNeXt, RegNet, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.regnet import BlockParams

from pipeline.comparison import markdown
from pipeline.device import CPU
from pipeline.exact import VERSION
from pipeline.exact.engine import Exact
from pipeline.exact.group import ALONE
from pipeline.exact.initialisation import initial_values
from pipeline.exact.masks import Draws
from pipeline.machine import check
from pipeline.params import Model
from pipeline.system import files
from pipeline.system.errors import UserError
from tools import commit, markers
from tools.miniatures import MINIATURES
from tools.results import RESULTS

PAGE = Path("docs/networks.md")
SEEN = RESULTS / "networks.json"
CLASSES, SEED = 10, 0
SIZE = 64
SIZES = dict.fromkeys(MINIATURES, 32) | {"inception_v3": 299, "maxvit_t": 224, "googlenet": 96, "alexnet": 80, "vit_h_14": 56}
"""Of those that take no images of SIZE."""
NARROWER: dict[str, Callable[[], nn.Module]] = {
    "convnext_large": lambda: ConvNeXt(
        [CNBlockConfig(192, 384, 1), CNBlockConfig(384, 768, 1), CNBlockConfig(768, 1536, 2), CNBlockConfig(1536, None, 1)],
        num_classes=CLASSES,
    ),
    "vit_h_14": lambda: VisionTransformer(56, 14, 4, 16, 1280, 5120, num_classes=CLASSES),
    "vit_l_16": lambda: VisionTransformer(SIZE, 16, 4, 16, 1024, 4096, num_classes=CLASSES),
    "vit_l_32": lambda: VisionTransformer(SIZE, 32, 4, 16, 1024, 4096, num_classes=CLASSES),
    "regnet_y_128gf": lambda: RegNet(
        BlockParams.from_init_params(depth=4, w_0=456, w_a=160.83, w_m=2.52, group_width=264, se_ratio=0.25), num_classes=CLASSES
    ),
}
"""Those whose weights take more memory than a usual machine has: the same operations with fewer layers."""
OURS = NARROWER | MINIATURES
"""Name -> a network that is built here."""


HEADS = ["network", "images", "weights", "exchanges a step", "error", "float32's", "hash"]


class Row(NamedTuple):
    """What was seen of a network."""

    name: str
    size: int
    weights: int
    exchanges: int
    error: float
    """Of the first step's gradients: the largest difference from float64's autograd, of the largest gradient of its weight; the median
    over the weights."""
    float32_error: float
    """The same of float32's autograd."""
    fingerprint: str
    commit: str
    """Of the sources that computed it."""


def names() -> list[str]:
    """The classification builders of torchvision."""
    return list(torchvision_models.list_models(module=torchvision_models))


def built(name: str) -> tuple[nn.Module, check.Subject]:
    """The network with its initial weights, and what images it is for."""
    size = SIZES.get(name, SIZE)
    subject = check.Subject(Model(name=name), (3, size, size), CLASSES, SEED, CPU)
    if name not in OURS:
        return check.built(subject), subject
    with initial_values(SEED):
        return OURS[name](), subject


def row(name: str, commit: str) -> Row:
    """Train and evaluate one, by the sources of that commit.

    Raises:
        UserError: it cannot be computed exactly, or not with the same bits in two shares or image by image.
    """
    network, subject = built(name)
    training, after = check.trained(network, subject)
    together, alone = check.evaluated(after, subject, check.IMAGES), check.evaluated(after, subject, 1)
    del after  # a large one leaves little room for shares
    in_shares, exchanges = check.trained_in_shares(network, subject, 2)
    if (training, together) != (in_shares, alone):
        raise UserError(f"{name}: other bits in shares ({training:.12}, {in_shares:.12}) or alone ({together:.12}, {alone:.12})")
    weights = sum(parameter.numel() for parameter in network.parameters())
    return Row(name, subject.shape[1], weights, exchanges, *errors(network, subject), training, commit)


def errors(network: nn.Module, subject: check.Subject) -> tuple[float, float]:
    """How far exact gradients, and float32's of autograd, are from float64's of autograd, without dropout: `Row.error`."""
    network.train()
    for module in network.modules():
        if isinstance(getattr(module, "p", None), float):  # of dropout and stochastic depth
            module.p = 0.0  # type: ignore[assignment]
    images, labels = check.drawn(subject)
    _, exact = Exact().loss_and_gradients(
        copy.deepcopy(network), images, labels, ALONE, len(images), draws=Draws(0, torch.zeros(1, dtype=torch.int64))
    )
    usual = _by_autograd(copy.deepcopy(network), images.float() / 255, labels)
    right = _by_autograd(network.double(), (images.float() / 255).double(), labels)
    return _median_error(exact, right), _median_error(usual, right)


def _by_autograd(network: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor | None]:
    given = network(images)
    main, *beside = given if isinstance(given, tuple) else (given,)
    loss = F.cross_entropy(main, labels)
    for logits in beside:
        loss = loss + 0.3 * F.cross_entropy(logits, labels)
    return list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))


def _median_error(gradients: list[Tensor | None], right: list[Tensor | None]) -> float:
    found = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(gradients, right, strict=True) if a is not None and b is not None]
    return median(each for each in found if each == each)  # a gradient that is 0 has no relative error


def seen() -> dict[str, Row]:
    """What was seen of each network with these versions of the numerics and of torchvision."""
    found = json.loads(SEEN.read_bytes()) if SEEN.exists() else {}
    same = (found.get("numerics"), found.get("torchvision")) == (VERSION, torchvision.__version__)
    return {each["name"]: Row(**each) for each in found["rows"]} if same else {}


def main() -> None:
    """Measure the named networks, or all that were not, and put all that is known into the page. Exit code 2 if one is not exact."""
    torch.set_num_threads(1)  # quicker for so few images, and the same bits
    try:
        measured_at = commit.measured()
    except UserError as error:
        sys.exit(f"error: {error}")
    rows, failed = seen(), []
    known = [*MINIATURES, *names()]
    for name in sys.argv[1:] or [name for name in known if name not in rows]:
        try:
            rows[name] = row(name, measured_at)
        except UserError as reason:
            failed.append(name)
            print(f"{name}: {reason}", file=sys.stderr, flush=True)
        else:
            print(*rows[name], flush=True)
            ordered = [rows[each]._asdict() for each in known if each in rows]
            files.write_json(SEEN, {"numerics": VERSION, "torchvision": torchvision.__version__, "rows": ordered})
        gc.collect()
    markers.replace(PAGE, "networks", table(rows, failed))
    sys.exit(2 if failed else 0)


def table(rows: dict[str, Row], failed: list[str]) -> str:
    """The page's tables, in the order of the builders and of the kinds."""
    commits = ", ".join(sorted({row.commit for row in rows.values()}))
    said = f"At commit {commits}." + (f" Not exact: {', '.join(failed)}." if failed else "")
    of = {f"torchvision {torchvision.__version__}": (names(), "builders"), "In miniature": (list(MINIATURES), "kinds")}
    parts = [said]
    for title, (known, what) in of.items():
        found = [rows[name] for name in known if name in rows]
        parts += [f"{title}, {len(found)} of {len(known)} {what}:", "\n".join(markdown.table(HEADS, [_cells(row) for row in found]))]
    return "\n\n".join(parts)


def _cells(row: Row) -> list[str]:
    return [
        f"{row.name}{' (narrower)' * (row.name in NARROWER)}", f"{row.size} x {row.size}", f"{row.weights:,}", str(row.exchanges),
        f"{row.error:.1e}", f"{row.float32_error:.1e}", f"`{row.fingerprint:.12}`",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
