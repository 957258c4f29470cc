"""What `compare` makes of damaged runs, runs that contradict each other, and mistakes on the command line."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.runs import kept
from pipeline.runs.kept import ENVIRONMENT, IDENTITY, RUNS
from pipeline.runs.outputs import HISTORY, METRICS, MODEL, PARTS, PREDICTIONS
from pipeline.system import tensors
from tests import kept_runs
from tests.comparisons import Compare, agree
from tests.kept_runs import DATA, guesses, keep, losses, replaced, weights

pytestmark = pytest.mark.usefixtures("folder_with_params")


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change a file and the checksum that vouches for it, so that only its content can give it away."""
    path.write_text(change(path.read_text()))
    identity = path.parent / IDENTITY
    noted = json.loads(identity.read_text())
    noted["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    identity.write_text(json.dumps(noted))


def _one_weight_changed(folder: Path) -> None:
    content = bytearray((folder / MODEL).read_bytes())
    content[-1] ^= 1
    (folder / MODEL).write_bytes(content)


def _other_weights(folder: Path, layers: dict[str, np.ndarray]) -> None:
    tensors.write(folder / MODEL, layers, ("training", tensors.read(folder / MODEL).metadata["training"]))
    agree(folder)


def _of_another_run(folder: Path, **other: Any) -> None:
    """Replace the predictions by those of a run of another seed, and what else is `other`."""
    shutil.copy(keep(seed=7, **other) / PREDICTIONS, folder)


def _cut(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[:-1])


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (lambda f: (f / PREDICTIONS).unlink(), PREDICTIONS, "not found"),
        (lambda f: (f / METRICS).unlink(), METRICS, "not found"),
        (lambda f: (f / MODEL).unlink(), MODEL, "not found"),
        (lambda f: (f / ENVIRONMENT).unlink(), ENVIRONMENT, "not found"),
        (lambda f: (f / IDENTITY).unlink(), IDENTITY, "not found"),
        (lambda f: _rewrite(f / PREDICTIONS, lambda _: ""), PREDICTIONS, "damaged"),
        (lambda f: _rewrite(f / HISTORY, lambda text: text.splitlines()[0]), HISTORY, "no rows"),
        (lambda f: _rewrite(f / HISTORY, lambda text: text.replace("\n11,", "\n1,")), HISTORY, "must increase"),
        (lambda f: _rewrite(f / HISTORY, lambda text: text.replace("\n11,", "\n12,")), HISTORY, "not the history of model.safetensors"),
        (lambda f: _rewrite(f / METRICS, lambda _: ""), METRICS, "not JSON"),
        (lambda f: _rewrite(f / METRICS, lambda text: text.replace("1.25", "NaN")), METRICS, "JSON is malformed"),
        (lambda f: _rewrite(f / METRICS, lambda text: text.replace("1.25", "1e999")), METRICS, "not JSON (Number out of range"),
        (lambda f: _rewrite(f / METRICS, lambda text: text.replace("1.25", "[" * 5000)), METRICS, "damaged"),
        (lambda f: _rewrite(f / METRICS, lambda text: text.replace("0.613", "0.614")), METRICS, "'accuracy' is 0.614, but by"),
        (lambda f: _rewrite(f / METRICS, lambda text: text.replace("0.54", "0.55")), METRICS, "'accuracy_per_class' is"),
        (lambda f: _rewrite(f / HISTORY, lambda text: text.replace("\n1,1,", "\n0,1,-1e308\n1,1,")), HISTORY, "float32 must be"),
        (lambda f: _rewrite(f / HISTORY, lambda text: text.replace("\n1,1,", "\n1,")), HISTORY, "2 fields in a row of 3"),
        (lambda f: _rewrite(f / HISTORY, lambda text: "x" * 131_073 + text), HISTORY, "field larger than field limit"),
        (
            lambda f: _rewrite(f / METRICS, lambda text: text.replace("1.25", '"1.25"')),
            METRICS,
            "'loss' is '1.25'; allowed: a number",
        ),
        (lambda f: _rewrite(f / HISTORY, lambda text: text.replace("\n1,1,", "\n1,1,nan#").replace("#", "\n2,1,")), HISTORY, "nan"),
        (lambda f: _rewrite(f / PREDICTIONS, lambda text: text.replace("0.5\n", "nan\n", 1)), PREDICTIONS, "nan"),
        (lambda f: (f / ENVIRONMENT).write_text('{"train": {"seconds_per_epoch": NaN}, "evaluate": {}}'), ENVIRONMENT, "JSON is malformed"),
        (
            lambda f: (f / ENVIRONMENT).write_text('{"train": {"seconds_per_epoch": -1e308}, "evaluate": {}}'),
            ENVIRONMENT,
            "is -1e+308; allowed: a number",
        ),
        (
            lambda f: (f / ENVIRONMENT).write_text('{"train": {"hardware": "A\\u202eB"}, "evaluate": {}}'),
            ENVIRONMENT,
            "is 'A\\u202eB'; allowed: text",
        ),
        (lambda f: (f / ENVIRONMENT).write_text('{"train": 3, "evaluate": {}}'), ENVIRONMENT, "'train' is 3; allowed: a mapping"),
        (
            lambda f: (f / ENVIRONMENT).write_text('{"train": {"threads": 1e999}, "evaluate": {}}'),
            ENVIRONMENT,
            "not JSON (Number out of range",
        ),
        (lambda f: (f / ENVIRONMENT).write_text('{"evaluate": {"cudnn": 1' + "0" * 400 + "}}"), ENVIRONMENT, "allowed: a whole number"),
        (lambda f: _rewrite(f / PREDICTIONS, _cut), METRICS, "but by predictions.csv it is"),
        (lambda f: _of_another_run(f, confidence=0.25), PREDICTIONS, "of another run"),
        (lambda f: _of_another_run(f, predicted=guesses(1000, [5])), PREDICTIONS, "of another run"),  # and with another accuracy
        (_one_weight_changed, MODEL, "changed after the run"),
        (lambda f: _other_weights(f, weights(math.nan)), MODEL, "'fc1.bias' holds NaN"),
        (lambda f: _other_weights(f, {"w": np.zeros(2, np.complex64)}), MODEL, "'w' is complex64, not float32"),
        (lambda f: _other_weights(f, {"w": np.zeros(2)}), MODEL, "'w' is float64, not float32"),
        (lambda f: (f / IDENTITY).write_text('{"format": 99}'), IDENTITY, "format 99"),
    ],
)
def test_a_damaged_run_is_refused_with_the_file_and_the_reason(
    compare: Compare, damage: Callable[[Path], object], file: str, reason: str
) -> None:
    first, second = keep(), keep(device="cuda")
    damage(second)
    code, out, err = compare(first, second)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert str(second / file) in err
    assert reason in err


STRANGE = [None, True, -1, 10**400, 1e300, math.inf, "\ud800", "\x1b[31m", "x" * 400, [], {}, [[[[[1]]]]]]
CELLS = ["", "nan", "1e308", "-1e308", "1e38", "-1", "9" * 30, "9" * 5000, "x" * 131_073, '"', "\0", "\ud800", "bird"]
OUTPUTS = [(), ("--json",), ("--markdown",), ("--html", "page.html")]
Draw = Callable[[st.SearchStrategy[Any]], Any]


def _bytes(folder: Path, draw: Draw) -> None:
    path = folder / draw(st.sampled_from([*PARTS, IDENTITY, ENVIRONMENT]))
    cuts = draw(st.lists(st.tuples(st.integers(0, 2**12), st.integers(0, 9), st.binary(max_size=4)), min_size=1, max_size=2))
    content = path.read_bytes()
    for start, removed, inserted in cuts:
        start %= len(content) + 1
        content = content[:start] + inserted + content[start + removed :]
    path.write_bytes(content)


def _values(folder: Path, draw: Draw) -> None:
    path = folder / draw(st.sampled_from([METRICS, IDENTITY, ENVIRONMENT]))
    content = json.loads(path.read_text())
    places = [(content, key) for key in content]
    places += [(inner, key) for inner in content.values() if isinstance(inner, dict) for key in inner]
    where, key = draw(st.sampled_from(places))
    where[key] = draw(st.sampled_from(STRANGE))
    path.write_text(json.dumps(content))


def _cells(folder: Path, draw: Draw) -> None:
    path = folder / draw(st.sampled_from([HISTORY, PREDICTIONS]))
    rows = [line.split(",") for line in path.read_text().splitlines()]
    row = draw(st.sampled_from([0, 1, -1]))
    rows[row][draw(st.integers(0, len(rows[0]) - 1))] = draw(st.sampled_from(CELLS))
    path.write_bytes("".join(",".join(row) + "\n" for row in rows).encode(errors="surrogatepass"))


def _tensors(folder: Path, draw: Draw) -> None:
    name, number = draw(st.sampled_from(["fc1.bias", "w", ""])), draw(st.sampled_from([0, 1, math.nan, 6e4]))
    shape, kind = draw(st.sampled_from([(), (0,), (2, 3)])), draw(st.sampled_from(["f2", "f4", "c8"]))
    _other_weights(folder, {name: np.full(shape, number).astype(kind)})


@pytest.mark.fault(29)
@pytest.mark.parametrize("damage", [_bytes, _values, _cells, _tensors])
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draws=st.data())
def test_no_damage_that_the_checksums_do_not_tell_ends_in_a_traceback(
    compare: Compare, damage: Callable[[Path, Draw], None], draws: st.DataObject
) -> None:
    data = kept_runs.dataset(30)
    data.save()
    shutil.rmtree(RUNS, ignore_errors=True)
    first, second = (keep(data=data.description, device=device, predicted=guesses(30), history=losses(3)) for device in ("cpu", "cuda"))
    for folder in (first, second) if draws.draw(st.booleans()) else (second,):
        damage(folder, draws.draw)
        agree(folder)
    code, _, err = compare(first, second, *draws.draw(st.sampled_from(OUTPUTS)))
    assert code in (0, 2, 3)
    assert code != 2 or err.count("\n") == 1


@pytest.mark.fault(29)
def test_predictions_of_another_length_of_the_same_data_set_are_refused(compare: Compare) -> None:
    first, second = keep(), keep(predicted=guesses(999))
    code, _, err = compare(first, second)
    assert (code, f"{second / PREDICTIONS}: 999 predictions, {first} has 1000" in err) == (2, True)


@pytest.mark.fault(29)
def test_other_labels_of_the_same_data_set_are_refused(compare: Compare) -> None:
    first, second = keep(), keep(actual=[2, *kept_runs.labels(1000)[1:]])
    code, _, err = compare(first, second)
    assert (code, f"{second / PREDICTIONS}: not the labels of {first}" in err) == (2, True)


def test_other_names_of_the_same_classes_are_called_so_not_damaged(compare: Compare) -> None:
    first, second = keep(), keep(data=replaced(DATA, {"classes": ("plane", *kept_runs.CLASSES[1:])}))
    code, _, err = compare(first, second)
    assert (code, "damaged" in err) == (2, False)
    assert f"{second}: the class names differ: class 0 is 'plane', but 'airplane' in {first}" in err


@pytest.mark.fault(29)
@pytest.mark.parametrize("part", PARTS)
def test_half_a_run_among_the_kept_ones_is_refused_not_passed_over(compare: Compare, part: str) -> None:
    keep(), keep(device="cuda")
    (RUNS / "half").mkdir()
    (RUNS / "half" / part).write_text("")
    code, _, err = compare()
    assert (code, "runs/half/run.json: not found" in err) == (2, True)


def test_a_name_that_no_folder_can_have_is_refused(compare: Compare) -> None:
    Path("loop").symlink_to("loop")
    for name in ("x" * 300, "loop"):
        code, _, err = compare(keep(), name)
        assert (code, err) == (2, f"error: {name}: not a folder; kept runs are under runs/\n")


def test_an_error_is_one_line_that_steers_no_terminal(compare: Compare) -> None:
    first, second = keep(), keep(device="cuda")
    _rewrite(second / METRICS, lambda text: json.dumps(json.loads(text) | {"fingerprint": "\x1b[31m\n"}))
    code, _, err = compare(first, second)
    assert (code, err.count("\n"), "\x1b" in err, "'fingerprint' is '\\x1b[31m\\n'; allowed: 64" in err) == (2, 1, False, True)


@pytest.mark.parametrize(
    "key", ["data", "seed", "numerics", "train", "workers", "device", "fingerprint", "code", "evaluation_code", "revision", "files"]
)
def test_an_identity_of_the_wrong_type_is_refused_not_a_traceback(compare: Compare, key: str) -> None:
    first, second = keep(), keep(device="cuda")
    noted = json.loads((second / IDENTITY).read_text())
    (second / IDENTITY).write_text(json.dumps(noted | {key: [1]}))
    code, _, err = compare(first, second)
    assert (code, str(second / IDENTITY) in err) == (2, True)


def test_fewer_than_two_runs_is_a_mistake_that_says_how_to_make_one(compare: Compare) -> None:
    code, _, err = compare()
    assert code == 2
    assert "needs two kept runs, found none: set device" in err
    only = keep()
    code, _, err = compare()
    assert code == 2
    assert f"found only {only}" in err


def test_a_run_named_twice_is_a_mistake(compare: Compare) -> None:
    first = keep()
    code, _, err = compare(first, f"{first}/../{first.name}")
    assert (code, "named twice" in err) == (2, True)


def test_folders_that_are_being_made_are_not_runs(compare: Compare) -> None:
    first, second = keep(), keep(device="cuda")
    shutil.copytree(second, second.with_name(f".{second.name}.x1.part"))
    (RUNS / "notes").mkdir()
    assert kept.listed() == sorted([first, second])
    assert compare()[0] == 0
