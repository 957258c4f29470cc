"""Weights from elsewhere: the checkpoints that people have become runs."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import densenet121, resnet18, resnext50_32x4d, vgg11_bn

from pipeline import cli, evaluation
from pipeline.comparison import verdict
from pipeline.models import checkpoints, trial
from pipeline.params import Compare
from pipeline.runs import kept, outputs
from pipeline.system.errors import UserError
from pipeline.weights import importing, reproduce
from pipeline.weights.predict import Network
from tests.checkpoints import MODEL, network, state
from tests.conftest import ROOT
from tests.reproductions import small_set

MEAN, DEVIATION = "0.485,0.456,0.406", "0.229,0.224,0.225"


def as_if_from_a_gpu(path: Path) -> None:
    """Rewrite the tag of each storage's place, as a GPU's checkpoint has it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name.endswith("data.pkl"):
                changed = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                assert changed != content
                content = changed
            archive.writestr(name, content)


def prefixed(*prefixes: str) -> dict[str, torch.Tensor]:
    return {"".join(prefixes) + name: tensor for name, tensor in state().items()}


def half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


CHECKPOINTS: dict[str, tuple[object, list[str]]] = {
    "its weights": (state(), []),
    "a script's state": ({"epoch": 3, "state_dict": state(), "optimizer": {"lr": 0.1}}, ["the weights are those under 'state_dict'"]),
    "with model_state_dict": ({"model_state_dict": state(), "loss": 0.5}, ["the weights are those under 'model_state_dict'"]),
    "torchvision's references": ({"model": state(), "args": argparse.Namespace(lr=0.1, output_dir=Path("out"))},
                                 ["the weights are those under 'model'"]),
    "timm's script": ({"epoch": 3, "arch": "a", "state_dict": state(), "args": argparse.Namespace(lr=0.1), "version": 2},
                      ["the weights are those under 'state_dict'"]),
    "with net": ({"net": state(), "acc": 91.2}, ["the weights are those under 'net'"]),
    "of DataParallel": (prefixed("module."), ["'module.' was taken from each name"]),
    "of torch.compile": (prefixed("_orig_mod."), ["'_orig_mod.' was taken from each name"]),
    "of both": (prefixed("module.", "_orig_mod."), ["'module.' was taken from each name", "'_orig_mod.' was taken from each name"]),
    "of a module around it": ({"state_dict": prefixed("model.")},
                              ["the weights are those under 'state_dict'", "'model.' was taken from each name"]),
    "an average": (AveragedModel(network()).state_dict(), ["'module.' was taken from each name"]),
    "with its average": ({"model": state(), "model_ema": prefixed("module.")},
                         ["the weights are those under 'model' (also there: model_ema; --entry takes one)"]),
    "of an old release": ({name: tensor for name, tensor in state().items() if not name.endswith("num_batches_tracked")}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_read_as_the_weights_of_its_module_however_it_was_saved(name, tmp_path):
    content, said = CHECKPOINTS[name]
    torch.save(content, tmp_path / "theirs.pth")
    read = checkpoints.named(checkpoints.read(tmp_path / "theirs.pth"), network())
    assert read.said == said
    assert all(np.array_equal(read.weights[key], tensor.numpy()) for key, tensor in state().items() if key in read.weights)
    assert {key for key in state() if not key.endswith("num_batches_tracked")} <= set(read.weights)


@pytest.mark.parametrize("name", ["its weights", "an average", "of an old release"])
def test_a_checkpoint_has_the_logits_of_its_module_exactly_and_natively(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if name != "its weights":  # the network that is tried is the same
        monkeypatch.setattr(trial, "try_out", lambda *given: None)
    content, said = CHECKPOINTS[name]
    torch.save(content, "theirs.pth")
    first, *others = importing.import_checkpoint(Path("theirs.pth"), MODEL, size=32)
    assert first.startswith("theirs.pth: ")
    assert first.endswith(" tensors of mobilenet_v2 for 7 classes, trained elsewhere")
    assert others[:-1] == said
    images = small_set().test_images[:6]
    with torch.no_grad():
        wanted = network()(torch.from_numpy(images) / 255).numpy()
    (folder,) = Path("imported").iterdir()
    model = outputs.read_model(folder)
    for computed in ("exact", "native"):
        logits = Network(model, "cpu", computed)(images).logits
        np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(("dtype", "said"), [("float16", "float16 became float32"), ("bfloat16", "bfloat16 became float32")])
def test_halves_become_float32_and_that_is_said(dtype, said, tmp_path):
    given = {name: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for name, t in state().items()}
    for suffix, save in (("pth", torch.save), ("safetensors", lambda tensors, path: save_file(tensors, path))):
        path = tmp_path / f"half.{suffix}"
        save(given, path)
        read = checkpoints.read(path)
        assert read.said == [said]
        for name, tensor in given.items():
            wanted = tensor.float() if tensor.is_floating_point() else tensor
            assert read.weights[name].dtype == ("float32" if tensor.is_floating_point() else "int64")
            assert np.array_equal(read.weights[name], wanted.numpy())


@pytest.mark.fault(77)
def test_a_checkpoint_that_was_saved_on_a_gpu_is_read_where_there_is_none(tmp_path):
    path = tmp_path / "gpu.pth"
    torch.save({"state_dict": state()}, path)
    as_if_from_a_gpu(path)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="Attempting to deserialize object on a CUDA device"):
            torch.load(path, weights_only=True)
    weights = checkpoints.read(path).weights
    assert all(np.array_equal(weights[name], tensor.numpy()) for name, tensor in state().items())


class Around(nn.Module):
    """A network whose names all begin with the name of the one in it, as a file of somebody's own may have it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()


@pytest.mark.fault(77)
@pytest.mark.parametrize(
    ("before", "said"),
    [("net.", []), ("module.net.", ["'module.' was taken from each name"]), ("", ["'net.' was put before each name"]),
     ("model.", ["'model.' was taken from each name", "'net.' was put before each name"])],
)  # fmt: skip
def test_what_the_names_of_a_network_begin_with_itself_is_no_wrapping(before, said, tmp_path):
    torch.save(prefixed(before), tmp_path / "theirs.pth")
    wanted = Around().state_dict()
    read = checkpoints.named(checkpoints.read(tmp_path / "theirs.pth"), Around())
    assert (read.said, list(read.weights)) == (said, list(wanted))
    assert all(np.array_equal(read.weights[name], tensor.numpy()) for name, tensor in wanted.items())


TIMM = {
    "resnet18": (resnet18, "6cb439dd8789c9fe"),
    "resnext50_32x4d": (resnext50_32x4d, "068775a8790c1d34"),
    "densenet121": (densenet121, "89bb95a6c06030d4"),
}  # fmt: skip
"""Networks whose names and shapes timm 1.0.31 has as torchvision has them, with the digest of those in timm."""


@pytest.mark.parametrize("name", TIMM)
def test_timms_names_of_these_networks_are_torchvisions(name):
    make, digest = TIMM[name]
    with torch.device("meta"):
        named = "".join(f"{key} {list(tensor.shape)}\n" for key, tensor in sorted(make().state_dict().items()))
    assert hashlib.sha256(named.encode()).hexdigest()[:16] == digest


@pytest.mark.fault(77)
def test_names_of_another_library_are_one_line_that_says_how_many_fit_and_what_to_do(tmp_path):
    """Of timm's mobilenetv2_100. A mobilenet_v3 has another epsilon there than torchvision's, so names are not translated."""
    shapes = {
        "conv_stem.weight": (32, 3, 3, 3),
        "bn1.weight": (32,),
        "blocks.0.0.conv_dw.weight": (32, 1, 3, 3),
        "classifier.weight": (7, 9),
    }
    with pytest.raises(UserError) as refused:
        checkpoints.fit({key: np.zeros(shape, np.float32) for key, shape in shapes.items()}, network(), tmp_path, "mobilenet_v2")
    assert str(refused.value) == (
        f"{tmp_path}: not the weights of mobilenet_v2, 0 of whose 314 names it has: classifier.1.bias is missing (the nearest is "
        "'classifier.weight'); classifier.1.weight is missing (the nearest is 'classifier.weight'); features.0.0.weight is missing; "
        "features.0.1.bias is missing; features.0.1.running_mean is missing; and 261 more; name the network that they are of, with its "
        "arguments, or have it in a file of your own (docs/predict.md)"
    )


@pytest.mark.fault(77)
def test_a_checkpoint_is_imported_again_with_other_arguments_and_what_is_there_is_never_replaced(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.save(state(), "theirs.pth")
    normalized = importing.model_of("mobilenet_v2", ["width_mult=0.25"], MEAN, DEVIATION)
    first, again, other = (importing.import_checkpoint(Path("theirs.pth"), model, size=32)[-1] for model in (MODEL, MODEL, normalized))
    assert first == again != other
    assert sorted(str(folder) for folder in Path("imported").iterdir()) == sorted(said.partition(":")[0] for said in (first, other))
    model = Path(first.partition(":")[0], outputs.MODEL)
    model.write_bytes(b"another's")
    with pytest.raises(UserError, match=rf"^{model.parent}: is there, but is not the run of that name; move it away and import again$"):
        importing.import_checkpoint(Path("theirs.pth"), MODEL, size=32)
    assert model.read_bytes() == b"another's"


@pytest.mark.parametrize("make", [resnet18, vgg11_bn])
def test_published_layouts_fit_and_the_last_layer_tells_the_number_of_classes(make, tmp_path):
    theirs = make(num_classes=23)
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    assert checkpoints.classes_of(weights, make(num_classes=10), 10) == 23
    assert list(checkpoints.fit(weights, theirs, tmp_path, "theirs")) == list(weights)


def test_a_run_of_it_is_evaluated_compared_and_predicted_with_and_never_reproduced(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    data = small_set()
    data.save()
    torch.save(network(10).state_dict(), "theirs.pth")
    normalized = importing.model_of("mobilenet_v2", ["width_mult=0.25"], MEAN, DEVIATION)
    *_, told, at = importing.import_checkpoint(Path("theirs.pth"), normalized)
    assert told.startswith("drawn: accuracy ")
    run = kept.load(Path(at.removeprefix("kept as ")))
    pixels = torch.from_numpy(data.test_images) / 255
    of = [torch.tensor([float(x) for x in text.split(",")]).view(1, 3, 1, 1) for text in (MEAN, DEVIATION)]
    with torch.no_grad():
        wanted = network(10)((pixels - of[0]) / of[1])
    confidences = [p.confidence for p in run.predictions]
    np.testing.assert_allclose(confidences, wanted.softmax(1).amax(1).numpy(), rtol=1e-4)
    assert evaluation.evaluate_kept(run.folder, "cpu", 7)
    importing.import_checkpoint(Path("theirs.pth"), MODEL)
    runs = [kept.load(folder) for folder in kept.by_time(kept.listed())]
    report = verdict.report(runs, Compare(margin_points=1.0, confidence=0.95))
    assert "model.normalize.mean" in [difference.field for difference in report.pairs[0].differences]
    assert cli.answer(["compare", "--html", "page.html"]) in (0, 3)
    assert "trained elsewhere" in Path("page.html").read_text()
    with pytest.raises(UserError, match="its weights were trained elsewhere and imported, so nothing here can train them again"):
        reproduce.reproduce(run.folder)


@pytest.mark.fault(77)
@pytest.mark.parametrize(("words", "said"), [
    (["--argument", "width"], "--argument 'width': not NAME=VALUE"),
    (["--mean", "0.5,0.5,0.5"], "--mean and --std belong together"),
    (["--mean", "a,b,c", "--std", "1,1,1"], "not numbers such as"),
    (["--mean", "0.5", "--std", "0.5"], "model.normalize has 1 means and 1 deviations"),
    (["--classes", "none.txt"], "--classes none.txt: cannot be read"),
    (["--classes", "few.txt"], "--classes few.txt: has 2 names, and the checkpoint 7 classes"),
    (["--entry", "ema"], "no weights under 'ema'"),
])  # fmt: skip
def test_a_mistake_in_the_command_is_one_line(words, said, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state()}, "theirs.pth")
    Path("few.txt").write_text("a\nb\n")
    assert cli.answer(["import", "theirs.pth", "--model", "mobilenet_v2", "--size", "32", "--argument", "width_mult=0.25", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
