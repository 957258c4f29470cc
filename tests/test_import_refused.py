"""What is no checkpoint of the network, or asks for memory, time or more in its file, is one line and leaves nothing."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models import checkpoints
from pipeline.system.errors import UserError
from pipeline.weights import importing
from tests.checkpoints import MODEL, network, state


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
