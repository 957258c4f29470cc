"""What `train` says besides its result: what would be faster, and what would learn."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline import inputs, params
from pipeline.exact import VERSION
from pipeline.params import Params
from pipeline.runs import kept, outputs
from pipeline.system import files
from pipeline.training import stage
from tests.conftest import ROOT
from tests.steps import drawn_set


@pytest.mark.fault(83)
@pytest.mark.fault(84)
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to give a process fewer CPUs")
@pytest.mark.parametrize(("workers", "lr", "slower", "tutorials"), [(2, 0.001, True, True), (1, 0.01, False, False)])
def test_more_workers_than_cpus_and_the_tutorials_settings_are_named_with_what_to_set(tmp_path, workers, lr, slower, tutorials):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("workers: 1 ", f"workers: {workers} ").replace("lr: 0.001", f"lr: {lr}"))
    drawn_set(64).save(tmp_path / "data" / "dataset.safetensors")
    code = "import os, runpy; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); runpy.run_module('pipeline', run_name='__main__')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, "train"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("2 workers share 1 CPU(s), which is slower than workers: 1\n" in done.stderr) == slower
    said = "a recipe takes the same network to 72 %: cp docs/examples/recipe.yaml params.yaml && dvc repro\n"
    assert done.stdout.endswith(said) == tutorials


@pytest.mark.fault(84)
def test_the_recipe_that_is_named_is_that_of_a_kept_run_and_a_file_to_put_in_the_place_of_params_yaml(tmp_path, monkeypatch):
    tutorials, recipe = (params.load(ROOT / name) for name in ("params.yaml", "docs/examples/recipe.yaml"))
    changed = {name for name in Params.__struct_fields__ if getattr(tutorials, name) != getattr(recipe, name)}
    assert changed == {"model", "train"}
    (run,) = (
        run for run in map(kept.load, kept.listed(ROOT / "results"))
        if (run.identity.train, run.identity.network, run.identity.numerics) == (recipe.train, recipe.model, VERSION)
    )  # fmt: skip
    assert f"it reaches {run.metrics.accuracy:.2%}".replace("%", " %") in (ROOT / "docs/recipes.md").read_text()
    monkeypatch.chdir(tmp_path)
    files.write_text(tmp_path / "params.yaml", (ROOT / "docs/examples/recipe.yaml").read_text().replace("epochs: 40", "epochs: 2"))
    drawn_set(64).save()
    stage.train(inputs.read("train"))
    assert outputs.read_model(outputs.OUTPUTS).provenance.network.normalize is True
