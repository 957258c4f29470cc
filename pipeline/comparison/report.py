"""What a comparison of kept runs finds, as data. The sentences are in `wording`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Verdict = Literal["identical", "equivalent", "undecided", "different"]
ORDER: tuple[Verdict, ...] = ("identical", "equivalent", "undecided", "different")
"""From the best to the worst; the worst decides. Undecided: neither equivalent nor different is shown."""
AGREEING: tuple[Verdict, ...] = ("identical", "equivalent")
"""The answers of yes."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A run's column in the table."""

    number: int
    """From 1, as the texts call it."""
    name: str
    """Its folder's; the whole path where two runs' folders have one name."""
    folder: str
    data: str
    images: int
    """Test images."""
    device: str | None
    """Where the weights were trained; None where they came from elsewhere."""
    hardware: str | None
    """The device's own name, where the environment tells it."""
    workers: int | None
    """How many processes trained together; None where nothing records it."""
    numerics: str
    seed: int
    loss: float
    accuracy: float
    worst_class: str
    worst_class_accuracy: float
    fingerprint: str
    seconds_per_epoch: float | None
    """None where the weights came from a cache and were not trained there."""
    given: dict[str, Any]
    """What else the training was given, by name: its settings, and the threads, instructions and versions that it had, as far as known."""


class Difference(msgspec.Struct, frozen=True):
    """A part of the identity that two runs do not share."""

    field: str
    first: Any
    second: Any
    decides: bool
    """Whether it alone makes the runs different. Device, workers and numerics do not: what they gave is compared."""


class Weights(msgspec.Struct, frozen=True):
    """How far two models are apart."""

    largest_relative: float | None
    """The largest |a - b| of a tensor over its largest |a| or |b|, the most over all tensors; None where `unlike`."""
    tensor: str | None
    """Where that is; None where all weights are equal."""
    unlike: tuple[str, ...]
    """Tensors with other names, shapes or types."""


class LossPair(msgspec.Struct, frozen=True):
    """The losses of two runs at one logged step."""

    step: int
    first: float
    second: float
    relative: float
    """|first - second| over the larger of them."""


class Divergence(msgspec.Struct, frozen=True):
    """Where the losses of two runs part, and how far they are apart after that."""

    first: LossPair
    """The first logged step where they part."""
    middle: LossPair
    """The logged step half way from there to the end."""
    last: LossPair
    largest: LossPair
    """The logged step with the largest relative difference."""


class Losses(msgspec.Struct, frozen=True):
    """Two histories."""

    steps: int
    """Logged steps that both have."""
    unlike: str | None
    """What the histories do not share besides their losses."""
    divergence: Divergence | None
    """None where the losses are equal at all steps that both have."""


class Predictions(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs' predictions of the same test images."""

    images: int
    equal_share: float
    """Of the images, those for which both predict the same class."""
    equal: bool
    """Whether all rows are equal, confidences too."""
    only_first: int
    """Images that only the first run gets right."""
    only_second: int
    difference_points: float
    """The second run's accuracy minus the first's, in percentage points."""
    low_points: float
    high_points: float
    """Tango's score interval of that difference (`paired_statistics.interval`)."""
    mcnemar_p: float


class Inequality(msgspec.Struct, frozen=True):
    """The first thing, in the order of the work, that two runs do not share."""

    part: Literal["tensors", "losses", "weights", "history", "test images", "predictions", "metrics"]
    """`tensors` are the weights' names, shapes and types; `history` is what a history holds besides its losses."""
    at: int | str | None = None
    """The step, the tensor, the image or the metric; None where the part says it all."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A run against the first one."""

    first: int
    second: int
    """Their numbers in the table."""
    verdict: Verdict
    promise_broken: bool
    """Both exact in the same version, on the same data, with the same seed and settings: and yet not identical."""
    differences: tuple[Difference, ...]
    """In the identity, the device, the workers and the numerics included."""
    deciding_images: int | None = None
    """For `undecided`: how many test images more would decide, were they predicted like these; None where no number that is known would."""
    code_differs: bool
    """Shown only: what counts is what the code made."""
    networks_differ: bool
    """Shown only, of the same network's weights: with which operations predict answers counts where it is computed again (reproduce)."""
    inequality: Inequality | None
    """None where weights, histories, predictions and metrics are equal."""
    weights: Weights
    losses: Losses
    predictions: Predictions | None
    """None where the runs were evaluated on other images."""
    zeros: int = 0
    """Of equal runs, the zeros that differ by their sign."""


class Report(msgspec.Struct, frozen=True):
    """The answer; `verdict` is the worst of the pairs'."""

    verdict: Verdict
    margin_points: float
    confidence: float
    runs: tuple[Summary, ...]
    pairs: tuple[Pair, ...]
