"""The pictures of the README and of docs/: the drawings are what `make pictures` draws from results/, and what they say is true.

The pages' pictures come from a browser, whose fonts and versions differ, so no two machines give the same bytes: they are held
to be there, light and dark, and small, and their making is tried where there is a Chromium.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.runs import kept
from pipeline.runs.kept import Run
from tests.conftest import ROOT
from tests.kept_runs import DATA, keep, losses, replaced, weights
from tests.test_page import contrast
from tools import parting, pictures
from tools.parting import DARK, LIGHT, Pair

PICTURES = ROOT / pictures.PICTURES
NAMES = {f"{name}-{scheme}.{ending}" for scheme in ("light", "dark") for name, ending in
         (("numerics", "svg"), ("compare", "png"), ("classify", "png"))}  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    return {pair.kind: pair for pair in pictures.chosen(ROOT / "results")}


# --- what is in docs/pictures/ ---------------------------------------------------------------------------------------


def test_the_drawings_are_what_the_command_makes_of_results(pairs: dict[str, Pair]) -> None:
    drawn = pictures.drawings(list(pairs.values()))
    assert drawn == {path.name: path.read_text() for path in PICTURES.glob("*.svg")}


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


def test_the_light_and_the_dark_picture_of_a_page_are_as_wide_and_differ_in_their_ground() -> None:
    for name, width in (("compare", pictures.COMPARE_WIDTH), ("classify", pictures.CLASSIFY_WIDTH)):
        light, dark = (Image.open(PICTURES / f"{name}-{scheme}.png").convert("L") for scheme in ("light", "dark"))
        assert light.width == dark.width == width
        assert light.getpixel((2, 2)) > 200 > 50 > dark.getpixel((2, 2))


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


# --- which runs are taken, and what is drawn of them -------------------------------------------------------------------

OLD = {"threads": 1, "capability": "DEFAULT"}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two native and two exact runs."""
    monkeypatch.chdir(tmp_path)
    keep(runs=Path("results"))
    keep(runs=Path("results"), **OLD)
    keep(runs=Path("results"), numerics="native")
    keep(runs=Path("results"), numerics="native", history=losses(off=0.01, since=7), tensors=weights(0.1), **OLD)
    return Path("results")


def ways(pair: Pair) -> list[tuple[int | None, str | None]]:
    return [(run.environment.train.threads, run.environment.train.cpu_capability) for run in pair.runs if run.environment.train]


def test_the_runs_are_chosen_by_what_they_are(runs: Path) -> None:
    keep(runs=runs, threads=4)  # trained in another way
    keep(runs=runs, device="cuda")
    keep(runs=runs, trained_by=2)
    keep(runs=runs, seed=1)  # another training, and not run twice
    keep(runs=runs, seed=1, numerics="native")
    for number, folder in enumerate(kept.listed(runs)):
        folder.rename(runs / f"{-number % 10}-renamed")
    native, exact = pictures.chosen(runs)
    assert [pair.kind for pair in (native, exact)] == ["native", "exact"]
    assert [run.identity.numerics for pair in (native, exact) for run in pair.runs] == ["native", "native", "exact-1", "exact-1"]
    assert ways(native) == ways(exact) == [(2, "AVX2"), (1, "DEFAULT")]
    assert {run.identity.seed for pair in (native, exact) for run in pair.runs} == {0}


def test_the_longest_training_is_taken(runs: Path) -> None:
    for numerics in ("exact-1", "native"):
        for way in ({}, OLD):
            keep(runs=runs, numerics=numerics, train={"epochs": 4}, history=losses(80), **way)
    assert {run.identity.train.epochs for pair in pictures.chosen(runs) for run in pair.runs} == {4}


@pytest.mark.parametrize("lacking", [("native", 1), ("native", 2), ("exact-1", 1), ("exact-1", 2)], ids=str)
def test_without_two_of_each_the_command_ends_with_one_line(
    runs: Path, lacking: tuple[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in kept.listed(runs):
        run = kept.load(folder)
        if (run.identity.numerics, run.environment.train.threads) == lacking:  # type: ignore[union-attr]
            folder.rename(f"elsewhere-{folder.name}")
    with pytest.raises(SystemExit) as ended:
        pictures.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert re.fullmatch(r"error: results: no training was run twice with native numerics and twice with exact ones, .+\n", said.err)
    assert not pictures.PICTURES.exists()


def test_two_versions_of_exact_numerics_are_no_pair(runs: Path) -> None:
    for folder in kept.listed(runs):
        if kept.load(folder).identity.numerics == "exact-1":
            folder.rename(f"elsewhere-{folder.name}")
    keep(runs=runs)
    keep(runs=runs, numerics="exact-3", **OLD)
    with pytest.raises(UserError, match="no training was run twice"):
        pictures.chosen(runs)


def drawn_dots(svg: str, kind: str) -> list[tuple[float, float]]:
    """The places of a pair's dots."""
    (path,) = re.findall(rf'<path class="{kind} dots" d="([^"]+)"/>', svg)
    places, x, y = [], 0.0, 0.0
    for right, down in re.findall(r"m(-?[\d.]+) ?(-?[\d.]+)h0", path):
        x, y = x + float(right), y + float(down)
        places.append((x, y))
    return places


def test_every_logged_step_is_a_dot_at_its_difference_and_equal_ones_lie_on_the_row_of_0(runs: Path) -> None:
    native, exact = pictures.chosen(runs)
    svg = pictures.drawings([native, exact])["numerics-light.svg"]
    parted, equal = drawn_dots(svg, "native"), drawn_dots(svg, "exact")
    assert len(parted) == len(equal) == 40
    rows = [float(y) - 6 for y in re.findall(r'y="(\d+)"[^>]*>0</text>', svg) if float(y)]
    zeros = [y for y in rows if any(abs(y - dot) < 0.06 for _, dot in [*parted, *equal])]
    assert len(zeros) == 2
    assert {round(y, 1) for _, y in equal} == {zeros[1]}
    assert {round(y, 1) for _, y in parted[:7]} == {zeros[0]}
    one_percent = zeros[0] - parting.ZERO - (-2 - parting.LOWEST) * parting.DECADE
    assert all(abs(y - one_percent) < 0.2 for _, y in parted[7:])  # 0.01 / 1.01
    assert "part at step 71, at most 0.99 % apart" in svg
    assert "identical at all 40 logged steps" in svg


def test_what_is_said_follows_the_losses_not_the_name_of_the_numerics(runs: Path) -> None:
    native, exact = pictures.chosen(runs)
    first, second = exact.runs
    changed: Run = replace(second, history=native.runs[1].history)
    svg = pictures.drawings([native, replace(exact, runs=(first, changed))])["numerics-light.svg"]
    assert "identical" not in svg
    assert "0 at every" not in svg


def test_text_from_a_run_is_text(runs: Path) -> None:
    hostile = '<script xlink:href="x">&'
    run = kept.load(keep(runs=runs, data=replaced(DATA, {"name": hostile})))
    root = ElementTree.fromstring(parting.draw([Pair("native", hostile, (run, run))], (hostile, hostile), LIGHT))
    shown = [text.text for text in root.iter(f"{SVG}text")]
    assert shown.count(hostile) == 3
    assert f"{hostile}, seed 0, 2 epochs, batch size 64, lr 0.01" in shown
