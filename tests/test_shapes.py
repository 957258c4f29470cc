"""Images of other sizes, channels and numbers of classes go through the whole pipeline, exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import cli
from pipeline.data import dataset, pictures, synthetic
from pipeline.runs import kept
from pipeline.system import paths, tensors
from pipeline.workers import ALONE, Group
from tests.conftest import ROOT
from tests.settings import set_params
from tests.simulated import Exchange, together
from tests.steps import trainer

TRAIN = {"epochs": 1, "batch_size": 8, "lr": 0.01, "momentum": 0.9, "log_every": 2}
SHAPES = {
    "3 x 224 x 224": {"size": 224, "images": 20},
    "1 x 28 x 28": {"size": 28, "channels": 1, "images": 60},
    "100 classes": {"classes": 100, "images": 600},
    "1000 classes": {"classes": 1000, "images": 5000, "size": 16, "channels": 1},
}


def command(*words: str) -> None:
    assert cli.answer(list(words)) == 0


@pytest.fixture(params=SHAPES, scope="module")
def run(request, tmp_path_factory) -> Path:
    """A finished run on a synthetic set of a shape, in a folder of its own."""
    folder = tmp_path_factory.mktemp("shape")
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(
        folder, data={"source": "synthetic", **SHAPES[request.param]}, train=TRAIN | {"batch_size": 500 if "1000" in request.param else 8}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("download", "train", "evaluate"):
            command(stage)
    return folder


@pytest.fixture
def inside(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)


def test_a_test_image_gives_its_row_of_predictions(inside, capsys):
    data = dataset.load()
    (folder,) = kept.listed(Path("runs"))
    for index in range(3):
        Path(f"{index}.png").write_bytes(pictures.png(data.test_images[index]))
    command("predict", str(folder), "0.png", "1.png", "2.png", "--json")
    answers = json.loads(capsys.readouterr().out)["images"]
    for answer, row in zip(answers, kept.load(folder).predictions, strict=False):
        assert answer["best"][0]["class"] == row.predicted
        assert np.float32(answer["best"][0]["confidence"]) == np.float32(row.confidence)


def test_the_run_knows_its_shape_and_compares_and_exports(inside, capsys):
    (folder,) = kept.listed(Path("runs"))
    data = dataset.load()
    described = kept.load(folder).identity.data
    assert (described.shape, described.classes) == (data.shape, data.classes)
    shutil.copytree(folder, "copy", dirs_exist_ok=True)
    command("compare", str(folder), "copy", "--html", "page.html")
    command("export", str(folder), "--to", "export.html")
    command("evaluate", "--run", str(folder))
    assert "identical to" in capsys.readouterr().out
    command("reproduce", str(folder))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_three_workers_train_the_bits_of_one(shape):
    made = synthetic.make(10, 5, shape.get("size", 32), shape.get("channels", 3), shape.get("classes", 10))

    def fingerprint(group: Group) -> str:
        given = trainer("exact", data=made, batch_size=4, group=group)
        for _ in range(3):
            given.step()
            given.read_step_log()
        return tensors.fingerprint(given.named_weights())

    assert {*together(Exchange(3), fingerprint)} == {fingerprint(ALONE)}


def test_images_that_stay_in_the_file_train_and_evaluate_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = synthetic.make(20, 5)

    def fingerprint() -> str:
        given = trainer("exact", data=dataset.load(Path("set.safetensors")), batch_size=4)
        for _ in range(3):
            given.step()
            given.read_step_log()
        assert given.data.resident == (made.train_images.nbytes < paths.LARGEST_BYTES)
        return tensors.fingerprint(given.named_weights())

    made.save(Path("set.safetensors"))
    in_memory = fingerprint()
    monkeypatch.setattr(paths, "LARGEST_BYTES", 1000)
    assert fingerprint() == in_memory
    assert synthetic.make(20, 5).digest == made.digest
