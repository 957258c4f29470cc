"""The comparison's page: what is in it, and how headless Chromium shows it."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.comparison import figures, page, verdict
from pipeline.comparison.report import ORDER
from pipeline.data import dataset, pictures
from pipeline.system import offline
from tests import browser, kept_runs
from tests.comparisons import SETTINGS
from tests.kept_runs import DATA, guesses, keep, losses, replaced, weights

HOSTILE = "<script>window.hostile = 1</script>"
CLASSES = (HOSTILE, "<b>auto</b>", *kept_runs.CLASSES[2:])
PACKAGE = Path(offline.__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a data set and four runs of it: two identical, a native one a rounding apart, one of another seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        patch.setattr(os, "fsync", lambda handle: None)
        data = kept_runs.dataset(classes=CLASSES)
        data.save()
        keep(data=data.description)
        keep(data=data.description, device="cuda", hardware=f"A card {HOSTILE} <img src=x onerror=hostile()>")
        near = {"tensors": weights(1e-6), "history": losses(off=1e-6, since=9), "predicted": guesses(1000, [5, 50])}
        keep(data=data.description, numerics="native", **near)
        far = {"tensors": weights(0.3), "history": losses(off=0.01), "predicted": guesses(1000, range(0, 400, 3))}
        keep(data=data.description, seed=1, trained_here=False, **far)
        folders = sorted(Path("runs").iterdir())
        assert [path.name.rpartition("-")[0] for path in folders] == [
            "synthetic-exact-1-cpu-seed0",
            "synthetic-exact-1-cuda-seed0",
            "synthetic-exact-1-seed1",
            "synthetic-native-cpu-seed0",
        ]
        runs = verdict.load(folders)
        page.write(Path("page.html"), verdict.report(runs, SETTINGS), runs)
        yield Path.cwd()


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "page.html").read_text()


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser.chromium() as chromium:
        yield chromium


def _visible(text: str) -> str:
    """The page without its scripts and style."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)


def test_the_verdict_comes_first(text: str) -> None:
    body = _visible(text).partition("<main>")[2]
    assert body.index('<span class="verdict different">different</span>') < body.index("Plots")
    words = [re.search(r"verdict (\w+)\">", article)[1] for article in body.split("<article")[1:]]  # type: ignore[index]
    assert words == ["identical", "different", "equivalent"]


def test_plotly_is_in_the_page_once_and_nothing_is_loaded_from_elsewhere(text: str) -> None:
    assert text.count("* plotly.js v") == 1
    without_scripts = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert re.findall(r"<script[^>]*\ssrc=|<link[^>]*href=\"(?!data:)|@import|url\(", without_scripts) == []
    assert set(re.findall(r"(?:src|href)=\"(\w+:)", _visible(text))) == {"data:"}


def test_what_comes_from_a_runs_files_is_escaped(text: str) -> None:
    assert "<script>window" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;window.hostile" in text


def test_nothing_ends_the_figures_script_element_early() -> None:
    content = {"name": "</script><script>"}
    assert "<" not in offline._in_script(content)
    assert json.loads(offline._in_script(content)) == content


def test_images_on_which_runs_disagree_are_shown_up_to_a_number_and_counted(text: str) -> None:
    changed = set(range(0, 400, 3)) | {5, 50}
    assert f"{len(changed)} of 1,000 test images are not predicted alike by run 1, 2, 3, 4; the first 60 are shown" in text
    assert text.count('<img src="data:image/png;base64,') == 60


def test_the_pictures_are_the_data_sets(folder: Path, text: str) -> None:
    data = dataset.load()
    first = re.search(r'<img src="([^"]+)" width="96" height="96" loading="lazy" alt="test image (\d+): ([^"]+)"', text)
    assert first is not None
    assert first[1] == "data:image/png;base64," + base64.b64encode(pictures.png(data.test_images[int(first[2])])).decode()
    assert first[3] == data.classes[data.test_labels[int(first[2])]].replace("<", "&lt;").replace(">", "&gt;")


def test_without_the_data_set_the_images_are_named_by_their_numbers(folder: Path) -> None:
    runs = verdict.load(sorted(Path("runs").iterdir()))
    rendered = page.render(verdict.report(runs, SETTINGS), runs, None).decode()
    assert "<img" not in _visible(rendered)
    assert "image 50</span>" in rendered
    assert "data/ does not hold their data set" in rendered


def test_another_data_set_at_hand_gives_no_pictures(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "DATASET", tmp_path / "dataset.safetensors")
    monkeypatch.setattr(dataset.load, "__defaults__", (dataset.DATASET,))
    kept_runs.dataset(count=1200).save(dataset.DATASET)
    runs = verdict.load(sorted(Path("runs").iterdir()))
    page.write(tmp_path / "page.html", verdict.report(runs, SETTINGS), runs)
    assert "<img" not in _visible((tmp_path / "page.html").read_text())


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the test's own, with a data set of 30 test images."""
    monkeypatch.chdir(tmp_path)
    kept_runs.dataset(30).save()


def _written(*folders: Path) -> str:
    """The page of these runs."""
    runs = verdict.load(list(folders))
    page.write(Path("page.html"), verdict.report(runs, SETTINGS), runs)
    return _visible(Path("page.html").read_text())


def _apart(count: int, **settings: Any) -> list[Path]:
    """Two runs that name the data set of the folder and disagree on a test image."""
    data = dataset.load().description
    return [keep(data=data, seed=seed, predicted=guesses(count, [9] * seed), **settings) for seed in (0, 1)]


def test_runs_with_more_predictions_than_their_data_set_has_images_get_no_pictures(alone: None) -> None:
    assert "<img" in _written(*_apart(30))
    assert "<img" not in _written(*_apart(31))


def test_a_damaged_data_set_costs_the_pictures_not_the_page(alone: None, capsys: pytest.CaptureFixture[str]) -> None:
    folders = _apart(30)
    dataset.DATASET.write_bytes(b"damaged")
    assert "image 9</span>" in _written(*folders)
    assert capsys.readouterr().err.startswith("no pictures: data/dataset.safetensors: damaged (")


def test_the_classes_of_every_run_are_in_the_table_of_accuracies(alone: None) -> None:
    other = keep(data=replaced(DATA, {"digest": "e" * 64, "classes": ("plane", *kept_runs.CLASSES[1:])}))
    rows = re.findall(r'<tr><th scope="row">(\w+)</th><td>(.*?)</td><td>(.*?)</td></tr>', _written(keep(), other))
    shown = {name: cells for name, *cells in rows}
    assert (shown["airplane"], shown["plane"]) == (["61.00 %", ""], ["", "61.00 %"])


def test_a_page_grows_with_the_number_of_classes_and_not_with_its_square(alone: None) -> None:
    def size(count: int) -> int:
        given = {"data": replaced(DATA, {"classes": [f"class {n:04}" for n in range(count)]}), "actual": range(count)}
        runs = verdict.load([keep(**given, predicted=range(count)), keep(**given, predicted=[*range(1, count), 0], device="cuda")])
        return len(page.render(verdict.report(runs, SETTINGS), runs, None))

    few, some, many = map(size, (figures.MOST_CLASSES + 1, 1000, 3000))
    assert few < some < few + 900 * 1000
    assert many - some < 2.5 * (some - few)


def test_losses_of_any_size_that_a_float32_has_can_be_drawn(alone: None) -> None:
    largest, smallest = (float(str(np.float32(size))) for size in (3e38, 1e-45))
    runs = verdict.load([keep(history=[0.0] * 40), keep(history=[largest, smallest, *losses()[2:]], seed=1)])
    assert b"Difference of the losses" in page.render(verdict.report(runs, SETTINGS), runs, None)


def test_a_folder_whose_name_is_no_unicode_does_not_stop_the_page(alone: None) -> None:
    renamed = keep(device="cuda").rename(os.fsdecode(b"runs/A \xff run"))
    assert "<td>A ? run</td>" in _written(keep(), renamed)


def test_equal_runs_have_no_difference_to_draw_and_no_disagreement(folder: Path) -> None:
    runs = verdict.load(sorted(Path("runs").glob("*-exact-1-*-seed0-*")))
    rendered = page.render(verdict.report(runs, SETTINGS), runs, None).decode()
    assert "There is no difference to draw: run 2 and run 1 are equal at all 40 logged steps" in rendered
    assert 'id="loss-differences"' not in rendered
    assert "There is none: all 1,000 test images are predicted alike by run 1, 2." in rendered


def test_the_figures_are_what_plotly_accepts(text: str) -> None:
    from plotly import graph_objects

    script = re.search(r'<script type="application/json" id="content">(.*?)</script>', text)
    assert script is not None
    drawn = json.loads(re.sub(r"var\(--[a-z0-9-]+\)", "#123456", script[1]))
    assert [figure["key"] for figure in drawn] == ["losses", "loss-differences", "per-class", *(f"confusion-{n}" for n in (1, 2, 3, 4))]
    for figure in drawn:
        graph_objects.Figure(figure["data"], figure["layout"])


def test_a_long_history_is_thinned_and_the_page_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = verdict.load([keep(history=losses(5000), device=device) for device in ("cpu", "cuda")])
    figure = figures.losses(runs, ["run 1", "run 2"])
    assert [len(line["x"]) for line in figure.data] == [1667, 1667]
    assert "One logged step in 3 is drawn." in figure.text


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_have_the_contrast_that_wcag_asks_for(scheme: str) -> None:
    style = "".join((PACKAGE / name).read_text() for name in ("system/offline.css", "comparison/page.css"))
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    light, dark = (dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6});", "".join(blocks[scheme::2]))) for scheme in (0, 1))
    assert light.keys() == dark.keys()
    colours = light if scheme == "light" else dark
    pairs = [("--ink", "--heat-0"), ("--ink", "--heat-1")]
    pairs += [(text, ground) for text in ("--ink", "--muted") for ground in ("--page", "--surface")]
    pairs += [("--on-verdict", f"--{word}") for word in ORDER]
    assert [(one, other) for one, other in pairs if contrast(colours[one], colours[other]) < 4.5] == []
    lines = [f"--run-{number + 1}" for number in range(figures.COLOURS)]
    assert [line for line in lines if contrast(colours[line], colours["--surface"]) < 3] == []


# --- in the browser ----------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_the_page_opens_offline_draws_every_plot_and_fits(folder: Path, driver: Any, width: int, dark: bool) -> None:
    file = folder / "page.html"
    browser.visit(driver, file, width=width, dark=dark)
    browser.wait_for(driver, "document.documentElement.dataset.drawn")
    assert browser.requests(driver) == [file.resolve().as_uri()]
    assert browser.complaints(driver) == []
    assert driver.execute_script("return document.documentElement.dataset.drawn") == ("dark" if dark else "light")
    assert driver.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    drawn = driver.execute_script(
        """
        return Object.fromEntries([...document.querySelectorAll(".plot")].map(plot => [plot.id, [
          [...plot.querySelectorAll(".scatterlayer path.js-line")].filter(line => line.getAttribute("d").length > 50).length,
          [...plot.querySelectorAll(".barlayer .point path")].filter(bar => bar.getBBox().width > 5).length,
          [...plot.querySelectorAll(".heatmaplayer image")].filter(image => image.getBBox().width > 100).length,
          plot.querySelectorAll(".heatmap-label").length,
        ]]))
        """
    )
    heat = {f"confusion-{number}": [0, 0, 1, 100] for number in (1, 2, 3, 4)}
    assert drawn == {"losses": [4, 0, 0, 0], "loss-differences": [2, 0, 0, 0], "per-class": [0, 40, 0, 0], **heat}


@pytest.mark.browser
def test_the_plots_follow_when_the_reader_changes_the_scheme(folder: Path, driver: Any) -> None:
    browser.visit(driver, folder / "page.html", width=1280)
    browser.wait_for(driver, "document.documentElement.dataset.drawn === 'light'")
    ground = "return getComputedStyle(document.querySelector('#losses .main-svg')).backgroundColor"
    assert driver.execute_script(ground) == "rgb(255, 255, 255)"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    browser.wait_for(driver, "document.documentElement.dataset.drawn === 'dark'")
    assert driver.execute_script(ground) == "rgb(22, 27, 34)"


@pytest.mark.browser
def test_no_script_but_the_pages_own_runs_and_hostile_names_are_shown_as_text(folder: Path, driver: Any) -> None:
    browser.visit(driver, folder / "page.html", width=1280)
    browser.wait_for(driver, "document.documentElement.dataset.drawn")
    labels = driver.execute_script("return [...document.querySelectorAll('#per-class .ytick')].map(tick => tick.textContent)")
    assert sorted(labels) == sorted(["<script>windo…", *CLASSES[1:]])
    driver.execute_script(
        "window.refused = [];"
        "document.addEventListener('securitypolicyviolation', e => refused.push([e.effectiveDirective, e.blockedURI]));"
        "const added = document.createElement('script'); added.textContent = 'window.hostile = 1'; document.body.append(added);"
        'const image = \'<img src="https://example.org/" onerror="window.hostile = 1">\';'
        "document.body.insertAdjacentHTML('beforeend', image);"
    )
    browser.wait_for(driver, "window.refused.length >= 3")
    refused = driver.execute_script("return window.refused")
    assert sorted(refused) == [["img-src", "https://example.org/"], ["script-src-attr", "inline"], ["script-src-elem", "inline"]]
    assert driver.execute_script("return window.hostile") is None


@pytest.mark.browser
def test_every_plot_and_picture_has_an_alternative_text(folder: Path, driver: Any) -> None:
    browser.visit(driver, folder / "page.html", width=1280)
    missing = "return [...document.querySelectorAll('.plot, img')].filter(e => !(e.alt || e.ariaLabel)).length"
    assert driver.execute_script(missing) == 0
    assert driver.execute_script("return document.documentElement.lang") == "en"
