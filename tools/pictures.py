"""`make pictures`: the pictures of the README and of docs/, from the kept runs in results/ and from the synthetic set.

No picture holds a pixel of a downloaded data set: the drawing is made of losses and fingerprints, the comparison's page is rendered
without a data set, and the page that classifies is given an image of the synthetic set. The pages are seen in headless Chromium.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline import demo, files, params, tensors
from pipeline.comparison import page, verdict
from pipeline.data import synthetic
from pipeline.device import CPU
from pipeline.errors import UserError, printable
from pipeline.export import export
from pipeline.inputs import CACHE
from pipeline.runs import kept, outputs
from pipeline.runs.kept import Run
from tools import chromium, parting
from tools.parting import Pair
from tools.results import RESULTS

PICTURES = Path("docs/pictures")
SCHEMES = {"light": parting.LIGHT, "dark": parting.DARK}
WAYS = {(2, "AVX2"): "2 threads, AVX2", (1, "DEFAULT"): "1 thread, oldest instructions"}
"""The two ways to train that are compared: threads and PyTorch's name of the instructions -> the words of the picture."""
KINDS = {"native": "Native numerics (PyTorch's own kernels)", "exact": "Exact numerics"}
COLOURS = 256
"""Of a picture of a page: a palette of so many looks the same and takes less space."""


def main() -> None:
    """Make all pictures, the drawings first: they need no browser."""
    try:
        pairs = chosen(RESULTS)
        for name, content in drawings(pairs).items():
            _write(name, content.encode())
        for name, png in pages(pairs):
            _write(name, png)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)


def _write(name: str, content: bytes) -> None:
    files.write_bytes(PICTURES / name, content)
    print(f"wrote {PICTURES / name}: {len(content) / 1000:.1f} kB", flush=True)


# --- the drawing ---------------------------------------------------------------------------------------------------


def chosen(results: Path) -> list[Pair]:
    """The native and the exact pair of runs that share data, seed and settings, each run trained in one of `WAYS`.

    Where several trainings were run in this way, it is the longest.

    Raises:
        UserError: a run is damaged, or there are not two of each.
    """
    trainings: dict[str, dict[str, list[Run]]] = {}
    for folder in kept.listed(results):
        run = kept.load(folder)
        kind = run.identity.numerics.partition("-")[0]
        if _way(run) is not None and kind in KINDS:
            shared = [run.identity.data.digest, run.identity.seed, msgspec.to_builtins(run.identity.train)]
            trainings.setdefault(json.dumps(shared, sort_keys=True), {}).setdefault(kind, []).append(run)
    whole = [kinds for kinds in trainings.values() if all(_is_pair(kinds.get(kind, [])) for kind in KINDS)]
    if not whole:
        ways = " and ".join(f"with {way}" for way in WAYS.values())
        raise UserError(
            f"{results}: no training was run twice with native numerics and twice with exact ones, {ways}, on the same data with the "
            "same seed and settings; results/README.md says how a run gets there"
        )
    longest = max(whole, key=lambda kinds: (len(kinds["exact"][0].history), kinds["exact"][0].identity.fingerprint))
    return [_pair(kind, longest[kind]) for kind in KINDS]


def _way(run: Run) -> str | None:
    trained = run.environment.train
    if trained is None or trained.device != CPU or trained.workers != 1:
        return None
    return WAYS.get((trained.threads or 0, trained.cpu_capability or ""))


def _is_pair(runs: list[Run]) -> bool:
    return sorted(_way(run) or "" for run in runs) == sorted(WAYS.values()) and len({run.identity.numerics for run in runs}) == 1


def _pair(kind: str, runs: list[Run]) -> Pair:
    first, second = sorted(runs, key=lambda run: list(WAYS.values()).index(_way(run) or ""))
    title = KINDS[kind] if kind == "native" else f"{KINDS[kind]} ({first.identity.numerics})"
    return Pair(kind, title, (first, second))


def drawings(pairs: list[Pair]) -> dict[str, str]:
    """File name -> SVG text."""
    first, second = WAYS.values()
    return {f"numerics-{scheme}.svg": parting.draw(pairs, (first, second), colours) for scheme, colours in SCHEMES.items()}


# --- the pages -----------------------------------------------------------------------------------------------------


def pages(pairs: list[Pair]) -> Iterator[tuple[str, bytes]]:
    """File name -> PNG of each page. Raises UserError where there is no Chromium, or the synthetic set trains to other weights."""
    with tempfile.TemporaryDirectory() as folder, chromium.started() as driver:
        compared, classifier = Path(folder) / "compare.html", Path(folder) / "net.html"
        runs = [pair.runs[0] for pair in reversed(pairs)]
        report = verdict.report(runs, params.load().compare)
        files.write_bytes(compared, page.render(report, runs, None))
        for scheme in SCHEMES:
            chromium.visit(driver, compared, width=COMPARE_WIDTH, dark=scheme == "dark")
            chromium.wait_for(driver, "document.documentElement.dataset.drawn")
            yield f"compare-{scheme}.png", _seen(driver, COMPARE_WIDTH, "document.getElementById('losses').closest('figure')")
        export(_trained(), classifier)
        for scheme in SCHEMES:
            chromium.visit(driver, classifier, width=CLASSIFY_WIDTH, dark=scheme == "dark")
            chromium.wait_for(driver, "document.documentElement.dataset.selfTest === 'passed'")
            driver.execute_script(GIVE, base64.b64encode(_png(synthetic.make().test_images[IMAGE])).decode())
            chromium.wait_for(driver, "!document.getElementById('result').hidden")
            yield f"classify-{scheme}.png", _seen(driver, CLASSIFY_WIDTH, "document.getElementById('result')")


COMPARE_WIDTH, CLASSIFY_WIDTH = 800, 720
GAP = 15
"""Pixels below the last element that is seen, before the next one."""
IMAGE = 1156
"""The test image of the synthetic set that is classified: a ring that a reader recognises, and the network all but surely."""
GIVE = """
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytesOf(arguments[0])], "picture.png"));
  document.getElementById("file").files = transfer.files;
  document.getElementById("file").dispatchEvent(new Event("change"));
"""
"""Chooses a file as a reader does."""


def _trained() -> Path:
    """The demo's training, in a folder of its own; it stays there, so that DVC does not train again. Raises UserError."""
    folder = CACHE / "pictures"
    demo.repro(folder)
    trained = folder / outputs.OUTPUTS
    if (fingerprint := tensors.fingerprint(outputs.read_weights(trained))) != demo.FINGERPRINT:
        raise UserError(f"{trained}: its fingerprint is {fingerprint}, not the demo's: `make demo` says more")
    return trained


def _seen(driver: Any, width: int, last: str) -> bytes:
    """The page down to the end of the element that the script `last` names, in few colours, as a PNG."""
    from PIL import Image

    bottom = driver.execute_script(f"scrollTo(0, 0); return Math.ceil(({last}).getBoundingClientRect().bottom)")
    taken = Image.open(io.BytesIO(chromium.screenshot(driver, width=width, height=bottom + GAP))).convert("RGB")
    file = io.BytesIO()
    taken.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _png(image: np.ndarray) -> bytes:
    """An image, uint8 [3, 32, 32], as a PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
