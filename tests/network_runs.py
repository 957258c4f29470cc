"""A run of the synthetic set with drawn weights: what `predict` and `export` need, in a second and without training."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from pipeline import device, evaluation, models, numerics
from pipeline.data import synthetic
from pipeline.data.dataset import Dataset
from pipeline.models import recording
from pipeline.params import Evaluate, Train
from pipeline.params import Model as Network
from pipeline.runs import outputs
from pipeline.runs.outputs import Model
from pipeline.runs.provenance import Provenance

DATA = synthetic.make()
CPU = torch.device(device.CPU)
VERSION = numerics.select("exact", CPU).version


def write(
    folder: Path, name: str = VERSION, data: Dataset = DATA, scale: float = 3.0, images: int = synthetic.TEST, network: Network = Network(),  # noqa: B008 - frozen
    recorded: bool = False,
) -> Model:  # fmt: skip
    """A run in `folder` whose weights are initial ones times `scale`, so that confidences of all sizes occur.

    Its predictions are the evaluation's, of the first test images. `recorded`: with its network.json, as runs are kept since there is one.
    """
    module = models.build(network, data.shape, len(data.classes), seed=3)
    as_data = recording.record(module, data.shape, numerics.select(name, CPU), CPU) if recorded else None
    weights = {key: (t * scale if t.is_floating_point() else t).numpy() for key, t in module.state_dict().items()}
    train = Train(epochs=1, batch_size=64, lr=0.01, momentum=0.9, log_every=10)
    provenance = Provenance(
        data=data.description, seed=3, numerics=name, train=train, code="c" * 64, model=msgspec.UNSET if network == Network() else network
    )
    outputs.write_training(folder, weights, [outputs.Step(1, 1, 2.0)], provenance, as_data)
    if name in (VERSION, "native"):
        subset = Dataset(
            data.name, data.classes, data.train_images, data.train_labels, data.test_images[:images], data.test_labels[:images]
        )
        evaluated = evaluation.evaluate(weights, subset, CPU, numerics.select(name, CPU), Evaluate(batch_size=500), network)
        outputs.write_evaluation(folder, evaluated.metrics, evaluated.predictions)
    return outputs.read_model(folder)
