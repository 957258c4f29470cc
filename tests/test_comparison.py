"""Verdicts, statistics and output of `compare`, on made-up runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import cli, params, tensors
from pipeline.comparison import paired_statistics, verdict, wording
from pipeline.comparison.report import LossPair, Pair, Report
from pipeline.errors import UserError
from pipeline.runs import kept, outputs
from pipeline.runs.kept import ENVIRONMENT, IDENTITY, RUNS
from pipeline.runs.outputs import HISTORY, METRICS, MODEL, PARTS, PREDICTIONS
from tests import archives, kept_runs
from tests.kept_runs import DATA, guesses, keep, losses, replaced, weights

REPOSITORY = Path(__file__).parent.parent
SETTINGS = params.load(REPOSITORY / params.PARAMS).compare
OTHER_DATA = replaced(DATA, {"digest": "e" * 64})
Compare = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the test's own, with the project's params.yaml."""
    shutil.copy(REPOSITORY / params.PARAMS, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # durability is another test's subject, and slow


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Compare:
    """The command: its exit code, what it prints and its errors."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        return cli.answer(["compare", *map(str, arguments)]), *capsys.readouterr()

    return run_command


def report_of(*folders: Path) -> Report:
    return verdict.report(verdict.load(list(folders)), SETTINGS)


def pair_of(first: Path, second: Path) -> Pair:
    return report_of(first, second).pairs[0]


def reason_of(first: Path, second: Path) -> str:
    report = report_of(first, second)
    return wording.reason(report.pairs[0], report)


# --- verdicts ----------------------------------------------------------------------------------------------------


def test_equal_exact_runs_on_other_threads_and_another_instruction_set_are_identical(compare: Compare) -> None:
    keep(threads=2, capability="AVX2")
    keep(threads=1, capability="DEFAULT")
    code, out, _ = compare()
    assert (code, "2 against 1: identical" in out) == (0, True)


def test_equal_exact_runs_on_another_device_are_identical_and_the_device_is_shown(compare: Compare) -> None:
    code, out, _ = compare(keep(), keep(device="cuda", hardware="A graphics card"))
    assert code == 0
    assert "2 against 1: identical" in out
    assert "apart by: device cpu and cuda" in out


def test_equal_exact_runs_of_another_number_of_workers_are_identical_and_the_number_is_shown(compare: Compare) -> None:
    code, out, _ = compare(keep(), keep(trained_by=4))
    assert code == 0
    assert "2 against 1: identical" in out
    assert "apart by: workers 1 and 4" in out


def test_exact_runs_of_another_number_of_workers_that_are_not_equal_break_the_promise() -> None:
    pair = pair_of(keep(), keep(trained_by=4, tensors=weights(1e-7)))
    assert (pair.verdict, pair.promise_broken) == ("different", True)


@pytest.mark.parametrize(("off", "verdict"), [(0, "identical"), (1e-6, "equivalent")])
def test_native_runs_of_another_number_of_workers_are_judged_by_what_they_gave(compare: Compare, off: float, verdict: str) -> None:
    code, out, _ = compare(*(keep(numerics="native", workers=n, trained_by=n, tensors=weights(off * (n == 2))) for n in (1, 2)))
    assert (code, f"2 against 1: {verdict}" in out, "apart by: workers 1 and 2" in out) == (0, True, True)


def test_a_run_that_was_trained_elsewhere_is_judged_like_any_other(compare: Compare) -> None:
    code, out, _ = compare(keep(), keep(trained_here=False))
    assert code == 0
    assert "2 against 1: identical" in out
    assert "apart by: workers 1 and not known, device cpu and not known" in " ".join(out.split())


def test_native_runs_a_rounding_apart_are_equivalent(compare: Compare) -> None:
    first = keep(numerics="native", threads=2)
    second = keep(numerics="native", threads=1, tensors=weights(1e-6), history=losses(off=1e-6, since=9), predicted=guesses(1000, [5]))
    code, out, _ = compare(first, second)
    assert code == 0
    assert "2 against 1: equivalent" in out


def test_native_runs_that_are_equal_are_identical() -> None:
    assert pair_of(keep(numerics="native", threads=2), keep(numerics="native", threads=1)).verdict == "identical"


def test_equal_bits_of_exact_and_native_numerics_are_equivalent_not_identical() -> None:
    pair = pair_of(keep(), keep(numerics="native"))
    assert (pair.verdict, pair.promise_broken) == ("equivalent", False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed is 0 in 1, 1 in 2"),
        ({"data": OTHER_DATA}, "data.digest is dddddddddddd... in 1, eeeeeeeeeeee... in 2"),
        ({"train": {"lr": 0.5}}, "train.lr is 0.01 in 1, 0.5 in 2"),
    ],
)
def test_another_identity_is_different_and_the_part_is_named(compare: Compare, change: dict[str, object], says: str) -> None:
    code, out, _ = compare(keep(), keep(**change))  # type: ignore[arg-type]
    assert code == 1
    assert "2 against 1: different" in out
    assert says in out


def test_another_name_for_the_same_data_is_only_a_label() -> None:
    assert pair_of(keep(), keep(data=replaced(DATA, {"name": "another"}))).verdict == "identical"


def test_other_code_is_shown_but_does_not_make_runs_different(compare: Compare) -> None:
    code, out, _ = compare(keep(), keep(code="b" * 64))
    assert code == 0
    assert "apart by: the code that trained them" in out


def test_native_runs_whose_accuracies_may_lie_more_than_the_margin_apart_are_different(compare: Compare) -> None:
    hits = [i for i, guess in enumerate(guesses(1000)) if guess == i % 10]
    first = keep(numerics="native", threads=2)
    second = keep(numerics="native", threads=1, tensors=weights(0.01), predicted=guesses(1000, hits[:8]))
    pair = pair_of(first, second)
    assert pair.predictions is not None
    assert (pair.predictions.only_first, pair.predictions.only_second, pair.predictions.difference_points) == (8, 0, -0.8)
    assert pair.predictions.low_points < -1 < pair.predictions.high_points
    code, out, _ = compare(first, second)
    assert code == 1
    assert "does not lie within ±1" in " ".join(out.split())


def test_exact_runs_whose_losses_part_break_the_promise_and_the_first_logged_step_is_named(compare: Compare) -> None:
    apart = losses(off=1e-6, since=7)
    first, second = keep(), keep(device="cuda", tensors=weights(1e-7), history=apart)
    pair = pair_of(first, second)
    assert (pair.verdict, pair.promise_broken) == ("different", True)
    code, out, _ = compare(first, second)
    assert code == 1
    said = " ".join(out.split())
    assert (
        "the promise is broken: both are exact-1, on the same data, with the same seed and settings, yet their losses part at step 71"
        in said
    )
    assert f"step 71: {losses()[7]!r} and {apart[7]!r}" in said


def test_histories_that_differ_only_in_an_epoch_are_not_identical() -> None:
    first, second = keep(), keep(device="cuda")
    (second / HISTORY).write_text((second / HISTORY).read_text().replace("\n391,2,", "\n391,3,"))
    _agree(second)
    pair = pair_of(first, second)
    assert (pair.verdict, pair.promise_broken) == ("different", True)
    assert "their histories differ: step 391 is of epoch 2 and of epoch 3" in reason_of(first, second)


def test_a_broken_promise_that_no_logged_loss_shows_names_the_first_tensor() -> None:
    reason = reason_of(keep(), keep(device="cuda", tensors=weights(1e-7)))
    assert "their weights differ, first in fc1.bias (their losses do not part within the 40 logged steps)" in reason


def test_a_broken_promise_in_the_evaluation_alone_names_what_differs() -> None:
    first, other_confidence = keep(), keep(device="cuda", confidence=0.50000006)
    assert pair_of(first, other_confidence).promise_broken
    said = "their predictions differ, first for test image 0, though the weights are equal"
    assert said in reason_of(first, other_confidence)
    other_loss = keep(device="cuda:1", metrics={"loss": 1.2500001})
    assert pair_of(first, other_loss).promise_broken
    assert "their metrics differ in loss, though the weights and predictions are equal" in reason_of(first, other_loss)


def test_exact_numerics_of_another_version_promise_nothing_to_each_other() -> None:
    pair = pair_of(keep(), keep(numerics="exact-2", tensors=weights(1e-7)))
    assert (pair.verdict, pair.promise_broken) == ("equivalent", False)


def test_weights_of_other_names_and_shapes_are_listed_and_different(compare: Compare) -> None:
    other = weights() | {"fc1.bias": np.zeros(5, np.float32), "fc2.bias": np.zeros(1, np.float32)}
    code, out, _ = compare(keep(numerics="native"), keep(numerics="native", threads=1, tensors=other))
    assert code == 1
    said = " ".join(out.split())
    assert "fc1.bias is float32 [4] in one and float32 [5] in the other" in said
    assert "fc2.bias is missing in one and float32 [1] in the other" in said


def test_the_worst_verdict_of_any_number_of_runs_decides(compare: Compare) -> None:
    same, near, far = keep(device="cuda"), keep(numerics="native", tensors=weights(1e-6)), keep(seed=1)
    first = keep()
    assert compare(first, same, near)[0] == 0
    code, out, _ = compare(first, same, near, far)
    assert code == 1
    assert [line for line in out.splitlines() if "against" in line or line.startswith("all")] == [
        "2 against 1: identical",
        "3 against 1: equivalent",
        "4 against 1: different",
        "all: different",
    ]


def test_the_partings_first_middle_last_and_largest_relative_differences_are_given() -> None:
    near = [loss * (1 + 2.0 ** (i - 40) * (i >= 20)) for i, loss in enumerate(losses())]
    compared = pair_of(keep(numerics="native"), keep(numerics="native", threads=1, history=near)).losses
    assert compared.steps == 40
    parted = compared.divergence
    assert parted is not None
    assert [pair.step for pair in (parted.first, parted.middle, parted.last, parted.largest)] == [201, 291, 391, 391]
    assert parted.last == LossPair(391, losses()[-1], 2.0096638, pytest.approx(1 / 3, rel=1e-6))


def test_the_largest_relative_difference_of_the_weights_is_relative_to_its_tensors_largest_weight() -> None:
    a, b = weights(), weights(0.25)
    apart = pair_of(keep(numerics="native"), keep(numerics="native", threads=1, tensors=b)).weights
    change = abs(float(a["fc1.bias"][1]) - float(b["fc1.bias"][1]))
    assert apart.tensor == "fc1.bias"
    assert apart.largest_relative == change / max(np.abs(a["fc1.bias"]).max(), np.abs(b["fc1.bias"]).max())


def test_the_sign_of_a_zero_in_the_weights_does_not_count() -> None:
    zero, minus = weights(), weights()
    zero["fc1.bias"][0], minus["fc1.bias"][0] = 0.0, -0.0
    assert pair_of(keep(tensors=zero), keep(device="cuda", tensors=minus)).verdict == "identical"


@pytest.mark.parametrize("images", [500, 1000])
def test_runs_on_other_test_images_are_not_compared_image_by_image_even_if_the_labels_are_equal(images: int) -> None:
    pair = pair_of(keep(), keep(data=OTHER_DATA, predicted=guesses(images)))
    assert pair.predictions is None
    assert pair.verdict == "different"


# --- bad input ---------------------------------------------------------------------------------------------------


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
    _agree(folder)


def _agree(folder: Path) -> None:
    """Make all that vouches for a run's files agree with what can be read of them, so that only their content can give it away."""
    metrics, identity = ({"path": folder / name, "content": _object(folder / name)} for name in (METRICS, IDENTITY))
    with contextlib.suppress(tensors.Damaged, KeyError, ValueError):
        layers, metadata = tensors.read(folder / MODEL)
        training = json.loads(metadata["training"])
        training["provenance"] = {key: identity["content"].get(key, value) for key, value in training["provenance"].items()}
        training["history"] = hashlib.sha256((folder / HISTORY).read_bytes()).hexdigest()
        tensors.write(folder / MODEL, layers, ("training", json.dumps(training)))
        for noted in (metrics, identity):
            noted["content"] |= {"fingerprint": tensors.fingerprint(layers)} if noted["content"] else {}
    with contextlib.suppress(UserError):
        rows = outputs.read_predictions(folder)
        hits = {name: [p.predicted == name for p in rows if p.actual == name] for name in {p.actual for p in rows}}
        of_class = {name: sum(of) / len(of) for name, of in hits.items()}
        if metrics["content"]:
            metrics["content"] |= {"accuracy": sum(map(sum, hits.values())) / len(rows), "accuracy_per_class": of_class}
    if metrics["content"]:
        metrics["path"].write_text(json.dumps(metrics["content"]))
    if identity["content"]:
        sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in PARTS}
        identity["path"].write_text(json.dumps(identity["content"] | {"files": sums}))


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one."""
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    return {}


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
    path.write_bytes(archives.damaged(path.read_bytes(), cuts))


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
    name, number = draw(st.sampled_from(["fc1.bias", "w\n", ""])), draw(st.sampled_from([0, 1, math.nan, 6e4]))
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
        _agree(folder)
    code, _, err = compare(first, second, *draws.draw(st.sampled_from(OUTPUTS)))
    assert code in (0, 1, 2)
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
    assert (code, err.count("\n"), "\x1b" in err, "fingerprint \ufffd[31m\ufffd..." in err) == (2, 1, False, True)


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


# --- statistics --------------------------------------------------------------------------------------------------


def test_mcnemars_exact_test_is_scipys_binomial_test() -> None:
    from scipy.stats import binomtest

    for b, c in [(6, 16), (0, 1), (1, 1), (3, 0), (40, 20), (512, 431), (4900, 5100), (10_000, 9_000)]:
        assert paired_statistics.mcnemar(b, c) == pytest.approx(binomtest(b, b + c).pvalue, rel=1e-9)
    assert paired_statistics.mcnemar(0, 0) == 1


def test_the_statistics_are_those_published_for_cavo_2012_and_bentur_2009() -> None:
    """The two examples of Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8."""
    assert [round(limit, 4) for limit in paired_statistics.interval(6, 16, 161, 0.95)] == [-0.1240, -0.0054]
    assert round(paired_statistics.mcnemar(6, 16), 6) == 0.052479
    assert [round(limit, 3) for limit in paired_statistics.interval(1, 7, 21, 0.95)] == [-0.517, -0.026]


@pytest.mark.parametrize(("b", "c", "n"), [(6, 16, 161), (40, 20, 160), (3, 0, 1000), (0, 0, 500), (812, 843, 10_000), (30, 31, 61)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_at_the_intervals_limits_the_score_test_just_rejects(b: int, c: int, n: int, confidence: float) -> None:
    from scipy import optimize, special, stats

    z = stats.norm.ppf((1 + confidence) / 2)
    for limit, sign in zip(paired_statistics.interval(b, c, n, confidence), (1, -1), strict=True):

        def minus_likelihood(share: float, limit: float = limit) -> float:
            return -(special.xlogy(b, share + limit) + special.xlogy(c, share) + special.xlogy(n - b - c, max(1 - limit - 2 * share, 0.0)))

        bounds = (max(0.0, -limit), (1 - limit) / 2)
        share = optimize.minimize_scalar(minus_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        score = ((b - c) / n - limit) / math.sqrt((2 * share + limit - limit**2) / n)
        assert score == pytest.approx(sign * z, rel=2e-3)


def test_the_interval_keeps_a_width_where_no_image_tells_two_models_apart() -> None:
    low, high = paired_statistics.interval(0, 0, 10_000, 0.95)
    assert high == -low == pytest.approx(1.959964**2 / (1.959964**2 + 10_000), rel=1e-6)


def test_the_largest_confidence_that_params_allow_has_an_interval() -> None:
    low, high = paired_statistics.interval(0, 0, 10_000, 0.999999)
    assert high == -low == pytest.approx(4.891638**2 / (4.891638**2 + 10_000), rel=1e-6)


def test_the_interval_reaches_the_end_where_all_images_tell_the_models_apart() -> None:
    assert paired_statistics.interval(0, 5, 5, 0.95)[0] == -1
    assert paired_statistics.interval(5, 0, 5, 0.95)[1] == 1


# --- output ------------------------------------------------------------------------------------------------------


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
    assert (code, err) == (1, "")
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


def test_json_and_markdown_exclude_each_other(compare: Compare) -> None:
    assert compare("--json", "--markdown")[0] == 2


def test_what_steers_a_terminal_is_not_printed(compare: Compare) -> None:
    _, out, _ = compare(keep(), keep(device="cuda", hardware="A\x1b[31m\x07 card [red]"))
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[red]" in " ".join(out.split())


def test_an_ascii_terminal_gets_question_marks_not_a_traceback() -> None:
    keep(numerics="native"), keep(numerics="native", threads=1, tensors=weights(1e-6))
    done = _in_a_process(["compare"], PYTHONIOENCODING="ascii")
    assert (done.returncode, b"within ?1" in b" ".join(done.stdout.split()), done.stderr) == (0, True, b"")


def _in_a_process(
    arguments: list[str], code: str = "from pipeline.cli import main; main()", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
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
