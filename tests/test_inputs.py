"""Weights say what trained them: under other parameters, sources or inputs they are neither evaluated nor kept."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import sources
from pipeline.runs import kept as runs
from tests.conftest import ROOT, command
from tests.dvc_clone import SMALL, TRAIN, attempt, copied, environment, kept, sh
from tests.settings import set_params


def test_evaluate_alone_under_other_params_is_refused_under_dvc_too_and_keeps_nothing(clone, tmp_path):
    other = copied(clone, tmp_path)
    before = kept(other)
    set_params(other, seed=7)
    said = (
        "error: outputs/model.safetensors was trained otherwise than params.yaml says: seed is 0, not 7. Run `dvc repro`, which trains "
        "again (after `dvc unfreeze train` where that stage is frozen), or put params.yaml back\n"
    )
    done = command("evaluate", folder=other)
    assert (done.returncode, done.stderr) == (2, said)
    under_dvc = attempt(other, "dvc", "repro", "-s", "evaluate")
    assert under_dvc.returncode != 0
    assert said in under_dvc.stderr
    assert kept(other) == before


def test_a_frozen_training_is_not_evaluated_under_the_params_that_it_ignored(clone, tmp_path):
    other = copied(clone, tmp_path)
    before = kept(other)
    sh(other, "dvc", "freeze", "train")
    set_params(other, train={**TRAIN, "lr": 0.005})
    done = attempt(other, "dvc", "repro")
    assert done.returncode != 0
    assert "train.lr is 0.05, not 0.005. Run `dvc repro`, which trains again (after `dvc unfreeze train`" in done.stderr
    assert kept(other) == before


def test_dvc_commit_cannot_make_old_weights_those_of_new_params(clone, tmp_path):
    other = copied(clone, tmp_path)
    before = kept(other)
    set_params(other, seed=7)
    sh(other, "dvc", "commit", "-q", "-f", "train")
    done = attempt(other, "dvc", "repro")
    assert done.returncode != 0
    assert "seed is 0, not 7" in done.stderr
    assert kept(other) == before


def test_a_history_of_another_training_is_not_kept_beside_these_weights(clone, tmp_path):
    other = copied(clone, tmp_path)
    before = kept(other)
    rows = (other / "outputs/history.csv").read_text().splitlines()
    (other / "outputs/history.csv").unlink()
    (other / "outputs/history.csv").write_text("\n".join(rows[:-1]) + "\n")
    done = command("evaluate", folder=other)
    assert done.returncode == 2
    assert done.stderr.startswith("error: outputs/history.csv: not the history of model.safetensors beside it; run `dvc repro`")
    assert kept(other) == before


@pytest.mark.parametrize(
    ("path", "change", "named"),
    [
        ("params.yaml", lambda text: text.replace("seed: 0", "seed: 1"), "params.yaml: seed"),
        ("pipeline/models/simple_cnn.py", lambda text: text + "# another\n", "a source of train"),
        ("data/dataset.safetensors", None, "data/dataset.safetensors"),
    ],
)
def test_an_input_that_changes_while_train_runs_ends_it_before_its_outputs_and_put_back_it_ends_at_once(
    path, change, named, clone, tmp_path
):
    other = copied(clone, tmp_path)
    before = kept(other)
    set_params(other, train={**TRAIN, "lr": 0.02})  # so that DVC trains
    (other / "pause").touch()
    stages = other / "dvc.yaml"
    stages.write_text(stages.read_text().replace("python -m pipeline train", "python -m tests.pausing train --checkpoint-seconds 0"))
    process = subprocess.Popen(["dvc", "repro"], cwd=other, env=environment(PYTHONPATH=str(ROOT)), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    while not list((other / ".cache/training").glob("*.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    file = other / path
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content if change is None else change(content.decode()).encode())
    (other / "pause").unlink()
    out, said = process.communicate()
    assert process.returncode != 0
    assert f"error: {named} changed while train ran, so its outputs would not be those of what is there now" in said
    assert "kept as" not in out
    assert kept(other) == before
    if change is not None:
        file.write_bytes(content)
    again = attempt(other, "dvc", "repro", PYTHONPATH=str(ROOT))
    assert again.returncode == 0, again.stderr
    assert re.search(r"resumes at step (\d+) of \1 from", again.stderr), "nothing is left to train"
    (name,) = kept(other).keys() - before.keys()
    assert runs.load(other / "runs" / name).identity.train.lr == 0.02


def test_what_cannot_change_a_bit_neither_trains_again_nor_changes_the_digest_and_an_editors_droppings_are_no_sources(clone, tmp_path):
    other = copied(clone, tmp_path)
    before = digests(other)
    for name in ("cli/commands.py", "comparison/page.py", "comparison/verdict.py", "machine/doctor.py", "weights/predict.py"):
        path = other / "pipeline" / name
        path.write_text(path.read_text() + "# another\n")
    package = other / "pipeline"
    (package / ".#model.py").symlink_to("nobody@nowhere:0")
    for dropping in ("numerics/.grid.py.swp", "training/loop.py~", ".DS_Store", ".ipynb_checkpoints/model-checkpoint.py", "4913"):
        (package / dropping).parent.mkdir(exist_ok=True)
        (package / dropping).write_text("not Python at all: \0")
    assert digests(other) == before
    assert "Data and pipelines are up to date." in sh(other, "dvc", "repro")


@pytest.mark.parametrize("stage", sources.STAGES)
def test_every_source_of_a_stage_changes_its_digest(stage, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "PACKAGE", tmp_path / "pipeline")
    seen = {sources.digest(stage)}
    names = sources.files(stage)
    for name in names:
        path = tmp_path / "pipeline" / name
        path.write_bytes(path.read_bytes() + b"#")
        seen.add(sources.digest(stage))
    assert len(names) > 15
    assert len(seen) == 1 + len(names)


def digests(folder: Path) -> str:
    return sh(folder, sys.executable, "-c", "from pipeline import sources; print([sources.digest(stage) for stage in sources.STAGES])")


def test_dvc_sees_each_picture_of_the_folder_that_is_changed_added_or_removed(clone, tmp_path):
    other = copied(clone, tmp_path)
    picture, another, *_ = (other / SMALL / "train").rglob("*.png")
    content = picture.read_bytes()

    def sees() -> bool:
        return "up to date" not in sh(other, "dvc", "status", "download")

    assert not sees()
    picture.write_bytes(another.read_bytes())
    assert sees()
    picture.unlink()
    assert sees()
    picture.write_bytes(content)
    assert not sees()
    picture.with_name("new.png").write_bytes(content)
    assert sees()


@pytest.mark.fault(75)
@pytest.mark.parametrize("stage", ["train", "evaluate"])
@pytest.mark.parametrize("there", ["net.py", "nets/net.py"])
def test_a_module_that_a_network_of_the_package_imports_from_where_dvc_does_not_look_is_refused(stage, there, tmp_path):
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    module = tmp_path / "pipeline" / there
    module.parent.mkdir(exist_ok=True)
    module.write_text("WIDTH = 6\n")
    network = tmp_path / "pipeline" / "models" / "simple_cnn.py"
    name = there.removesuffix(".py").replace("/", ".")
    network.write_text(network.read_text() + f"\nfrom pipeline.{name} import WIDTH\n")
    done = command(stage, folder=tmp_path, PYTHONPATH=str(tmp_path))
    said = f"error: {module}: is imported, and DVC does not see its changes; move it into networks/, with the network that needs it\n"
    assert (done.returncode, done.stderr) == (2, said)
