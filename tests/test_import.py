"""Weights from elsewhere: the checkpoints that people have become runs, and what is none is one line."""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import densenet121, mobilenet_v2, resnet18, resnext50_32x4d, vgg11_bn

from pipeline import cli, evaluation
from pipeline.comparison import verdict
from pipeline.models import checkpoints
from pipeline.params import Compare, Model
from pipeline.runs import kept, outputs
from pipeline.system.errors import UserError
from pipeline.weights import importing, reproduce
from pipeline.weights.predict import Network
from tests.conftest import ROOT
from tests.reproductions import small_set

MODEL = Model(name="mobilenet_v2", arguments={"width_mult": 0.25})
MEAN, DEVIATION = "0.485,0.456,0.406", "0.229,0.224,0.225"


def network(classes: int = 7) -> nn.Module:
    torch.manual_seed(1)
    made = mobilenet_v2(num_classes=classes, width_mult=0.25)
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
    return made.eval()


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


def state(**changed: Callable[[torch.Tensor], torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    convert = changed.get("convert", lambda tensor: tensor)
    return OrderedDict((name, convert(tensor)) for name, tensor in network().state_dict().items())


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
def test_a_checkpoint_has_the_logits_of_its_module_exactly_and_natively(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
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


class Executes:
    def __reduce__(self):
        return print, ("executed",)


def written(save: Callable[[Path], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "theirs.pth"
        save(path)
        return path

    return write


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], Path]:
    given = dict(state())
    change(given)
    return written(lambda path: torch.save(given, path))


BIAS = "classifier.1.bias"


def compressed(path: Path) -> None:
    """A checkpoint of a million zeros whose archive is compressed."""
    torch.save({"x": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


MEMORY = b"cbuiltins\nbytearray\nJ\x00\x00\x00\x35\x85R."
"""A pickle that asks for 900 million bytes."""


def torch_pickle(path: Path, calls: bytes) -> None:
    """A file of torch.save whose pickle does this."""
    torch.save({"x": torch.zeros(3)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"\x80\x02" + calls if name.endswith("data.pkl") else content)


def ended_twice(path: Path) -> None:
    """The same with the beginning of another end, which Python's reader takes for the only one."""
    compressed(path)
    path.write_bytes(path.read_bytes() + b"PK\5\6" + bytes(4))


def with_two_directories(path: Path) -> None:
    """The same with a second directory, of one empty file, which Python's reader takes, and PyTorch's the first."""
    compressed(path)
    content = path.read_bytes()
    at = content.rfind(b"PK\5\6")
    end = list(struct.unpack("<4s4H2LH", content[at : at + 22]))
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("x", b"")
    (start,) = struct.unpack("<L", other.getvalue()[-6:-2])
    entry = bytearray(other.getvalue()[start:-22])
    padding = end[5] - len(entry)
    struct.pack_into("<H", entry, 32, padding)  # the length of its comment
    path.write_bytes(content[:at] + entry + bytes(padding) + struct.pack("<4s4H2LH", *end))


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda folder: folder / "theirs.pth", "No such file or directory; name a .pth, .pt or .safetensors file"),
    "a folder": (lambda folder: folder, "Is a directory; name a .pth, .pt or .safetensors file"),
    "noise": (written(lambda path: path.write_bytes(b"xx\n")), "not a checkpoint of PyTorch, or damaged"),
    "empty": (written(lambda path: path.write_bytes(b"")), "not a checkpoint of PyTorch, or damaged"),
    "cut": (written(lambda path: (torch.save(state(), path), path.write_bytes(path.read_bytes()[:5000]))), "not a checkpoint of PyTorch"),
    "a whole module": (written(lambda path: torch.save(network(), path)), "would execute torchvision.models.mobilenetv2.MobileNetV2"),
    "a program": (written(lambda path: torch.save({"state_dict": Executes()}, path)), "would execute "),
    "a bare pickle": (written(lambda path: path.write_bytes(pickle.dumps(Executes(), 4))), "not a checkpoint of PyTorch, or damaged"),
    "TorchScript": (written(lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)), "a TorchScript archive"),
    "no weights": (written(lambda path: torch.save({"epoch": 3, "best": {"a": 1}}, path)), "it holds 'epoch', 'best': name the right one"),
    "one missing": (changed(lambda given: given.pop("features.1.conv.1.weight")), "features.1.conv.1.weight is missing"),
    "one renamed": (changed(lambda given: given.update({"features.1.conv.1.wieght": given.pop("features.1.conv.1.weight")})),
                    "features.1.conv.1.weight is missing (the nearest is 'features.1.conv.1.wieght')"),
    "one more": (changed(lambda given: given.update(more=torch.ones(2))), "'more' is not the network's"),
    "another shape": (changed(lambda given: given.update({"features.1.conv.1.weight": torch.ones(3, 3, 1, 1)})),
                      "features.1.conv.1.weight is [3, 3, 1, 1], not [8, 8, 1, 1]"),
    "NaN": (changed(lambda given: given["features.1.conv.1.weight"].fill_(torch.nan)), "holds NaN or infinity"),
    "complex": (changed(lambda given: given.update({"classifier.1.bias": torch.ones(7, dtype=torch.complex64)})), "is torch.complex64"),
    "no memory": (changed(lambda given: given.update({BIAS: torch.ones(7, device="meta")})), "is torch.float32, strided, on meta"),
    "sparse": (changed(lambda given: given.update({BIAS: torch.ones(7).to_sparse()})), "is torch.float32, sparse_coo, on cpu"),
    "bits": (changed(lambda given: given.update({BIAS: torch.empty(7, dtype=torch.bits8)})), "is torch.bits8"),
    "one number, many times": (changed(lambda given: given.update({BIAS: torch.ones(1).expand(2**33)})), "its tensors take 34"),
    "memory without end": (written(lambda path: torch_pickle(path, MEMORY)), "it calls built"),
    "memory of before": (written(lambda path: path.write_bytes(b"\x80\x02" + MEMORY)), "it calls built"),
    "time without end": (written(lambda path: torch_pickle(
        path, b"c_codecs\nencode\nX\x03\x00\x00\x00abcX\x08\x00\x00\x00PunyCode\x86R.")), "it calls punycode"),
    "a tar archive": (written(lambda path: tarfile.open(path, "w").close()), "a tar archive, as PyTorch wrote before 0.2"),
    "zeros, compressed": (written(lambda path: compressed(path)), "that unpacks to 4"),
    "zeros, compressed, with an end that one reader sees": (
        written(lambda path: ended_twice(path)), "damaged (File is not a zip file)"),
    "zeros, compressed, with a directory for each reader": (written(lambda path: with_two_directories(path)), "or damaged ("),
    "a prefix without end": (changed(lambda given: (given.clear(), given.update({"module." * 10**6: torch.ones(1)}))),
                             "1 tensors, with names of up to 7000000 characters; at most 20000 of 1000 are read"),
    "many": (changed(lambda given: given.update({f"n{i}": torch.ones(()) for i in range(20_001)})), "tensors, with names of up to"),
    "a count alone": (changed(lambda given: (given.clear(), given.update(n_averaged=torch.ones(())))), "is missing; "),
}  # fmt: skip


@pytest.mark.parametrize("what", [name for name in REFUSED if name.startswith("zeros, compressed, with ")])
def test_an_archive_that_readers_take_for_different_ones_is_not_unpacked(what, monkeypatch, tmp_path):
    given, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, **named: given.append(len(file.getvalue())) or load(file, **named))
    path = REFUSED[what][0](tmp_path)
    with pytest.raises(UserError):
        checkpoints.read(path)
    assert sum(given) <= path.stat().st_size


@pytest.mark.parametrize("name", ["numel", "detach", "is_floating_point", "is_complex", "resolve_neg", "get"])
def test_an_attribute_of_what_a_file_holds_is_never_taken_for_a_method(name, tmp_path):
    weights = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.arange(2.0)}
    for value in weights.values():
        setattr(value, name, OrderedDict)
    for number, saved in enumerate((OrderedDict(weights), {"epoch": 1, "state_dict": OrderedDict(weights)})):
        for held in (saved, saved.get("state_dict")):
            if isinstance(held, OrderedDict):
                setattr(held, name, 5)
        torch.save(saved, tmp_path / f"{number}.pth")
        found = checkpoints.read(tmp_path / f"{number}.pth").weights
        assert {key: value.tolist() for key, value in found.items()} == {"a.weight": [[0, 1, 2], [3, 4, 5]], "a.bias": [0, 1]}


@pytest.mark.fault(77)
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_checkpoint_of_the_network_is_one_line_and_leaves_nothing(what, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    write, said = REFUSED[what]
    (tmp_path / "from").mkdir()
    path = write(tmp_path / "from")
    capsys.readouterr()
    with pytest.raises(UserError) as raised:
        importing.import_checkpoint(path, MODEL, size=32)
    assert said in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    assert not Path("imported").exists()
    assert not Path("runs").exists()
    assert "executed" not in capsys.readouterr().out


def test_the_nearest_names_are_looked_for_among_a_thousand_and_for_what_is_shown(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(checkpoints.difflib, "get_close_matches", lambda key, names, count: asked.append((key, len(names))) or [])
    others = {f"{i}features.conv.weight": np.zeros((), np.float32) for i in range(5000)}
    with pytest.raises(UserError, match=r"classifier\.1\.bias is missing; .*; and 5257 more"):
        checkpoints.fit(others, network(), tmp_path, "it")
    assert [names for _, names in asked] == [1000] * 5


def test_names_of_classes_that_steer_a_terminal_are_refused_and_nothing_is_left(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.save(state(), "theirs.pth")
    Path("names.txt").write_text("\n".join(["\x1b[2J", *map(str, range(6))]))
    with pytest.raises(
        UserError, match=r"theirs\.pth: cannot be kept: 'data\.classes\[0\]' is '\\x1b\[2J'; allowed: 1 to 100 characters that"
    ):
        importing.import_checkpoint(Path("theirs.pth"), MODEL, Path("names.txt"), size=32)
    assert not Path("imported").exists()


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
