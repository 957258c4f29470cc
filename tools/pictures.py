"""`make pictures`: the README's drawing of how far the losses of two trainings part with native and with exact numerics, as SVG.

Both panels are drawn by the same code from the runs' files. A logarithmic scale has no 0, so equal losses have a row of their own
under it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from pipeline.comparison.wording import known
from pipeline.exact import VERSION
from pipeline.runs import kept
from pipeline.runs.kept import Run
from pipeline.system import files
from tools.results import RESULTS

PICTURES = Path("docs/pictures")
DATA = "cifar10-jpeg"
RUNS = {
    ("native", "Native numerics (PyTorch's own kernels)"): ("native-cpu-seed0-71110666", "native-cpu-seed0-f0a715ad"),
    ("exact", f"Exact numerics ({VERSION})"): ("exact-3-cpu-seed0-1bb57afe", "exact-3-cpu-seed0-00187264"),
}
"""The colour and the title of a panel, and the two kept runs on `DATA` that it compares."""
WAYS = ("2 threads, AVX-512", "1 thread, oldest instructions")
"""How the first and the second run of each pair were trained."""
LIGHT = {"ground": "#ffffff", "line": "#d3dae2", "ink": "#1b1f24", "muted": "#515b66", "native": "#b35900", "exact": "#0b62d6"}
DARK = {"ground": "#0d1117", "line": "#343c46", "ink": "#e6edf3", "muted": "#a3adb8", "native": "#f0a04b", "exact": "#6cb6ff"}
"""The colours of the comparison's page."""

WIDTH, MARGIN, LEFT, RIGHT = 600, 20, 66, 576
"""Of the picture, of its text, and where a plot begins and ends. On a phone a unit is 0.6 pixels, so no text is smaller than 17."""
DECADE, ZERO = 17, 32
"""The heights of a power of ten, and from the lowest one down to the row of equal losses."""
LOWEST, HIGHEST = -8, 0
"""The powers of ten on the scale. A float32 has 24 bits: two that differ, differ by more than the lowest one."""
ROW = 25
"""The height of a line of text."""


@dataclass(frozen=True)
class Pair:
    """Two runs that differ in nothing but the way they were trained."""

    kind: str
    """`native` or `exact`: the name of its colour."""
    title: str
    runs: tuple[Run, Run]

    @property
    def differences(self) -> list[tuple[int, float]]:
        """Each logged step, and |a - b| over the larger of the two losses there."""
        rows = zip(self.runs[0].history, self.runs[1].history, strict=True)
        return [(a.step, abs(a.loss - b.loss) / max(a.loss, b.loss) if a.loss != b.loss else 0.0) for a, b in rows]

    @property
    def finding(self) -> str:
        """What its panel shows, in words."""
        apart = [(step, size) for step, size in self.differences if size]
        if not apart:
            return f"losses identical at all {len(self.differences)} logged steps"
        return f"losses part at step {apart[0][0]:,}, at most {100 * max(size for _, size in apart):.2g} % apart"


def pairs() -> list[Pair]:
    """The runs that are drawn."""
    return [Pair(kind, title, _loaded(*names)) for (kind, title), names in RUNS.items()]


def _loaded(first: str, second: str) -> tuple[Run, Run]:
    return kept.load(RESULTS / f"{DATA}-{first}"), kept.load(RESULTS / f"{DATA}-{second}")


def drawings() -> dict[str, str]:
    """File name -> SVG text."""
    return {f"numerics-{scheme}.svg": draw(pairs(), WAYS, colours) for scheme, colours in (("light", LIGHT), ("dark", DARK))}


def draw(pairs: Sequence[Pair], ways: tuple[str, str], colours: dict[str, str]) -> str:
    """The picture; `ways` says how the two runs of each pair were trained."""
    parts = [
        _text(MARGIN, 38, "The same training in two settings", "ink", 'font-size="22" font-weight="700"'),
        _text(MARGIN, 64, "Relative difference of the training loss (log scale)", "muted"),
    ]
    y = 108
    for pair in pairs:
        panel, y = _panel(pair, ways, y)
        parts += panel
    for line in _made_by(pairs[0].runs[0]):
        parts.append(_text(MARGIN, y, line, "muted"))
        y += ROW
    height = y - 5
    described = " ".join(f"{pair.title}: {pair.finding}; {_fingerprints(pair)}." for pair in pairs)
    description = f"The relative difference of the training losses of two runs, by step: {ways[0]}, and {ways[1]}. {described}"
    fills = "".join(f".{name}{{fill:{colours[name]}}}" for name in ("ground", "ink", "muted", "native", "exact"))
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'role="img" aria-labelledby="title desc" font-family="system-ui,-apple-system,\'Segoe UI\',sans-serif" font-size="17">',
        "<!-- Made by `make pictures` from the kept runs in results/. -->",
        f'<title id="title">{escape("; ".join(f"{pair.title}: {pair.finding}" for pair in pairs), quote=False)}</title>',
        f'<desc id="desc">{escape(description, quote=False)}</desc>',
        f"<style>{fills}.code{{font-family:ui-monospace,'DejaVu Sans Mono',monospace}}"
        f".dots{{fill:none;stroke-width:3;stroke-linecap:round}}.grid{{fill:none;stroke:{colours['line']}}}"
        f".native.dots{{stroke:{colours['native']}}}.exact.dots{{stroke:{colours['exact']}}}</style>",
        f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" stroke="{colours["line"]}"/>',
        *parts,
        "</svg>",
        "",
    ])  # fmt: skip


def _panel(pair: Pair, ways: tuple[str, str], y: int) -> tuple[list[str], int]:
    """A pair's plot with its fingerprints, from `y` on, the base line of its title; and where the next one begins."""
    parts = [
        f'<circle class="{pair.kind}" cx="{MARGIN + 6}" cy="{y - 6}" r="6"/>',
        _text(MARGIN + 20, y, pair.title, "ink", 'font-weight="700"'),
        _text(MARGIN + 20, y + ROW - 1, pair.finding, pair.kind, 'font-weight="600"'),
    ]
    top = y + ROW + 20
    lowest = top + (HIGHEST - LOWEST) * DECADE
    zero = lowest + ZERO
    last = pair.differences[-1][0]
    for power in range(LOWEST, HIGHEST + 1, 2):
        level = top + (HIGHEST - power) * DECADE
        parts += [_grid(f"M{LEFT} {level}H{RIGHT}"), _text(LEFT - 10, level + 6, _power(power), "muted", END)]
    parts += [_grid(f"M{LEFT} {zero}H{RIGHT}"), _text(LEFT - 10, zero + 6, "0", "ink", f'{END} font-weight="700"')]
    for step in range(0, last, 2000):
        x = round(_across(step, last))
        parts += [_grid(f"M{x} {top}V{lowest}M{x} {zero - 5}V{zero + 5}"), _text(x, zero + 27, f"{step:,}", "muted", MIDDLE)]
    parts.append(_text(RIGHT, zero + 27, "step", "muted", END))
    places = [(_across(step, last), top + (HIGHEST - math.log10(size)) * DECADE if size else zero) for step, size in pair.differences]
    parts.append(f'<path class="{pair.kind} dots" d="{_dots(places)}"/>')
    if not any(size for _, size in pair.differences):
        parts.append(
            _text((LEFT + RIGHT) // 2, zero - 12, "0 at every logged step, to the last bit", pair.kind, f'{MIDDLE} font-weight="600"')
        )
    y = zero + 27 + ROW + 8
    parts += [_text(MARGIN, y, "trained with", "muted"), _text(RIGHT - 34, y, "weights' SHA-256, first 12 digits", "muted", END)]
    for run, way in zip(pair.runs, ways, strict=True):
        y += ROW
        parts += [_text(MARGIN, y, way, "ink"), _text(RIGHT - 34, y, run.identity.fingerprint[:12], "ink code", END)]
    equal = pair.runs[0].identity.fingerprint == pair.runs[1].identity.fingerprint
    sign = "=" if equal else "\N{NOT EQUAL TO}"
    parts.append(_text(RIGHT - 10, y - ROW // 2 + 4, sign, pair.kind, f'{MIDDLE} font-size="28" font-weight="700"'))
    return parts, y + 2 * ROW


MIDDLE, END = 'text-anchor="middle"', 'text-anchor="end"'


def _text(x: int, y: int, text: str, kind: str, attributes: str = "") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}"{" " * bool(attributes)}{attributes}>{escape(text, quote=False)}</text>'


def _grid(path: str) -> str:
    return f'<path class="grid" d="{path}"/>'


def _power(power: int) -> str:
    superscripts = str.maketrans("-0123456789", "\N{SUPERSCRIPT MINUS}⁰¹²³⁴⁵⁶⁷⁸⁹")
    return f"10{str(power).translate(superscripts)}" if power else "1"


def _across(step: int, last: int) -> float:
    return LEFT + (RIGHT - LEFT) * step / last


def _dots(places: Sequence[tuple[float, float]]) -> str:
    """A dot for each place: a path of steps of no length, each relative to the one before, in tenths of a unit."""
    written, x, y = [], 0, 0
    for right, down in places:
        new_x, new_y = round(10 * right), round(10 * down)
        written.append(f"m{_tenths(new_x - x)} {_tenths(new_y - y)}h0".replace(" -", "-"))
        x, y = new_x, new_y
    return "".join(written)


def _tenths(number: int) -> str:
    """A number of tenths in its shortest decimal form."""
    return f"{number / 10:g}".replace("0.", ".") if abs(number) < 10 and number else f"{number / 10:g}"


def _fingerprints(pair: Pair) -> str:
    first, second = (run.identity.fingerprint[:12] for run in pair.runs)
    return f"both have the weights {first}" if first == second else f"their weights are {first} and {second}"


def _made_by(run: Run) -> list[str]:
    """What was trained, and where, in two lines."""
    settings, trained = run.identity.recipe, run.environment.train
    hardware, torch = (known(trained and getattr(trained, name)) for name in ("hardware", "torch"))
    said = [run.identity.data.name, f"seed {run.identity.seed}", f"{settings.epochs} epochs"]
    said += [f"batch size {settings.batch_size}", f"lr {settings.lr:g}"]
    return [", ".join(said), f"{hardware}, PyTorch {torch.partition('+')[0]}"]


if __name__ == "__main__":
    for name, svg in drawings().items():
        files.write_text(PICTURES / name, svg)
