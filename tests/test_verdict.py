"""The verdicts of `compare` and the reasons for them, on made-up runs."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.comparison.report import LossPair
from pipeline.runs.outputs import HISTORY
from tests.comparisons import OTHER_DATA, Compare, agree, pair_of, reason_of
from tests.kept_runs import DATA, guesses, keep, losses, replaced, weights

pytestmark = pytest.mark.usefixtures("folder_with_params")


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
    assert "apart by" not in out


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
    assert code == 3
    assert "2 against 1: different" in out
    assert says in out


def test_another_name_for_the_same_data_is_only_a_label() -> None:
    assert pair_of(keep(), keep(data=replaced(DATA, {"name": "another"}))).verdict == "identical"


def test_other_code_is_shown_but_does_not_make_runs_different(compare: Compare) -> None:
    code, out, _ = compare(keep(), keep(code="b" * 64))
    assert code == 0
    assert "apart by: the code that trained them" in out


def test_other_operations_in_network_json_are_shown(compare: Compare) -> None:
    code, out, _ = compare(keep(network=b"{}"), keep(network=b"[]"))
    assert code == 0
    assert "apart by: the operations in their network.json, with which predict answers" in " ".join(out.split())
    assert "network.json" not in compare(keep(network=b"{}"), keep(network=b"{}", threads=1))[1]


@pytest.mark.fault(82)
def test_native_runs_whose_accuracies_may_or_may_not_lie_more_than_the_margin_apart_are_undecided(compare: Compare) -> None:
    hits = [i for i, guess in enumerate(guesses(1000)) if guess == i % 10]
    first = keep(numerics="native", threads=2)
    second = keep(numerics="native", threads=1, tensors=weights(0.01), predicted=guesses(1000, hits[:8]))
    pair = pair_of(first, second)
    assert pair.predictions is not None
    assert (pair.predictions.only_first, pair.predictions.only_second, pair.predictions.difference_points) == (8, 0, -0.8)
    assert pair.predictions.low_points < -1 < pair.predictions.high_points
    assert pair.verdict == "undecided"
    code, out, _ = compare(first, second)
    assert code == 3
    said = f"points, lies partly within ±1: about {pair.deciding_images:,} test images more would decide, if they came out like these"
    assert said in " ".join(out.split())
    assert "2 against 1: undecided" in out


@pytest.mark.fault(82)
def test_native_runs_whose_accuracies_lie_more_than_the_margin_apart_are_different() -> None:
    hits = [i for i, guess in enumerate(guesses(1000)) if guess == i % 10]
    first, second = keep(numerics="native", threads=2), keep(numerics="native", threads=1, predicted=guesses(1000, hits[:40]))
    pair = pair_of(first, second)
    assert pair.predictions is not None
    assert (pair.verdict, pair.deciding_images, pair.predictions.high_points < -1) == ("different", None, True)
    assert "points, lies beyond ±1" in reason_of(first, second)


def test_what_nothing_records_is_no_difference() -> None:
    """As for a run that DVC brought from a cache: nobody knows here how many workers trained it."""
    assert pair_of(keep(), keep(seed=1, trained_here=False)).differences == pair_of(keep(), keep(seed=1)).differences


def test_exact_runs_whose_losses_part_break_the_promise_and_the_first_logged_step_is_named(compare: Compare) -> None:
    apart = losses(off=1e-6, since=7)
    first, second = keep(), keep(device="cuda", tensors=weights(1e-7), history=apart)
    pair = pair_of(first, second)
    assert (pair.verdict, pair.promise_broken) == ("different", True)
    code, out, _ = compare(first, second)
    assert code == 3
    said = " ".join(out.split())
    assert (
        "the promise is broken: both are exact-1, on the same data, with the same seed and settings, yet their losses part at step 71"
        in said
    )
    assert f"step 71: {losses()[7]!r} and {apart[7]!r}" in said


def test_histories_that_differ_only_in_an_epoch_are_not_identical() -> None:
    first, second = keep(), keep(device="cuda")
    (second / HISTORY).write_text((second / HISTORY).read_text().replace("\n391,2,", "\n391,3,"))
    agree(second)
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
    pair = pair_of(keep(), keep(numerics="exact-3", tensors=weights(1e-7)))
    assert (pair.verdict, pair.promise_broken) == ("equivalent", False)


def test_weights_of_other_names_and_shapes_are_listed_and_different(compare: Compare) -> None:
    other = weights() | {"fc1.bias": np.zeros(5, np.float32), "fc2.bias": np.zeros(1, np.float32)}
    code, out, _ = compare(keep(numerics="native"), keep(numerics="native", threads=1, tensors=other))
    assert code == 3
    said = " ".join(out.split())
    assert "fc1.bias is float32 [4] in one and float32 [5] in the other" in said
    assert "fc2.bias is missing in one and float32 [1] in the other" in said


def test_the_worst_verdict_of_any_number_of_runs_decides(compare: Compare) -> None:
    same, near, far = keep(device="cuda"), keep(numerics="native", tensors=weights(1e-6)), keep(seed=1)
    first = keep()
    assert compare(first, same, near)[0] == 0
    code, out, _ = compare(first, same, near, far)
    assert code == 3
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
