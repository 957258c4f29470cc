"""The pictures of the README and of docs/: the drawings are what `make pictures` draws from results/, and what they say is true.

The pages' pictures were taken in a browser: they are held to be there, light and dark, and small.
"""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs import kept
from tests.conftest import ROOT
from tests.kept_runs import keep, losses, weights
from tests.test_page import contrast
from tools import pictures
from tools.pictures import DARK, LIGHT, Pair

PICTURES = ROOT / pictures.PICTURES
NAMES = {f"{name}-{scheme}.{ending}" for scheme in ("light", "dark") for name, ending in
         (("numerics", "svg"), ("compare", "png"), ("classify", "png"))}  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    return {pair.kind: pair for pair in pictures.pairs()}


# --- what is in docs/pictures/ ---------------------------------------------------------------------------------------


def test_the_drawings_are_what_the_command_makes_of_results() -> None:
    assert pictures.drawings() == {path.name: path.read_text() for path in PICTURES.glob("*.svg")}


def test_exact_numerics_agree_at_every_step_and_native_ones_do_not(pairs: dict[str, Pair]) -> None:
    exact, native = ([[(s.step, s.loss) for s in run.history] for run in pairs[kind].runs] for kind in ("exact", "native"))
    assert exact[0] == exact[1]
    assert native[0] != native[1]
    prints = {kind: {run.identity.fingerprint for run in pair.runs} for kind, pair in pairs.items()}
    assert {kind: len(different) for kind, different in prints.items()} == {"exact": 1, "native": 2}
    for path in PICTURES.glob("*.svg"):
        shown = [text.text for text in ElementTree.parse(path).iter(f"{SVG}text") if "code" in text.attrib["class"]]
        assert shown == [run.identity.fingerprint[:12] for kind in ("native", "exact") for run in pairs[kind].runs]


def test_all_pictures_are_there_and_together_they_are_small() -> None:
    assert {path.name for path in PICTURES.iterdir()} == NAMES
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 300_000
    assert max(path.stat().st_size for path in PICTURES.glob("*.svg")) < 20_000


def test_a_drawing_has_no_script_and_asks_for_nothing() -> None:
    for path in PICTURES.glob("*.svg"):
        text, root = path.read_text(), ElementTree.parse(path).getroot()
        assert {element.tag.removeprefix(SVG) for element in root.iter()} == {
            "svg", "title", "desc", "style", "rect", "circle", "path", "text",
        }  # fmt: skip
        attributes = {name for element in root.iter() for name in element.attrib}
        assert [name for name in attributes if name.startswith(("on", "{")) or "href" in name] == []
        assert re.findall(r"(?i)url\(|@import|javascript:|<!DOCTYPE|<\?", text) == []
        assert set(re.findall(r"\w+://[^\"']*", text)) == {"http://www.w3.org/2000/svg"}


def test_a_drawing_says_what_it_shows(pairs: dict[str, Pair]) -> None:
    for path in PICTURES.glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert (root.get("role"), root.get("aria-labelledby")) == ("img", "title desc")
        said = {element.get("id"): element.text or "" for element in root if element.tag in (f"{SVG}title", f"{SVG}desc")}
        assert all(pair.finding in said[part] for part in ("title", "desc") for pair in pairs.values())


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_the_colours_have_the_contrast_that_wcag_asks_for(colours: dict[str, str]) -> None:
    texts = ("ink", "muted", "native", "exact")
    assert [name for name in texts if contrast(colours[name], colours["ground"]) < 4.5] == []


# --- what the pages name ---------------------------------------------------------------------------------------------


def named_pictures() -> list[tuple[Path, str, str]]:
    """Page, picture and alternative text; of a <source> that of its <picture>."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        found += [(page, address, alt) for alt, address in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", text)]
        for element in re.findall(r"<picture>.*?</picture>|<img\b(?:(?!</picture>).)*?>", text, re.DOTALL):
            alt = (re.search(r'\salt="([^"]*)"', element) or [None, ""])[1]
            found += [(page, address, alt) for address in re.findall(r'\s(?:src|srcset)="([^"]+)"', element)]
    return found


def test_every_picture_that_a_page_names_exists_and_has_an_alternative_text() -> None:
    named = named_pictures()
    assert len(named) >= 6
    missing = [(page.name, address) for page, address, _ in named if not (page.parent / address).is_file()]
    silent = [(page.name, address) for page, address, alt in named if len(alt) < 20]
    assert (missing, silent) == ([], [])


def test_a_page_that_shows_a_picture_has_it_for_both_schemes() -> None:
    named = {(page, (page.parent / address).resolve()) for page, address, _ in named_pictures()}
    for page, path in named:
        if path.parent == PICTURES:
            other = path.stem.replace("-light", "-DARK").replace("-dark", "-light").replace("-DARK", "-dark")
            assert (page, path.with_stem(other)) in named


def drawn_dots(svg: str, kind: str) -> list[float]:
    """How far down a pair's dots are."""
    (path,) = re.findall(rf'<path class="{kind} dots" d="([^"]+)"/>', svg)
    return list(itertools.accumulate(float(down) for _, down in re.findall(r"m(-?[\d.]+) ?(-?[\d.]+)h0", path)))


def pair_of(tmp_path: Path, **changed: Any) -> Pair:
    return Pair("exact", "Exact", (kept.load(keep(runs=tmp_path)), kept.load(keep(runs=tmp_path, threads=1, **changed))))


def test_every_logged_step_is_a_dot_and_equal_ones_lie_on_the_row_of_0(tmp_path: Path) -> None:
    svg = pictures.draw([pair_of(tmp_path, history=losses(off=0.01, since=7), tensors=weights(0.1))], ("a", "b"), LIGHT)
    zero, *_ = dots = drawn_dots(svg, "exact")
    one_percent = zero - pictures.ZERO - (-2 - pictures.LOWEST) * pictures.DECADE
    assert len(dots) == 40
    assert all(abs(y - zero) < 0.06 for y in dots[:7])
    assert all(abs(y - one_percent) < 0.5 for y in dots[7:])  # 0.01 / 1.01
    assert "part at step 71, at most 0.99 % apart" in svg
    assert "identical" not in svg
    assert "0 at every" not in svg
    equal = pictures.draw([pair_of(tmp_path)], ("a", "b"), LIGHT)
    assert "identical at all 40 logged steps" in equal
    assert len({round(y, 1) for y in drawn_dots(equal, "exact")}) == 1


def test_text_from_a_run_is_text(tmp_path: Path) -> None:
    hostile = '<script xlink:href="x">&'
    run = kept.load(keep(runs=tmp_path))  # the name of its data set can hold nothing of the kind
    root = ElementTree.fromstring(pictures.draw([Pair("native", hostile, (run, run))], (hostile, hostile), LIGHT))
    shown = [text.text for text in root.iter(f"{SVG}text")]
    assert shown.count(hostile) == 3
