"""DVC's own plots: the page of `dvc plots show` carries its scripts (.dvc/plots.html, made by tools/plots_page.py)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import browser

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / ".dvc" / "plots.html"


def test_the_page_has_dvcs_places_and_loads_nothing() -> None:
    text = PAGE.read_text()
    assert text.count("{plot_divs}") == 1
    assert "{scripts}" not in text  # where DVC would put the CDN's
    assert re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"(?!data:)", text) == []
    assert len(text) < 1_500_000


def test_the_page_is_the_one_that_dvc_is_told_to_use() -> None:
    assert "html_template = plots.html" in (REPOSITORY / ".dvc" / "config").read_text()


@pytest.mark.browser
def test_dvc_plots_show_makes_a_page_that_draws_offline(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "DVC_NO_ANALYTICS": "1"}

    def dvc(*arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    dvc("init", "--quiet", "--no-scm")
    for name in ("plots.html", "config"):
        shutil.copy(REPOSITORY / ".dvc" / name, tmp_path / ".dvc")
    dvc("config", "core.no_scm", "true")
    # The project's own plots, on files as its stages write them.
    plots = (REPOSITORY / "dvc.yaml").read_text().partition("\nplots:\n")[2]
    (tmp_path / "dvc.yaml").write_text("plots:\n" + plots)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "history.csv").write_text("step,epoch,loss\n1,1,2.3\n11,1,2.1\n21,1,1.9\n")
    rows = "".join(f"{i},{'cat' if i % 2 else 'dog'},{'cat' if i % 3 else 'dog'},0.5\n" for i in range(30))
    (tmp_path / "outputs" / "predictions.csv").write_text("index,actual,predicted,confidence\n" + rows)
    dvc("plots", "show", "--quiet")
    page = tmp_path / "dvc_plots" / "index.html"
    with browser.chromium() as driver:
        browser.visit(driver, page, width=1280)
        browser.wait_for(driver, "document.querySelectorAll('canvas.marks').length === 2")
        sides = "[...document.querySelectorAll('canvas.marks')].map(plot => Math.min(plot.width, plot.height))"
        assert min(driver.execute_script(f"return {sides}")) > 100
        assert browser.requests(driver) == [page.as_uri()]
        # Vega warns of what DVC's interactive template does before the pointer is in the plot.
        assert [line for line in browser.complaints(driver) if '"WARN"' not in line] == []
