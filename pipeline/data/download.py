"""The `download` stage: the data set that params.yaml names, from wherever it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.data import dataset, folder, sets, synthetic
from pipeline.data.dataset import Dataset
from pipeline.inputs import LOCK, Inputs
from pipeline.params import Data
from pipeline.system import files


def stage(inputs: Inputs) -> None:
    """Put the data set of params.yaml into data/. Raises UserError as `download` does, or when params.yaml changed meanwhile."""
    with files.only_one(LOCK, "a stage"):
        data = download(inputs.params.data)
        inputs.check_unchanged()
        data.save()
    print(
        f"{dataset.DATASET}: {data.name}, {len(data.train_images)} training and {len(data.test_images)} test images of "
        f"{' x '.join(map(str, data.shape))}, {len(data.classes)} classes, digest {data.digest}"
    )


def download(data: Data, cache: Path = sets.DOWNLOADS) -> Dataset:
    """The data set that `data` describes; what is downloaded is kept in `cache`, where a user may also put it by hand.

    Raises:
        UserError: it cannot be had, is not what its digest says, or a picture cannot be read.
    """
    if data.source == "synthetic":
        made = synthetic.make(data.images, data.images // 5, data.size, data.channels, data.classes)
        return made if data.images == synthetic.TRAIN else replace(made, name=f"{made.name}-{data.images}")
    if data.source == "folder":
        return folder.read(data)
    return sets.read(data.source, data.size, cache)
