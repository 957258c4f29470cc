"""What a native run says of itself, against what its weights give here: of any number of classes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.data.dataset import Dataset, label_dtype
from pipeline.evaluation import Evaluation
from pipeline.runs.outputs import Metrics, Prediction, Step
from pipeline.weights import native_evidence

METRICS = Metrics(accuracy=0.0, loss=1.0, accuracy_per_class={}, numerics="native", fingerprint="0" * 64)


def run(*predicted: str) -> Any:
    predictions = [Prediction(i, "0", each, 0.25) for i, each in enumerate(predicted)]
    return SimpleNamespace(environment=SimpleNamespace(evaluate=None), predictions=predictions, metrics=SimpleNamespace(loss=1.0))


@pytest.mark.parametrize("classes", [10, 300])
@pytest.mark.parametrize(("likely", "apart"), [(0.25, None), (0.2, "test image 0 is 1 with 0.25 in the run, here 2 with 0.25")])
def test_another_class_that_is_as_likely_here_may_be_the_runs_of_however_many_classes(classes: int, likely: float, apart: str) -> None:
    images, labels = np.zeros((1, 1, 8, 8), np.uint8), np.zeros(1, label_dtype(classes))
    data = Dataset("drawn", tuple(map(str, range(classes))), images, labels, images, labels)
    last = str(classes - 1)

    def evaluated(of: Dataset) -> Evaluation:
        loss = 1.0 if of is data else -math.log(likely if of.test_labels[0] == classes - 1 else 1e-9)
        return Evaluation(Metrics(**{name: getattr(METRICS, name) for name in METRICS.__struct_fields__} | {"loss": loss}),
                          [Prediction(0, "0", "2", 0.25)], 1.0)  # fmt: skip

    given = native_evidence.evaluation_apart(run(last), run("2"), data, evaluated)
    assert given == (apart and apart.replace("is 1 ", f"is {last} "))


@pytest.mark.parametrize(("images", "changed", "fits"), [(40, 1, True), (40, 2, False), (2000, 3, True), (2000, 4, False)])
def test_weights_to_which_all_classes_are_alike_are_no_evidence_of_whatever_the_run_says(images: int, changed: int, fits: bool) -> None:
    pixels, labels = np.zeros((images, 1, 8, 8), np.uint8), np.zeros(images, np.uint8)
    data = Dataset("drawn", ("0", "1", "2", "3"), pixels, labels, pixels, labels)

    asked = []

    def evaluated(of: Dataset) -> Evaluation:
        asked.append(of)
        loss = 1.0 if of is data else math.log(4)
        metrics = Metrics(**{name: getattr(METRICS, name) for name in METRICS.__struct_fields__} | {"loss": loss})
        return Evaluation(metrics, [Prediction(i, "0", "1", 0.25) for i in range(images)], 1.0)

    theirs = run(*["0"] * changed, *["1"] * (images - changed))
    given = native_evidence.evaluation_apart(theirs, run(*["0"] * images), data, evaluated)
    most = 1 + images // 1000
    assert given == (None if fits else f"{changed} of {images} images are predicted otherwise here by the run's weights, and {most} may be")
    assert len(asked) <= 1 + most, "so many are evaluated again"


@pytest.mark.parametrize(
    ("step", "theirs", "ours", "fits"),
    [
        (100, 1.01005, 1.0, True), (100, 1.0, 1.01005, True), (100, 1.011, 1.0, False), (100, 1.0, 1.011, False),
        (101, 1.0, 0.45, True), (101, 1.0, 0.44, False), (101, 2.09, 1.0, True), (101, 2.11, 1.0, False),
        (101, -0.01, 0.01, False), (101, 3e38, 1.0, False),
    ],
)  # fmt: skip
def test_the_bounds_of_a_history_are_of_the_larger_of_the_two_losses(step: int, theirs: float, ours: float, fits: bool) -> None:
    assert (native_evidence.history_apart([Step(step, 1, theirs)], [Step(step, 1, ours)]) is None) is fits
