"""`make ways`: six networks, each trained in every way that this machine has, a training of its own each; the table in docs/networks.md.

Nine drawn images of 64 x 64 in batches of four: the last batch has one, so of several workers most have none. What was seen is kept in
results/ways.json, with the release of PyTorch. Run by another release (`PYTHON -m tools.ways`), its ways are added to those.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from pipeline import params, sources
from pipeline.comparison import markdown
from pipeline.data.dataset import DATASET
from pipeline.exact import VERSION
from pipeline.machine import demo
from pipeline.machine.records import OLDEST_INSTRUCTIONS
from pipeline.params import Model
from pipeline.runs import outputs
from pipeline.runs.outputs import OUTPUTS
from pipeline.system import files, tensors
from pipeline.system.errors import UserError, printable
from tools import commit, markers
from tools.results import RESULTS
from tools.variants import random_set

PAGE = Path("docs/networks.md")
NAME = "ways"
"""Of the block in the page."""
SEEN = RESULTS / "ways.json"
IMAGES, SIZE, BATCH, EPOCHS = 9, 64, 4, 2
MODELS = {
    "ResNet-20": Model(name="networks/resnet20.py:ResNet20"),
    "mobilenet_v2": Model(name="mobilenet_v2"),
    "densenet121": Model(name="densenet121"),
    "efficientnet_b0": Model(name="efficientnet_b0"),
    "ViT, 4 x 128": Model(name="networks/vit.py:ViT", arguments={"width": 128, "layers": 4, "patch": 8}),
    "swin_t": Model(name="swin_t"),
}
TRAIN = [*demo.PIPELINE, "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--local-addr=127.0.0.1"]


class Way(NamedTuple):
    """One way to train."""

    name: str
    threads: int = 1
    workers: int = 1
    settings: dict[str, str] = {}  # noqa: RUF012  # read alone
    command: tuple[str, ...] = tuple(TRAIN)
    killed: bool = False
    """Whether it gets SIGKILL as soon as a state is saved, and is begun again."""


def ways() -> list[Way]:
    """Those of this machine."""
    has_newer = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return [
        Way("1 thread"),
        Way("2 threads", threads=2),
        Way("the oldest instructions", settings=OLDEST_INSTRUCTIONS),
        *([Way("AVX2", settings={"ATEN_CPU_CAPABILITY": "avx2"})] if has_newer else []),
        *(Way(f"{workers} workers", workers=workers) for workers in (2, 3, 5)),
        Way("2 processes of torchrun", command=(*TORCHRUN, *TRAIN[1:])),
        Way("killed and resumed", killed=True),
    ]


def fingerprint(folder: Path, way: Way) -> str:
    """Train in a copy of `folder`; the weights' fingerprint. Raises UserError where the training fails."""
    with tempfile.TemporaryDirectory() as name:
        own = Path(name)
        shutil.copytree(folder, own, dirs_exist_ok=True)
        settings = msgspec.to_builtins(params.load(own / params.PARAMS)) | {"workers": way.workers}
        files.write_text(own / params.PARAMS, params.dump(settings))
        environment = {"OMP_NUM_THREADS": str(way.threads), "PYTHONPATH": str(sources.PROJECT), **way.settings}
        if way.killed:
            demo.begin(own, environment, signal.SIGKILL)
        done = subprocess.run(way.command, cwd=own, env={**os.environ, **environment}, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{way.name}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
        return tensors.fingerprint(outputs.read_weights(own / OUTPUTS))


def lay_out(folder: Path, model: Model, numerics: str) -> None:
    """Settings, images and networks of a training."""
    settings: dict[str, Any] = copy.deepcopy(demo.SETTINGS) | {"numerics": numerics, "model": msgspec.to_builtins(model)}
    settings["train"] |= {"epochs": EPOCHS, "batch_size": BATCH}
    files.write_text(folder / params.PARAMS, params.dump(settings))
    shutil.copytree(sources.PROJECT / "networks", folder / "networks", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (folder / DATASET.parent).mkdir(exist_ok=True)
    random_set(IMAGES, 1, SIZE).save(folder / DATASET)


def measure(name: str, seen: dict[str, Any], measured_at: str) -> None:
    """Train a network in every way, and note in `seen` what each gave."""
    release = torch.__version__.partition("+")[0]
    for numerics, chosen in (("exact", ways()), ("native", ways()[:3])):
        with tempfile.TemporaryDirectory() as folder:
            lay_out(Path(folder), MODELS[name], numerics)
            for way in chosen:
                found = fingerprint(Path(folder), way)
                print(f"{name}, {numerics}, {way.name}, PyTorch {release}: {found}", flush=True)
                seen.setdefault(name, {}).setdefault(numerics, {})[f"{way.name}, PyTorch {release}"] = [found, measured_at]


def seen() -> dict[str, Any]:
    """What each way gave with this version of the numerics, by network, numerics and way: the hash, and the commit."""
    found = json.loads(SEEN.read_bytes()) if SEEN.exists() else {}
    return dict(found["networks"]) if found.get("numerics") == VERSION else {}


def table(seen: dict[str, Any]) -> str:
    """What is kept, as Markdown: a network a row, with its one hash, how many ways gave it, and how many hashes native gave."""
    rows, named, commits = [], dict[str, None](), set[str]()
    for name in MODELS:
        if name not in seen:
            continue
        exact, native = ({way: found for way, (found, _) in seen[name][of].items()} for of in ("exact", "native"))
        named |= dict.fromkeys(exact)
        commits |= {at for of in ("exact", "native") for _, at in seen[name][of].values()}
        hashes = ", ".join(f"`{each:.12}`" for each in sorted(set(exact.values())))
        rows.append([name, hashes, str(len(exact)), f"{len(set(native.values()))} of {len(native)}"])
    of_release: dict[str, list[str]] = {}
    for way in named:
        what, _, release = way.rpartition(", ")
        of_release.setdefault(release, []).append(what)
    said = "; ".join(f"with {release}: {', '.join(of)}" for release, of in of_release.items())
    lines = markdown.table(["network", "hash of the weights", "ways that gave it", "native numerics' hashes"], rows)
    return "\n".join([f"{VERSION}, at commit {', '.join(sorted(commits))}. {said[:1].upper()}{said[1:]}.", "", *lines])


def main() -> None:
    """Measure the named networks, or all, and put the table into its page. Exit code 3 where a network has several hashes."""
    try:
        measured_at = commit.measured()
        networks = seen()
        for name in sys.argv[1:] or MODELS:
            measure(name, networks, measured_at)
            files.write_json(SEEN, {"numerics": VERSION, "networks": networks})
        markers.replace(PAGE, NAME, table(networks))
    except UserError as error:
        sys.exit(f"error: {printable(str(error))}")
    sys.exit(3 if any(len({found for found, _ in of["exact"].values()}) > 1 for of in networks.values()) else 0)


if __name__ == "__main__":
    main()
