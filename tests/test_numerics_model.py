"""Around a model: an image's bits are its own, whatever the batch, and however many images are computed at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import numerics
from pipeline.evaluation import evaluate
from pipeline.exact.draws import random_integers
from pipeline.exact.engine import Exact
from pipeline.exact.reductions import Convolution, Matmul
from pipeline.exact.rows import ConvolutionByRows
from pipeline.params import Evaluate
from pipeline.system.errors import UserError
from tests.chaos import Chaos
from tests.networks import batch, equal, own_network, step
from tests.steps import CPU, drawn_set, trained_fingerprint, trainer


def test_a_users_own_network_of_these_layers_computes_exactly_and_close_to_native():
    model, given = own_network(), batch(32)
    plain = step(model, *given)
    with Chaos(3):
        assert equal(step(model, *given), plain)
    for a, b in zip(plain, step(model, *given, "native"), strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


@pytest.mark.parametrize("model", [own_network, lambda: trainer().model], ids=["own", "SimpleCNN"])
def test_an_images_logits_are_the_same_alone_in_any_batch_and_in_any_order(model):
    (images, _), model, exact = batch(200), model(), Exact()
    whole = exact.logits(model, images)
    for size in (1, 7, 64, 199):
        assert torch.equal(torch.cat([exact.logits(model, part) for part in images.split(size)]), whole)
    order = torch.from_numpy(np.argsort(random_integers("order", 2**63, 200)))
    assert torch.equal(exact.logits(model, images[order]), whole[order])


def evaluated(data, batch_size: int):
    weights = trainer().named_weights()
    scaled = {name: array * np.float32(2) for name, array in weights.items()}
    evaluated = evaluate(scaled, data, CPU, numerics.select("exact", CPU), Evaluate(batch_size=batch_size))
    return evaluated.metrics, evaluated.predictions


def test_evaluation_gives_the_same_metrics_and_predictions_with_any_batch_size_and_order():
    drawn = drawn_set(301)
    data = replace(drawn, test_images=drawn.train_images, test_labels=drawn.train_labels)
    metrics, predictions = evaluated(data, 301)
    for batch_size in (1, 7, 64, 1000, 2000):
        assert evaluated(data, batch_size) == (metrics, predictions)
    order = np.argsort(random_integers("order", 2**63, 301))
    turned = replace(data, test_images=data.test_images[order], test_labels=data.test_labels[order])
    metrics_turned, predictions_turned = evaluated(turned, 64)
    assert metrics_turned == metrics
    assert [(p.actual, p.predicted, p.confidence) for p in predictions_turned] == [
        (predictions[i].actual, predictions[i].predicted, predictions[i].confidence) for i in order
    ]


@pytest.mark.parametrize("at_once", [1, 24, 64, 400])
def test_the_weights_do_not_change_with_the_number_of_images_computed_at_once(at_once, monkeypatch):
    data = drawn_set(130)
    plain = trained_fingerprint(steps=2, data=data, batch_size=130)
    for operation in (Convolution, ConvolutionByRows, Matmul):
        monkeypatch.setattr(operation, "images_at_once", lambda *shapes: at_once)
    assert trained_fingerprint(steps=2, data=data, batch_size=130) == plain


def test_a_batch_whose_sums_float64_does_not_hold_trains_exactly_all_the_same():
    data = drawn_set(400)
    plain = trained_fingerprint(steps=2, data=data, batch_size=400)  # conv2's weight gradient has 40,000 products
    with Chaos(1):
        assert trained_fingerprint(steps=2, data=data, batch_size=400) == plain


def test_a_batch_that_int64_does_not_hold_is_refused_with_the_largest_that_it_does():
    model, (images, labels) = trainer().model, batch(4)
    step(model, images, labels, of=335544)
    wanted = (
        r"sums 33554500 products for conv2d's gradient at batch_size 335545, and 33554431 are the most, "
        r"at .*/simple_cnn\.py:\d+; "
        "set batch_size to at most 335544 or set numerics: native$"
    )
    with pytest.raises(UserError, match=wanted):
        step(model, images, labels, of=335545)
