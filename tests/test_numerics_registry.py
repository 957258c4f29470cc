"""What a model may be made of: an operation without an exact form is refused by its name."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from pipeline import numerics
from pipeline.exact import VERSION
from pipeline.exact.engine import Exact
from pipeline.exact.errors import Unsupported
from pipeline.system.errors import UserError
from tests.networks import batch
from tests.steps import CPU


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.BatchNorm2d(3), "batch_norm in training mode where nothing is learnt"),
        (nn.InstanceNorm2d(3, track_running_stats=True), "instance_norm with running statistics"),
        (nn.Conv2d(3, 3, 2, padding="same"), "conv2d with padding='same' and an even kernel"),
        (nn.Conv2d(3, 3, 9), "conv2d with a kernel larger than its images"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), "pad with mode='reflect'"),
        (nn.ConvTranspose2d(3, 3, 3), "torch.nn.functional.conv_transpose2d"),
        (nn.MaxPool2d(2, return_indices=True), "torch.nn.functional.max_pool2d_with_indices"),
        (nn.AdaptiveMaxPool2d(3), "adaptive_max_pool2d from"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "interpolate of"),
        (nn.GELU("tanh"), "gelu with approximate='tanh'"),
        (nn.Softplus(beta=2), "softplus with beta=2"),
        (nn.RReLU(), "torch.nn.functional.rrelu"),
        (nn.GLU(1), "torch.nn.functional.glu"),
        (nn.LPPool2d(2, 2), "torch.nn.functional.lp_pool2d"),
        (nn.LocalResponseNorm(2), "torch.nn.functional.local_response_norm"),
        (nn.PixelUnshuffle(2), "torch.nn.functional.pixel_unshuffle"),
        (nn.Dropout(0.5), "a random mask where no seed is given"),
        (nn.AlphaDropout(0.5), "torch.nn.functional.alpha_dropout"),
        (nn.Flatten(2, 1), "flatten from dimension 2 to 1 of 4"),
        (nn.Flatten(5), "flatten from dimension 5 to -1 of 4"),
    ],
)
def test_an_operation_without_an_exact_form_is_refused_by_name(layer, named):
    x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(Unsupported, match=rf"numerics 'exact' has no form of '?.*{named}.*; change the model$"):
        Exact().logits(layer, x)


def test_autocast_in_a_model_is_refused():
    class Autocast(nn.Linear):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x.flatten(1))

    with pytest.raises(Unsupported, match="has no form of autocast"):
        Exact().logits(Autocast(192, 10), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_the_refusal_names_the_page_that_lists_what_has_a_form():
    with pytest.raises(Unsupported, match=r"no form of 'torch\.cumsum' \(it has: those that docs/exact-numerics\.md lists\)"):
        Exact().logits(Cumulated(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


class Cumulated(nn.Module):
    def forward(self, x):
        return torch.cumsum(x, 1)


def test_a_compiled_model_is_never_computed_by_what_a_compiler_made():
    compiled = []

    def compiler(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    model, (x, _) = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), batch(8)
    plain = Exact().logits(model, x)
    with contextlib.suppress(Unsupported):
        assert torch.equal(Exact().logits(torch.compile(model, backend=compiler), x), plain)
    assert compiled == []


def test_exact_1_is_refused_with_the_line_that_says_which_version_made_a_run():
    for name in ("exact", VERSION):
        assert numerics.select(name, CPU).version == "exact-3"
    with pytest.raises(UserError, match=r"^numerics 'exact-1': this version of the pipeline has exact-3 and native; use the version that "
                                        r"made the run$"):  # fmt: skip
        numerics.select("exact-1", CPU)


def test_exact_numerics_on_a_device_without_float64_are_refused_with_the_way_out():
    with pytest.raises(UserError, match="needs float64, which device 'mps' has not; set numerics: native"):
        numerics.select("exact", torch.device("mps"))
