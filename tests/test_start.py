"""`model.weights`: a training that begins with the weights in a file is as exact as any other, and says which file that was."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import mobilenet_v2

from pipeline import device as devices
from pipeline import evaluation, inputs, models, numerics, params
from pipeline.models import checkpoints, normalisation
from pipeline.params import Model, Train
from pipeline.runs import kept, outputs, provenance
from pipeline.system.errors import UserError
from pipeline.training import stage
from pipeline.training.trainer import Trainer
from pipeline.weights import reproduce
from pipeline.workers import ALONE, Group
from tests.conftest import ROOT
from tests.reproductions import SETTINGS, said, small_set
from tests.settings import set_params
from tests.simulated import Exchange, together
from tests.steps import CPU, drawn_set, run_steps

SMALL = {"name": "mobilenet_v2", "arguments": {"width_mult": 0.25}}
FILE = "networks/begin.pth"
HEAD = ["classifier.1.weight", "classifier.1.bias"]


def theirs(classes: int = 7) -> nn.Module:
    """A network that was trained elsewhere, for so many classes."""
    torch.manual_seed(1)
    return mobilenet_v2(num_classes=classes, width_mult=0.25)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a file of weights for seven classes."""
    (tmp_path / "networks").mkdir()
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": theirs().state_dict(), "epoch": 90}, FILE)
    return tmp_path


def trainer(model: Model, version: str = "exact", group: Group = ALONE, seed: int = 0) -> Trainer:
    devices.prepare(CPU)
    settings = Train(epochs=1, batch_size=10, lr=0.01, momentum=0.9, log_every=1)
    chosen = numerics.select(version, CPU)
    return Trainer(drawn_set(20), CPU, seed, chosen, settings, group, network=model, start=checkpoints.start(model))


@pytest.mark.parametrize("version", ["exact", "native"])
def test_it_begins_with_the_weights_of_the_file_and_with_another_head_for_other_classes(version, project):
    model = Model(**SMALL, weights=FILE)
    made = trainer(model, version)
    drawn, wanted = models.build(model, (3, 32, 32), 10, 0).state_dict(), theirs().state_dict()
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, drawn[name] if name in HEAD else wanted[name]), name
    assert made.began == (
        f"{FILE}: the training begins with its {len(wanted) - 2} tensors; the weights are those under 'state_dict'; "
        "classifier.1.weight, classifier.1.bias begin anew, for 10 classes in place of 7"
    )


def test_names_are_those_of_the_network_whatever_was_put_before_them(project):
    torch.save({f"module.{name}": tensor for name, tensor in theirs(10).state_dict().items()}, FILE)
    made = trainer(Model(**SMALL, weights=FILE))
    assert made.began.endswith(" tensors; 'module.' was taken from each name")
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, theirs(10).state_dict()[name]), name


def test_a_head_of_as_many_classes_is_taken_too(project):
    save_file(theirs(10).state_dict(), "networks/begin.safetensors")
    made = trainer(Model(**SMALL, weights="networks/begin.safetensors"))
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, theirs(10).state_dict()[name]), name
    assert made.began == f"networks/begin.safetensors: the training begins with its {len(theirs().state_dict())} tensors"


def test_the_numbers_that_normalise_stay_those_of_the_setting(project):
    save_file({**theirs(10).state_dict(), "pixel_mean": torch.zeros(1, 3, 1, 1)}, "networks/begin.safetensors")
    made = trainer(Model(**SMALL, weights="networks/begin.safetensors", normalize=True))
    mean, deviation = normalisation.of_images(drawn_set(20).train_images)
    assert made.model.get_buffer("pixel_mean").flatten().tolist() == [float(np.float32(x)) for x in mean]
    assert made.model.get_buffer("pixel_deviation").flatten().tolist() == [float(np.float32(x)) for x in deviation]


def test_weights_of_images_that_were_normalized_are_refused_for_a_network_that_does_not(project):
    save_file({**theirs(10).state_dict(), "pixel_mean": torch.zeros(1, 3, 1, 1)}, "networks/begin.safetensors")
    with pytest.raises(UserError, match=r"314 of whose 314 names it has: 'pixel_mean' is not the network's; "):
        trainer(Model(**SMALL, weights="networks/begin.safetensors"))


def test_it_has_the_same_bits_with_several_workers_and_with_one_thread(project):
    def trained(group: Group = ALONE) -> dict[str, bytes]:
        given = trainer(Model(**SMALL, weights=FILE), group=group)
        run_steps(given, 2)
        return {name: array.tobytes() for name, array in given.state().items()}

    wanted = trained()
    for count in (2, 3):
        assert together(Exchange(count), trained) == [wanted] * count
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert trained() == wanted
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory) -> tuple[Path, Path]:
    """A project with a run that began with weights from a file, and the run."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "networks").mkdir()
    torch.save(theirs().state_dict(), folder / FILE)
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, numerics="exact", train=SETTINGS, evaluate={"batch_size": 16}, model={**SMALL, "weights": FILE})
    with contextlib.chdir(folder):
        small_set().save()
        stage.train(inputs.read("train"))
        evaluation.stage(inputs.read("evaluate"))
        (run,) = kept.listed()
    return folder, folder / run


def test_a_run_names_the_file_that_it_began_with(finetuned):
    folder, run = finetuned
    described = outputs.read_model(run).provenance
    assert described.weights == hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    assert described.network == Model(**SMALL, weights=FILE)


def test_evaluation_refuses_the_weights_of_a_training_that_began_otherwise(finetuned, monkeypatch, tmp_path):
    shutil.copytree(finetuned[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    torch.save(theirs(5).state_dict(), FILE)
    with pytest.raises(UserError, match=r"^outputs/model\.safetensors was trained otherwise than params\.yaml says: weights is .*, not "):
        evaluation.stage(inputs.read("evaluate"))


def test_its_reproduction_with_the_file_is_identical(finetuned, monkeypatch, capsys):
    folder, run = finetuned
    monkeypatch.chdir(folder)
    assert reproduce.reproduce(run)
    assert said(capsys).startswith("identical: all 4 logged losses, ")


@pytest.mark.parametrize("there", ["nothing", "another"])
def test_its_reproduction_without_that_file_is_one_line(there, finetuned, monkeypatch, tmp_path):
    folder, run = finetuned
    shutil.copytree(folder / "data", tmp_path / "data")
    (tmp_path / "networks").mkdir()
    monkeypatch.chdir(tmp_path)
    if there == "another":
        torch.save(theirs(5).state_dict(), FILE)
    remedy = "; put that file there" if there == "nothing" else f", and {FILE} here is another one; put the run's there"
    with pytest.raises(
        UserError, match=rf"its training began with {FILE} \(SHA-256 \w{{12}}\.\.\.\), which does not come with a run{remedy}$"
    ):
        reproduce.reproduce(run)
    assert not (tmp_path / ".cache").exists()


def test_its_predictions_and_evaluation_do_not_need_the_file(finetuned, monkeypatch, tmp_path):
    folder, run = finetuned
    shutil.copytree(folder / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert evaluation.evaluate_kept(run, "cpu", 7)


def test_another_file_is_another_training(project):
    settings = msgspec.structs.replace(params.load(ROOT / "params.yaml"), model=Model(weights=FILE))
    data = drawn_set(20).description
    one, other = (provenance.described_by(settings, "exact-3", data, "0" * 64, "", digest * 64) for digest in "12")
    assert provenance.differences(one, other) == [f"weights is {'1' * 12}..., not {'2' * 12}..."]


@pytest.mark.fault(85)
@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda: Path(FILE).unlink(), rf"^{FILE}: No such file or directory; name a \.pth, \.pt or \.safetensors file$"),
        (lambda: Path(FILE).write_bytes(b"no weights"), rf"^{FILE}: not a checkpoint of PyTorch, or damaged"),
        (lambda: torch.save({"epoch": 1}, FILE), rf"^{FILE}: no weights under any of "),
        (lambda: torch.save(nn.Linear(3, 7).state_dict(), FILE),
         rf"^{FILE}: not the weights of mobilenet_v2, 0 of whose 314 names it has: classifier\.1\.bias is missing; "),
        (lambda: torch.save(mobilenet_v2(num_classes=7).state_dict(), FILE),
         rf"^{FILE}: not the weights of mobilenet_v2, 314 of whose 314 names it has: .* is \[32, 3, 3, 3\], not \[8, 3, 3, 3\]"),
    ],
    ids=["lost", "damaged", "none", "another's", "of another width"],
)  # fmt: skip
def test_a_file_that_cannot_be_begun_with_is_one_line(change, line, project):
    change()
    with pytest.raises(UserError, match=line):
        trainer(Model(**SMALL, weights=FILE))


@pytest.mark.fault(85)
@pytest.mark.parametrize(
    "name", ["begin.pth", "networks/../begin.pth", "/networks/begin.pth", "networks/begin.txt", "networks/.hidden.pth"]
)
def test_a_file_where_dvc_does_not_see_it_is_refused(name):
    with pytest.raises(UserError, match=r"^params\.yaml: 'model\.weights' is .*; allowed: networks/FILE\.pth, \.pt or \.safetensors$"):
        params.section(Model, {"weights": name}, "params.yaml")
