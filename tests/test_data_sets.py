"""torchvision's data sets, as small stand-ins in their official layouts: on a loopback server, and laid by hand."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import pickle
import socket
import tarfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import scipy.io
import torchvision
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, SVHN

from pipeline import cli, params
from pipeline.data import dataset, sets, transfer
from pipeline.data.dataset import Dataset
from pipeline.data.transfer import Policy
from pipeline.runs import kept
from pipeline.system.errors import UserError
from tests import misbehaving_server as server
from tests.misbehaving_server import Server
from tests.settings import set_params

QUICK = Policy(window_seconds=2, retries=0)
TRAIN = {"epochs": 1, "batch_size": 8, "lr": 0.01, "momentum": 0.9, "log_every": 1}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)


def archive(folder: str, members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def cifar(cls: type, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A stand-in for CIFAR-10's or CIFAR-100's archive, of 10 images a batch, that torchvision takes for the official one."""
    key, classes = ("labels", 10) if cls is CIFAR10 else ("fine_labels", 100)
    members = {
        name: pickle.dumps({"data": drawn(10, 3072), key: list(range(classes - 10, classes))}, protocol=2)
        for name, _ in cls.train_list + cls.test_list
    }
    names = {cls.meta["key"]: [f"class {number}" for number in range(classes)]}
    content = archive(cls.base_folder, members | {cls.meta["filename"]: pickle.dumps(names, protocol=2)})
    for which in ("train_list", "test_list"):
        monkeypatch.setattr(cls, which, [[name, md5(members[name])] for name, _ in getattr(cls, which)])
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": md5(pickle.dumps(names, protocol=2))})
    monkeypatch.setattr(cls, "tgz_md5", md5(content))
    monkeypatch.setitem(sets.SHA256, cls.filename, hashlib.sha256(content).hexdigest())
    return {cls.filename: content}


def mnist(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A stand-in for MNIST's four files, with 20 images each."""
    contents = {}
    for name, _ in MNIST.resources:
        array = drawn(20, 28, 28) if "images" in name else np.arange(20, dtype=np.uint8) % 10
        head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
        contents[name] = gzip.compress(head + array.tobytes(), mtime=0)
        monkeypatch.setitem(sets.SHA256, f"MNIST/raw/{name}", hashlib.sha256(contents[name]).hexdigest())
    monkeypatch.setattr(MNIST, "resources", [(name, md5(content)) for name, content in contents.items()])
    return contents


def svhn(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A stand-in for SVHN's two files, with 20 images each; 10 is the label of the digit 0."""
    contents = {}
    for split in ("train", "test"):
        file = io.BytesIO()
        scipy.io.savemat(file, {"X": drawn(32, 32, 3, 20), "y": (np.arange(20) % 10 + 1)[:, None].astype(np.uint8)})
        contents[SVHN.split_list[split][1]] = file.getvalue()
    lists = {split: [*some[:2], md5(contents.get(some[1], b""))] for split, some in SVHN.split_list.items()}
    monkeypatch.setattr(SVHN, "split_list", lists)
    return contents


STAND_INS = {
    "cifar10": (lambda patch: cifar(CIFAR10, patch), (3, 32, 32), 10, 50),
    "cifar100": (lambda patch: cifar(CIFAR100, patch), (3, 32, 32), 100, 10),
    "mnist": (mnist, (1, 28, 28), 10, 20),
    "svhn": (svhn, (3, 32, 32), 10, 20),
}
AT = {"mnist": "MNIST/raw/"}
"""Where torchvision looks for a set's files, where that is not the folder itself."""


@pytest.fixture
def cache(folder_with_params: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where downloads are kept; nothing outside this machine is asked, and nothing but finished files stays."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in (transfer.MIRROR, "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, dead)
    monkeypatch.setattr(sets, "MIRRORS", {})
    yield sets.DOWNLOADS
    assert not (sets.DOWNLOADS.parent / "unpacked").exists()
    assert [*Path().rglob("*.part")] == []


def test_the_table_has_a_row_for_each_source_and_each_is_torchvisions():
    assert {*sets.SETS, "folder", "synthetic"} == set(get_args(params.SOURCES))
    assert [row.torchvision for row in sets.SETS.values() if not hasattr(torchvision.datasets, row.torchvision)] == []


@pytest.mark.fault(7)
@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("source", STAND_INS)
def test_a_set_in_its_official_layout_downloaded_or_laid_by_hand_is_read_trained_on_and_evaluated(source, by_hand, cache, monkeypatch):
    make, shape, classes, count = STAND_INS[source]
    contents = make(monkeypatch)
    set_params(Path(), data={"source": source}, train=TRAIN)
    if by_hand:
        for name, content in contents.items():
            path = cache / AT.get(source, "") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        assert cli.answer(["download"]) == 0
    else:
        with Server(contents) as good:
            monkeypatch.setenv(transfer.MIRROR, good.url.rpartition("/")[0])
            assert cli.answer(["download"]) == 0
    data = dataset.load()
    assert (data.name, data.shape, len(data.classes), len(data.train_images)) == (source, shape, classes, count)
    if source in ("cifar10", "cifar100"):
        assert (data.test_images.reshape(10, -1) == drawn(10, 3072)).all()
        assert data.test_labels.tolist() == list(range(classes - 10, classes))
    elif source == "mnist":
        assert (data.train_images[:, 0] == drawn(20, 28, 28)).all()
    else:
        assert (data.train_images == drawn(32, 32, 3, 20).transpose(3, 2, 0, 1)).all()
        assert data.train_labels.tolist() == [*range(1, 10), 0] * 2

    assert cli.answer(["train"]) == cli.answer(["evaluate"]) == 0
    (folder,) = kept.listed(Path("runs"))
    run = kept.load(folder)
    described = run.identity.data
    assert (described.name, described.shape, described.classes, described.digest) == (source, shape, data.classes, data.digest)
    assert [row.step for row in run.history] == list(range(1, -(-count // TRAIN["batch_size"]) + 1))
    assert [row.actual for row in run.predictions] == [data.classes[label] for label in data.test_labels]


def refused(cache: Path, source: str = "cifar10") -> UserError:
    with pytest.raises(UserError) as error:
        sets.read(source, 32, cache, QUICK)
    assert len(str(error.value).splitlines()) == 1
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    return error.value


FAILURES = {
    "cut": (server.close_after(300), "the connection ended after 300 of "),
    "a page": (server.page, "checksum mismatch: expected "),
    "busy": (server.status(503), "HTTP 503"),
    "stalls": (server.stall_after(300), "stalled: 300 bytes in "),
    "trickles": (server.trickle_after(300), "stalled: "),
    "trickling headers": (server.trickle_headers, "no answer in 2 s"),
    "redirected to nowhere": (server.redirect("http://127.0.0.1:1/"), "Connection refused"),
}


@pytest.mark.fault(2)
@pytest.mark.fault(4)
@pytest.mark.fault(5)
@pytest.mark.parametrize(
    ("source", "failure"), [("cifar10", name) for name in FAILURES] + [*product(("cifar100", "mnist", "svhn"), ("cut", "a page"))]
)
def test_a_transfer_that_fails_is_one_line_with_the_reason_and_nothing_is_left_half(source, failure, cache, monkeypatch):
    contents, (answer, reason) = STAND_INS[source][0](monkeypatch), FAILURES[failure]
    with Server(contents, answer) as bad:
        monkeypatch.setenv(transfer.MIRROR, bad.url.rpartition("/")[0])
        assert reason in str(refused(cache, source))


@pytest.mark.parametrize(("code", "headers"), [(302, {"Location": "/again"}), (503, {}), (404, {})])
def test_of_a_redirect_or_a_refusal_no_body_is_read_of_whatever_size_and_nothing_is_unpacked(code, headers, tmp_path):
    with Server(b"the file", server.laden(code, **headers), server.whole) as good, open(tmp_path / "file", "wb") as file:
        with pytest.raises(transfer.Failed, match="HTTP 404") if code == 404 else contextlib.nullcontext():
            transfer._Transfer(good.url, file, Policy(window_seconds=5, retries=1)).complete("file")
        assert good.sent < 2**24, "what lies in the sockets' buffers"
        assert len(good.requests) == (1 if code == 404 else 2)
    assert (tmp_path / "file").read_bytes() == (b"" if code == 404 else b"the file")


def test_a_transfer_that_is_never_stalled_and_never_done_is_given_up(tmp_path):
    drips = Policy(window_seconds=1, window_bytes=1, retries=0, longest_seconds=2)
    with Server(bytes(10**6), server.trickle_after(1)) as slow, pytest.raises(transfer.Failed, match=r"^too slow: \d+ bytes in 2 s$"):
        transfer._Transfer(slow.url, (tmp_path / "file").open("wb"), drips).complete("file")


@pytest.mark.fault(2)
def test_the_next_mirror_is_asked_where_one_fails(cache, monkeypatch):
    contents = cifar(CIFAR10, monkeypatch)
    with Server(contents, server.status(404), server.whole) as good:
        monkeypatch.setitem(sets.MIRRORS, "cifar-10-python.tar.gz", (good.url, f"{good.url.rpartition('/')[0]}/cifar-10-python.tar.gz"))
        assert len(sets.read("cifar10", 32, cache, QUICK).train_images) == 50
        assert len(good.requests) == 2


@pytest.mark.fault(6)
@pytest.mark.fault(40)
@pytest.mark.parametrize("source", STAND_INS)
def test_without_a_network_the_path_the_digest_and_the_remedies_are_told(source, cache, monkeypatch):
    name, content = next(iter(STAND_INS[source][0](monkeypatch).items()))
    error = refused(cache, source)
    assert str(error).startswith(f"cannot get {name}: http://127.0.0.1:")
    digest = f"md5 {md5(content)}" if source == "svhn" else f"sha256 {hashlib.sha256(content).hexdigest()}"
    assert error.remedies[0] == f"put the file with the {digest} at {cache / AT.get(source, '') / name} by hand"
    assert "source: synthetic" in error.remedies[-1]


@pytest.mark.parametrize("source", STAND_INS)
def test_a_file_laid_by_hand_that_is_cut_is_downloaded_again_or_said_and_left_as_it_is(source, cache, monkeypatch):
    contents = STAND_INS[source][0](monkeypatch)
    path = cache / AT.get(source, "") / next(iter(contents))
    path.parent.mkdir(parents=True)
    path.write_bytes(contents[path.name][:-1])
    with pytest.raises(UserError, match=f"^cannot get {path.name}: {path}: checksum mismatch: expected .*; got .*; http://127.0.0.1:.*$"):
        sets.read(source, 32, cache, QUICK)
    assert path.read_bytes() == contents[path.name][:-1]
    with Server(contents) as good:
        monkeypatch.setenv(transfer.MIRROR, good.url.rpartition("/")[0])
        sets.read(source, 32, cache, QUICK)
    assert path.read_bytes() == contents[path.name]


@pytest.mark.fault(10)
@pytest.mark.fault(11)
def test_nothing_is_unpickled_of_a_file_with_another_digest(cache, monkeypatch, tmp_path):
    cifar(CIFAR10, monkeypatch)

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    other = archive(CIFAR10.base_folder, {name: pickle.dumps(Trap()) for name, _ in CIFAR10.train_list})
    with Server({"cifar-10-python.tar.gz": other}) as bad:
        monkeypatch.setenv(transfer.MIRROR, bad.url.rpartition("/")[0])
        assert "checksum mismatch" in str(refused(cache))
    assert not (tmp_path / "executed").exists()


@pytest.mark.fault(37)
def test_no_secret_of_an_address_is_ever_shown(cache, monkeypatch, capsys):
    cifar(CIFAR10, monkeypatch)
    monkeypatch.setenv(transfer.MIRROR, "http://user:hunter2@127.0.0.1:1/folder")
    error = refused(cache)
    assert "http://***@127.0.0.1:1/" in str(error)
    assert "hunter2" not in str(error) + "".join(error.remedies) + "".join(capsys.readouterr())


def test_torchvisions_own_download_is_put_back(cache, monkeypatch):
    from torchvision.datasets import svhn as module
    from torchvision.datasets import utils

    before = utils.download_url, module.download_url
    cifar(CIFAR10, monkeypatch)
    refused(cache)
    assert (utils.download_url, module.download_url) == before


@pytest.mark.fault(1)
@pytest.mark.fault(3)
def test_a_killed_download_leaves_nothing_that_is_taken_for_the_file(cache, monkeypatch):
    contents = cifar(CIFAR10, monkeypatch)
    cache.mkdir(parents=True)
    (cache / ".cifar-10-python.tar.gz.part").write_bytes(b"the beginning of it")  # as SIGKILL leaves it
    with Server(contents) as good:
        monkeypatch.setenv(transfer.MIRROR, good.url.rpartition("/")[0])
        assert len(sets.read("cifar10", 32, cache, QUICK).train_images) == 50
        assert "Range" not in good.requests[0][1]


@pytest.mark.fault(9)
def test_what_a_killed_unpacking_left_is_not_taken_for_the_set(cache, monkeypatch):
    contents = mnist(monkeypatch)
    half = cache.parent / "unpacked" / "MNIST" / "raw"
    half.mkdir(parents=True)
    for name in contents:
        (cache / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
        (cache / "MNIST" / "raw" / name).write_bytes(contents[name])
        (half / name.removesuffix(".gz")).write_bytes(b"half")
    assert (sets.read("mnist", 32, cache, QUICK).train_images[:, 0] == drawn(20, 28, 28)).all()


@pytest.mark.fault(8)
def test_https_never_becomes_http(monkeypatch):
    import requests

    class Redirect(requests.Response):
        def __init__(self) -> None:
            super().__init__()
            self.status_code, self.headers["location"], self.raw = 302, "http://elsewhere/file", io.BytesIO()

    monkeypatch.setattr(requests.Session, "get", lambda *_, **__: Redirect())
    with pytest.raises(transfer.Failed, match="redirected from https to http://elsewhere/file"):
        transfer._Transfer("https://host/file", io.BytesIO(), QUICK).complete("file")


@pytest.mark.fault(12)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"classes": ("a",)}, "has 1 classes; allowed: 2 to 8192"),
        ({"classes": ("a", "a")}, "two classes are called 'a'"),
        ({"classes": ("a", "b\n")}, "class 1 is called 'b\\n'"),
        ({"train_images": np.zeros((2, 2, 8, 8), np.uint8)}, "not uint8 [N, C, S, S] with 1 or 3 channels"),
        ({"train_images": np.zeros((2, 1, 8, 9), np.uint8)}, "not uint8 [N, C, S, S]"),
        ({"test_images": np.zeros((2, 3, 9, 9), np.uint8)}, "test images are [3, 9, 9], the others [3, 8, 8]"),
        ({"train_labels": np.array([0, 2], np.uint8)}, "train label 2, but there are 2 classes"),
        ({"train_labels": np.array([0, 1])}, "train labels are int64 [2] for 2 images"),
        ({"test_images": np.zeros((0, 3, 8, 8), np.uint8), "test_labels": np.zeros(0, np.uint8)}, "and at least one"),
    ],
)  # fmt: skip
def test_a_data_set_with_a_wrong_shape_type_label_or_name_is_refused(change, reason):
    images, labels = np.zeros((2, 3, 8, 8), np.uint8), np.array([0, 1], np.uint8)
    good = {
        "name": "x",
        "classes": ("a", "b"),
        "train_images": images,
        "train_labels": labels,
        "test_images": images,
        "test_labels": labels,
    }
    Dataset(**good)
    with pytest.raises(UserError) as error:
        Dataset(**good | change)
    assert reason in str(error.value)
