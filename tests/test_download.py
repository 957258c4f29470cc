import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline import params
from pipeline.data import archive, dataset, fetch, synthetic
from pipeline.data.download import download
from pipeline.data.fetch import Patience
from pipeline.errors import UserError
from tests import archives
from tests import misbehaving_server as server
from tests.conftest import ROOT, command
from tests.misbehaving_server import Server

NAME = "cifar-10-python.tar.gz"
PATIENCE = Patience(attempts=2, first_wait_seconds=0.001)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Whatever proxy and mirror the machine has, the loopback is reached directly."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("PIPELINE_CIFAR10_MIRROR", raising=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small archive."""
    return archives.small(tmp_path_factory.mktemp("archive") / "small.tar.gz", 50)


@pytest.fixture
def settings(small):
    """The `data` section that takes the small archive for the official one, from mirrors that are not there."""
    data = params.load(ROOT / "params.yaml").data
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/dead"
    of_small = {"bytes": small.stat().st_size, "md5": fetch.digest(small, "md5"), "sha256": fetch.digest(small, "sha256")}
    return dataclasses.replace(data, cifar10=params.Cifar10(mirrors=(dead,), **of_small))


def own(data, **changes):
    """The same with `source: archive`."""
    return dataclasses.replace(data, source="archive", archive=dataclasses.replace(data.archive, **changes))


def folder_with(tmp_path, data):
    """A folder with the project's params.yaml but for `data`."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["data"] = dataclasses.asdict(data) | {"cifar10": dataclasses.asdict(data.cifar10) | {"mirrors": list(data.cifar10.mirrors)}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def test_the_synthetic_set_needs_neither_network_nor_cache(settings, tmp_path):
    made = download(dataclasses.replace(settings, source="synthetic"), tmp_path / "cache")
    assert made.digest == synthetic.make().digest
    assert not (tmp_path / "cache").exists()


def test_a_mirror_of_the_users_own_comes_first(settings, small, tmp_path, monkeypatch):
    with Server(small.read_bytes()) as mine, Server(small.read_bytes()) as listed:
        settings = dataclasses.replace(settings, cifar10=dataclasses.replace(settings.cifar10, mirrors=(listed.url,)))
        monkeypatch.setenv("PIPELINE_CIFAR10_MIRROR", mine.url)
        made = download(settings, tmp_path, PATIENCE)
        assert (len(mine.requests), len(listed.requests)) == (1, 0)
    assert (made.name, made.digest) == ("cifar10", archive.read(small, "small").digest)


def test_a_mirror_that_is_no_url_is_refused(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_CIFAR10_MIRROR", "mirror.example")
    with pytest.raises(UserError, match=r"^PIPELINE_CIFAR10_MIRROR is 'mirror\.example'; allowed: an http\(s\) URL$"):
        download(settings, tmp_path)


def test_the_listed_mirrors_are_tried_in_order(settings, small, tmp_path):
    with Server(b"", server.status(404)) as first, Server(small.read_bytes()) as second, Server(small.read_bytes()) as third:
        cifar10 = dataclasses.replace(settings.cifar10, mirrors=(first.url, second.url, third.url))
        download(dataclasses.replace(settings, cifar10=cifar10), tmp_path, PATIENCE)
        assert [len(mirror.requests) for mirror in (first, second, third)] == [1, 1, 0]


# --- source: archive ---------------------------------------------------------------------------------------------


def test_an_archive_of_ones_own_comes_from_a_path_or_a_url_with_the_same_digest(settings, small, tmp_path, monkeypatch):
    monkeypatch.chdir(small.parent)
    checksum = fetch.digest(small, "sha256")
    of_path = download(own(settings, name="mine", url=small.name, sha256=checksum), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    with Server(small.read_bytes()) as good:
        url = good.url + "?token=1"
        of_url = download(own(settings, name="mine", url=url, sha256=checksum), tmp_path / "cache", PATIENCE)
        download(own(settings, name="mine", url=url, sha256=checksum), tmp_path / "cache", PATIENCE)
        assert len(good.requests) == 1
    assert (tmp_path / "cache" / f"{checksum[:16]}-file.tar.gz").exists()
    assert of_path.name == of_url.name == "mine"
    assert of_path.digest == of_url.digest == archive.read(small, "small").digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "none.tar.gz"}, "data.archive.url is 'none.tar.gz'; there is no such file (paths start at {folder})"),
        ({"url": "x" * 5000}, f"data.archive.url is '{'x' * 37}...{'x' * 38}'; there is no such file (paths start at {{folder}})"),
        ({"url": "."}, "data.archive.url is '.'; there is no such file (paths start at {folder})"),
        ({"url": "ftp://host/a.tar"}, "data.archive.url is 'ftp://host/a.tar'; allowed: an http(s) URL or a path"),
        ({"url": "file:///a.tar"}, "data.archive.url is 'file:///a.tar'; allowed: an http(s) URL or a path"),
        ({"url": "small.tar.gz"}, "data.archive.sha256 is empty; if small.tar.gz is the file that you mean, set it to {sha256}"),
        (
            {"url": "https://host/a.tar"},
            "data.archive.sha256 is empty; put the SHA-256 of https://host/a.tar there (sha256sum prints it)",
        ),
        (
            {"url": "small.tar.gz", "sha256": "0" * 64},
            f"small.tar.gz: checksum mismatch: expected sha256 {'0' * 64}; got sha256 {{sha256}}",
        ),
    ],
)
def test_an_archive_that_is_not_there_or_not_the_one_is_refused(settings, small, changes, message, monkeypatch):
    monkeypatch.chdir(small.parent)
    with pytest.raises(UserError) as error:
        download(own(settings, **changes))
    assert str(error.value) == message.format(folder=small.parent, sha256=fetch.digest(small, "sha256"))


def test_an_address_that_is_none_is_refused_with_what_is_wrong_with_it(settings, tmp_path):
    url = "http://[bad/x.tar.gz"
    with pytest.raises(UserError) as error:
        download(own(settings, url=url, sha256="0" * 64), tmp_path, PATIENCE)
    assert str(error.value).startswith(f"cannot get {'0' * 16}-x.tar.gz: {url}: ")


# --- row 1: SIGKILL in a download --------------------------------------------------------------------------------


@pytest.mark.fault(1)
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 128 + signal.SIGINT)]
)
def test_a_killed_download_leaves_a_part_that_the_next_one_resumes(settings, small, tmp_path, number, status):
    content = small.read_bytes()
    folder = folder_with(tmp_path, settings)
    part = folder / ".cache" / "downloads" / f"{NAME}.part"
    with Server(content, server.stall_after(200_000), server.whole) as stalled:
        variables = os.environ | {"PYTHONPATH": str(ROOT), "PIPELINE_CIFAR10_MIRROR": stalled.url}
        running = subprocess.Popen([sys.executable, "-m", "pipeline", "download"], cwd=folder, env=variables)
        while not (part.exists() and part.stat().st_size == 200_000):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(number)
        assert running.wait() == status
        assert sorted(file.name for file in folder.rglob("*") if file.is_file()) == [".lock", f"{NAME}.part", "params.yaml"]
        done = command("download", folder=folder, PIPELINE_CIFAR10_MIRROR=stalled.url)
        assert (done.returncode, stalled.ranges) == (0, [None, "bytes=200000-"]), done.stderr
    assert not part.exists()
    assert dataset.load(folder / dataset.DATASET).digest == archive.read(small, "small").digest


# --- rows 5 to 8 -------------------------------------------------------------------------------------------------


@pytest.mark.fault(5)
def test_nothing_is_unpacked_before_the_checksum_matches(settings, tmp_path, monkeypatch):
    wrong = archives.small(tmp_path / "wrong.tar.gz", 49).read_bytes()
    read = []
    monkeypatch.setattr(archive, "read", lambda *arguments: read.append(arguments))
    with Server(wrong) as bad:
        monkeypatch.setenv("PIPELINE_CIFAR10_MIRROR", bad.url)
        with pytest.raises(UserError, match=f"{re.escape(bad.url)}: checksum mismatch: expected "):
            download(settings, tmp_path, PATIENCE)
    assert read == []


@pytest.mark.fault(6)
def test_without_any_mirror_the_user_is_told_where_to_put_the_file_and_how_to_run_offline(settings, tmp_path):
    with pytest.raises(UserError) as error:
        download(settings, tmp_path, PATIENCE)
    assert str(error.value) == (
        f"cannot get {NAME}: {settings.cifar10.mirrors[0]}: [Errno 111] Connection refused (2 attempts); "
        f"put the file at {tmp_path / NAME} by hand, or name a mirror of your own in PIPELINE_CIFAR10_MIRROR, "
        "or work offline with `source: synthetic` in params.yaml"
    )


@pytest.mark.fault(6)
def test_the_command_says_so_in_one_line_and_exits_with_2(settings, tmp_path):
    folder = folder_with(tmp_path, own(settings, url="none.tar.gz"))
    done = command("download", folder=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: data.archive.url is 'none.tar.gz'; there is no such file (paths start at {folder})\n"
    assert not (folder / "data").exists()


@pytest.mark.fault(7)
def test_the_archive_put_there_by_hand_needs_no_network_and_no_writing(settings, small, tmp_path):
    (tmp_path / NAME).write_bytes(small.read_bytes())
    made = download(settings, tmp_path)
    assert (made.name, made.digest) == ("cifar10", archive.read(small, "small").digest)
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


@pytest.mark.fault(8)
def test_the_proxy_variables_are_honoured(settings, small, tmp_path, monkeypatch):
    url = "http://mirror.invalid/file.tar.gz"
    settings = dataclasses.replace(settings, cifar10=dataclasses.replace(settings.cifar10, mirrors=(url,)))
    with Server(small.read_bytes()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/file.tar.gz"))
        download(settings, tmp_path, PATIENCE)
        assert [path for path, _ in proxy.requests] == [url]


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_imports_neither_torch_nor_dvc(settings, tmp_path):
    folder = folder_with(tmp_path, dataclasses.replace(settings, source="synthetic"))
    code = (
        "import sys; from pipeline import cli; sys.argv = ['pipeline', 'download']\n"
        "try: cli.main()\n"
        "except SystemExit as end: print(end.code, {'torch', 'dvc'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "0 set()", done.stderr


@pytest.mark.full_size
def test_a_full_size_archive_is_read_from_a_path_and_over_http_as_torchvision_reads_it(settings, tmp_path, monkeypatch):
    named = os.environ.get("PIPELINE_TEST_ARCHIVE")
    if not named:
        pytest.skip("PIPELINE_TEST_ARCHIVE names no full-size archive")
    path = Path(named)
    checksum = fetch.digest(path, "sha256")
    of_path = download(own(settings, name="full", url=str(path), sha256=checksum))
    assert of_path.train_images.shape == (50_000, 3, 32, 32)
    assert of_path.test_images.shape == (10_000, 3, 32, 32)
    with Server(path.read_bytes()) as good:
        of_url = download(own(settings, name="full", url=good.url, sha256=checksum), tmp_path / "cache")
    assert of_url.digest == of_path.digest

    import tarfile

    from torchvision.datasets import CIFAR10

    with tarfile.open(path) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for train in (True, False):
        theirs = CIFAR10(tmp_path, train)
        images, labels = (getattr(of_path, f"{'train' if train else 'test'}_{what}") for what in ("images", "labels"))
        assert (theirs.data == images.transpose(0, 2, 3, 1)).all()
        assert theirs.targets == labels.tolist()
        assert tuple(theirs.classes) == of_path.classes
