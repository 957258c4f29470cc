"""docs/faults.md and the tests say the same: each row of the matrix is held by the tests that it names."""

from __future__ import annotations

import ast
import collections
import functools
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT


@functools.cache
def claims() -> dict[int, set[str]]:
    """Row -> the names of the tests that carry its number; a module's own mark counts for all of its tests."""
    names_of = collections.defaultdict(set)
    for path in (ROOT / "tests").glob("test_*.py"):
        body = ast.parse(path.read_text()).body
        of_module = [row for node in body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node) for row in rows_in(node)]
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for row in [*of_module, *(row for decorator in node.decorator_list for row in rows_in(decorator))]:
                    names_of[row] |= {node.name, f"tests/{path.name}"}
    return names_of


def rows_in(code: ast.AST) -> list[int]:
    calls = [node for node in ast.walk(code) if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault"]
    return [ast.literal_eval(call.args[0]) for call in calls]


DOCS = (ROOT / "docs" / "faults.md").read_text()
MATRIX = {int(row): rest for row, rest in re.findall(r"^\| (\d+) \|(.*)\|$", DOCS, re.MULTILINE)}
ROWS = sorted(MATRIX)


def test_the_matrix_has_each_row_once_in_order():
    assert [int(row) for row in re.findall(r"^\| (\d+) \|", DOCS, re.MULTILINE)] == ROWS
    assert ROWS[:34] == list(range(1, 35))


@pytest.mark.parametrize("row", ROWS)
def test_each_test_that_a_row_names_is_there_and_carries_its_number(row):
    named = re.findall(r"`(test_\w+|tests/\w+\.py)`", MATRIX[row].rpartition("|")[2])
    assert named
    assert set(named) <= claims()[row]


def test_no_test_claims_a_row_that_is_not_there():
    assert set(claims()) == set(ROWS)


def test_the_figures_of_the_torture_run_are_there():
    figures = re.search(r"(\d+) kills, seed \d+", DOCS)
    assert int(figures[1]) >= 50


def test_each_row_of_the_security_policy_names_tests_that_are_there():
    rows = [line.split("|")[1:-1] for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")]
    there = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    assert len(rows) > 20
    for surface, checked, tests in rows[1:]:
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, surface
        assert set(named) <= there, (surface, set(named) - there)
        assert checked.strip()


def test_the_security_policy_names_each_kind_of_input_as_trusted_or_not():
    policy = Path(ROOT / "SECURITY.md").read_text()
    for name in ("archive", "safetensors", "run.json", "params.yaml", "dvc.yaml", "checkpoint", "advisory"):
        assert name in policy
