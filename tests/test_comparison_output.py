"""What `compare` shows: the table at any width, JSON, markdown, and no byte that steers a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pipeline import params
from pipeline.comparison import paired_statistics, wording
from pipeline.system import tensors
from pipeline.system.errors import UserError
from tests.comparisons import Compare, report_of
from tests.conftest import ROOT
from tests.kept_runs import guesses, keep, weights

pytestmark = pytest.mark.usefixtures("folder_with_params")


def test_the_table_has_a_column_a_run_and_the_figures_that_matter(compare: Compare) -> None:
    _, out, _ = compare(keep(), keep(device="cuda", hardware="A graphics card", seconds_per_epoch=0.6125, trained_here=True))
    rows = {line[:16].strip(): line[16:].split() for line in out.splitlines() if line[:16].strip()}
    digits = tensors.fingerprint(weights())[:12]
    assert rows["run"] == ["1", "2"]
    assert rows["numerics"] == ["exact-1", "exact-1"]
    assert rows["seed"] == ["0", "0"]
    assert rows["loss"] == ["1.250000", "1.250000"]
    assert rows["accuracy"] == ["61.30%", "61.30%"]
    assert rows["worst class"] == ["ship", "54.00%", "ship", "54.00%"]
    assert rows["fingerprint"] == [digits, digits]
    assert rows["seconds an epoch"] == ["12.5", "0.613"]
    assert rows["device"] == ["cpu:", "A", "processor", "cuda:", "A", "graphics", "card"]


def test_the_table_has_a_row_for_workers_only_where_some_run_had_more_than_one(compare: Compare) -> None:
    one, four, elsewhere = keep(), keep(trained_by=4), keep(seed=1, trained_here=False)
    rows = [line.split() for line in compare(one, four, elsewhere)[1].splitlines() if line.startswith("workers")]
    assert rows == [["workers", "1", "4", "not", "known"]]
    assert not [line for line in compare(one, elsewhere)[1].splitlines() if line.startswith("workers")]


@pytest.mark.fault(82)
def test_what_two_runs_do_not_share_comes_first_and_is_their_legend(compare: Compare) -> None:
    runs = [keep(numerics="native", threads=threads, capability=able) for threads, able in ((1, "AVX2"), (2, "AVX512"))]
    rows = [name for line in compare(*runs)[1].splitlines() if (name := line[:18].strip())]
    at = rows.index("name")
    assert rows[at : at + 4] == ["name", "threads", "cpu capability", "data"], rows
    legends = ["run 1 (threads 1, cpu capability AVX2)", "run 2 (threads 2, cpu capability AVX512)"]
    assert wording.legends(report_of(*runs).runs) == legends


@pytest.mark.fault(82)
def test_runs_that_are_not_named_are_compared_in_the_order_in_which_they_were_kept(compare: Compare) -> None:
    kept = [keep(seed=seed) for seed in range(5)]
    for age, folder in enumerate(kept):
        os.utime(folder / "run.json", (age, age))
    os.utime(kept[2] / "run.json", (9, 9))
    report = json.loads(compare("--json")[1])
    assert [run["seed"] for run in report["runs"]] == [0, 1, 3, 4, 2]


def test_a_run_that_was_not_trained_here_has_no_seconds_an_epoch(compare: Compare) -> None:
    _, out, _ = compare(keep(), keep(seed=1, trained_here=False))
    assert next(line for line in out.splitlines() if line.startswith("seconds")).split()[3:] == ["12.5", "not", "known"]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_any_number_of_runs_fits_any_width(compare: Compare, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    for seed in range(6):
        keep(seed=seed, hardware="A processor with a rather long name that goes on and on @ 2.50 GHz")
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = compare()
    assert max(map(len, out.splitlines())) <= columns
    numbers = [word for line in out.splitlines() if line.startswith("run ") for word in line.split()[1:]]
    assert numbers == ["1", "2", "3", "4", "5", "6"]


def test_json_holds_all_figures_and_nothing_else_is_printed(compare: Compare) -> None:
    code, out, err = compare(keep(), keep(seed=1, predicted=guesses(1000, [5, 50])), "--json")
    report = json.loads(out)
    (pair,) = report["pairs"]
    assert (code, err) == (3, "")
    assert report["verdict"] == pair["verdict"] == "different"
    assert pair["differences"] == [{"field": "seed", "first": 0, "second": 1, "decides": True}]
    assert pair["reason"] == "seed is 0 in 1, 1 in 2"
    assert pair["predictions"]["equal_share"] == 0.998
    assert pair["inequality"] == {"part": "predictions", "at": 5}
    assert pair["weights"] == {"largest_relative": 0.0, "tensor": None, "unlike": []}
    assert report["runs"][1]["fingerprint"] == tensors.fingerprint(weights())


def test_markdown_shows_names_as_they_are(compare: Compare) -> None:
    first, second = keep(), keep(device="cuda", hardware="a|b <script>alert(1)</script> *c*")
    _, out, _ = compare(first, second, "--markdown")
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {4}
    assert r"a\|b \<script\>alert(1)\</script\> \*c\*" in out
    assert f"`{first.name}`" in out
    assert "**2 against 1: ✅ identical**" in out


def test_nothing_that_a_run_says_is_a_link_a_mention_or_a_reference_on_github(compare: Compare) -> None:
    live = "@someone #12 https://example.com/x http://a.b www.example.com GH-7 owner/repo#3 a@b.example `code @x "
    live += "1c27acca4c5a221e50ed3e4e8510b9f9656c9264 owner/repo@1c27acca4c 9876543 v1.c27acca feedbac1c27acca4c5a (ABCDEF0)"
    _, out, _ = compare(keep(), keep(device="cuda", hardware=live), "--markdown")
    line = next(line for line in out.splitlines() if "example.com" in line)
    shown = re.sub(r"\\(\W)", r"\1", line.replace("&#8203;", "\u200b"))  # as GitHub has it when it looks for them
    assert not re.search(r"@\w|#\d|://|www\.|GH-\d|\b(?i:[0-9a-f]{7,40})\b", shown)
    assert shown.replace("\u200b", "").count(live) == 1


def test_runs_whose_folders_have_one_name_are_shown_by_their_paths(compare: Compare) -> None:
    first, other = keep(), keep(seed=1)
    second = shutil.copytree(first, Path("elsewhere") / first.name)
    report = json.loads(compare(first, second, other, "--json")[1])
    assert [summary["name"] for summary in report["runs"]] == [str(first), str(second), other.name]


def test_a_p_value_too_small_for_a_float_is_not_shown_as_zero() -> None:
    assert paired_statistics.mcnemar(0, 2000) == 0
    report = report_of(keep(), keep(device="cuda"))
    (pair,) = report.pairs
    assert pair.predictions is not None
    for p, shown in ((0.0, "p < 1e-300"), (1e-300, "p = 1e-300")):
        rare = msgspec.structs.replace(pair, predictions=msgspec.structs.replace(pair.predictions, mcnemar_p=p))
        assert wording.details(rare, report)[-1].endswith(f"McNemar's exact test {shown}")


def test_equal_runs_whose_zeros_differ_by_their_sign_are_not_called_equal_to_the_last_bit(compare: Compare) -> None:
    zero = {name: np.zeros_like(array) for name, array in weights().items()}
    minus = {**zero, "fc1.bias": -zero["fc1.bias"]}
    _, out, _ = compare(keep(tensors=zero), keep(tensors=minus, device="cuda"), "--markdown")
    assert "equal to the last bit, but for the sign of 4 zeros\n" in out
    _, out, _ = compare(keep(tensors=zero), keep(tensors=zero, device="cuda"), "--markdown")
    assert "equal to the last bit\n" in out


def test_json_and_markdown_exclude_each_other(compare: Compare) -> None:
    assert compare("--json", "--markdown")[0] == 2


def test_what_steers_a_terminal_is_not_printed(compare: Compare) -> None:
    """What steers a terminal is refused in a run's own documents; markup of the library's is printed as it is."""
    _, out, _ = compare(keep(), keep(device="cuda", hardware="A card [red]"))
    assert "[red]" in " ".join(out.split())


def test_an_ascii_terminal_gets_question_marks_not_a_traceback() -> None:
    keep(numerics="native"), keep(numerics="native", threads=1, tensors=weights(1e-6))
    done = _in_a_process(["compare"], PYTHONIOENCODING="ascii")
    assert (done.returncode, b"within ?1" in b" ".join(done.stdout.split()), done.stderr) == (0, True, b"")


def _in_a_process(
    arguments: list[str], code: str = "from pipeline.cli import main; main()", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, env=variables, check=False)


@pytest.mark.parametrize(
    ("way", "loaded"), [((), ["rich"]), (("--json",), []), (("--markdown",), [])], ids=["terminal", "json", "markdown"]
)
def test_a_comparison_loads_no_pytorch_git_scipy_or_plotting_library_and_a_terminals_only_for_a_terminal(
    tmp_path: Path, way: tuple[str, ...], loaded: list[str]
) -> None:
    keep(), keep(device="cuda")
    code = """
import sys
from pipeline.cli import main
try:
    main()
except SystemExit as stop:
    print(sorted({"torch", "scipy", "plotly", "jinja2", "PIL", "dvc", "rich"} & set(sys.modules)), stop.code, file=sys.stderr)
"""
    done = _in_a_process(["compare", *way], code, PATH=str(tmp_path))
    assert done.stderr.decode() == f"{loaded} 0\n"


def test_shares_are_rounded_to_all_or_none_only_where_they_are() -> None:
    assert [wording.share(part) for part in (0, 1e-9, 0.5, 1 - 1e-9, 1)] == ["0 %", "0.01 %", "50.00 %", "99.99 %", "100 %"]


def test_comparing_changes_no_file(compare: Compare) -> None:
    keep(), keep(device="cuda")

    def seen() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}

    before = seen()
    compare()
    assert seen() == before


def test_a_page_that_cannot_be_written_is_one_line(compare: Compare) -> None:
    Path("page.html").mkdir()
    code, _, err = compare(keep(), keep(device="cuda"), "--html", "page.html")
    assert (code, err.count("\n"), err.startswith("error: page.html: is a folder")) == (2, 1, True)


def test_a_missing_params_file_is_a_users_mistake() -> None:
    params.PARAMS.unlink()
    with pytest.raises(UserError, match=r"params\.yaml: not found"):
        params.load()
