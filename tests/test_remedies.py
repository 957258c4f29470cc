"""What a line says to do helps: whom DVC makes again, what only its owner can put back, what `make` takes for whole."""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import evaluation, models
from pipeline.data import dataset, synthetic
from pipeline.data.pictures import png
from pipeline.params import Model, Train
from pipeline.runs import keeping, kept, outputs
from pipeline.runs.outputs import METRICS, MODEL, OUTPUTS, PREDICTIONS
from pipeline.runs.provenance import Provenance
from pipeline.system import errors, files, libraries
from pipeline.system.errors import UserError
from pipeline.weights import plans, predict
from tests import kept_runs
from tests.conftest import ROOT
from tests.dvc_clone import attempt, make, sh
from tests.networks import OWN_FILE
from tests.steps import drawn_set

pytestmark = pytest.mark.fault(73)
NAME = "networks/own.py:Net"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_damaged_in_outputs_dvc_makes_again_and_what_is_deleted_of_runs_compare_keeps_again(tmp_path):
    make(tmp_path)
    (run,) = kept.listed(tmp_path / "runs")
    shutil.rmtree(run)
    for part in (MODEL, METRICS, PREDICTIONS):
        path = tmp_path / OUTPUTS / part
        before = path.read_bytes()
        path.write_bytes(before[: len(before) // 2])
        sh(tmp_path, "dvc", "repro")
        assert path.read_bytes() == before
    assert attempt(tmp_path, sys.executable, "-m", "pipeline", "compare").returncode == 2, "one run is no two"
    (again,) = kept.listed(tmp_path / "runs")
    assert kept.load(again).weights.keys() == outputs.read_weights(tmp_path / OUTPUTS).keys()


@pytest.mark.parametrize("part", [MODEL, METRICS, PREDICTIONS])
def test_nobody_is_told_that_dvc_makes_a_kept_run_again_where_it_stands(part, here):
    folder = kept_runs.keep()
    (folder / part).write_bytes(b"")
    with pytest.raises(UserError) as refused:
        kept.load(folder)
    assert outputs.again(OUTPUTS) == "make it again with `dvc repro`"
    assert "make it again with `dvc repro`" not in str(refused.value)
    assert f"delete {folder}" in outputs.again(folder)
    if part == MODEL:
        assert str(refused.value).endswith(outputs.again(folder))


def test_a_file_that_is_larger_than_the_system_lets_it_be_is_not_helped_by_free_space():
    with pytest.raises(UserError, match=r"raise the limit \(ulimit -f\), or use another file system$"), files.explained(Path("x")):
        raise OSError(errno.EFBIG, "File too large", "x")


def test_a_package_that_is_missing_in_the_projects_own_environment_is_not_helped_by_activating_it(monkeypatch):
    error = ModuleNotFoundError("No module named 'typer'", name="typer")
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv"))
    assert libraries.failed_import(error) == f"typer cannot be imported (ModuleNotFoundError: No module named 'typer'); {errors.MAKE_AGAIN}"
    monkeypatch.setattr(sys, "prefix", "/usr")
    assert "use the project's own: `. .venv/bin/activate`" in libraries.failed_import(error)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "import no_such_package\n",
            r"own\.py:1: ModuleNotFoundError: No module named 'no_such_package'; install it for .*, or do without$",
        ),
        ("x = (\n", r"own\.py:1: SyntaxError: .*; mend the network"),
    ],
)
def test_a_network_that_cannot_be_loaded_is_told_with_its_line_and_what_it_lacks(content, said, here):
    files.write_text(here / "networks" / "own.py", content)
    with pytest.raises(UserError, match=said):
        models.build(Model(name=NAME), (3, 32, 32), 10)


def test_a_data_set_that_the_user_named_is_not_downloaded_again(here):
    for content in (None, b"no safetensors"):
        for path in (Path("theirs.safetensors"), dataset.DATASET):
            if content:
                files.write_bytes(path, content)
            with pytest.raises(UserError) as refused:
                dataset.load(path)
            assert str(refused.value).startswith(f"{path}: ")
            assert ("; run `python -m pipeline download`" in str(refused.value)) == (path == dataset.DATASET)


def test_a_synthetic_set_of_another_shape_is_not_asked_of_anybodys_folder():
    described = synthetic.make(20, 10, size=16, classes=3).description
    assert described.name.startswith("synthetic-")
    assert plans._remedy(described).startswith("set data.source: synthetic and what its name says in params.yaml")


@pytest.fixture
def own(here) -> Path:
    """A run of a network in a file, and the set that it was trained on."""
    files.write_text(here / "networks" / "own.py", OWN_FILE)
    data, model = drawn_set(20), Model(name=NAME)
    data.save()
    weights = {name: t.numpy() for name, t in models.build(model, data.shape, len(data.classes), 0).state_dict().items()}
    provenance = Provenance(
        data=data.description, seed=0, numerics="native", train=Train(epochs=1, batch_size=10, lr=0.1, momentum=0.9, log_every=1),
        model=model, source=models.source(model, "native"), code="0" * 64, workers=1,
    )  # fmt: skip
    outputs.write_training(OUTPUTS, weights, [outputs.Step(1, 1, 2.0)], provenance)
    on = torch.device("cpu")
    chosen = evaluation.numerics.select("native", on)
    evaluated = evaluation.evaluate(weights, data, on, chosen, evaluation.Evaluate(batch_size=10), model)
    outputs.write_evaluation(OUTPUTS, evaluated.metrics, evaluated.predictions)
    return keeping.keep(OUTPUTS, evaluated_in=None)


@pytest.mark.parametrize("edited", [False, True])
def test_weights_whose_network_was_edited_are_not_used_without_a_word(edited, own, here, capsys):
    if edited:
        path = here / "networks" / "own.py"
        path.write_text(path.read_text().replace("self.layer(x.flatten(1))", "-self.layer(x.flatten(1))"))
    said = f"networks/ has changed since the training: what {NAME} computes may be something else now\n"
    (here / "a.png").write_bytes(png(np.zeros((3, 32, 32), np.uint8)))
    assert predict.predict(own, ["a.png"], "cpu", predict.write_csv) == (1, 0)
    assert capsys.readouterr().err == said * edited
    evaluation.evaluate_kept(own, "cpu", 10)
    told = capsys.readouterr()
    assert (told.err, "identical to what" in told.out) == (said * edited, not edited)
