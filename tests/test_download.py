import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec import structs, to_builtins

from pipeline import params
from pipeline.data import archive, dataset, fetch, synthetic
from pipeline.data.download import download
from pipeline.data.exchange import RetryPolicy
from pipeline.errors import UserError
from tests import archives
from tests import misbehaving_server as server
from tests.conftest import ROOT, command
from tests.misbehaving_server import Server

NAME = "cifar-10-python.tar.gz"
POLICY = RetryPolicy(attempts=2, first_wait_seconds=0.001)


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
    return structs.replace(data, cifar10=params.Cifar10(mirrors=(dead,), **of_small))


def own(data, **changes):
    """The same with `source: archive`."""
    return structs.replace(data, source="archive", archive=structs.replace(data.archive, **changes))


def folder_with(tmp_path, data):
    """A folder with the project's params.yaml but for `data`."""
    (tmp_path / "params.yaml").write_text(params.dump(structs.replace(params.load(ROOT / "params.yaml"), data=data)))
    return tmp_path


def test_the_synthetic_set_needs_neither_network_nor_cache(settings, tmp_path):
    data = download(structs.replace(settings, source="synthetic"), tmp_path / "cache")
    assert data.digest == synthetic.make().digest
    assert not (tmp_path / "cache").exists()


def test_a_mirror_of_the_users_own_comes_first(settings, small, tmp_path, monkeypatch):
    with Server(small.read_bytes()) as mine, Server(small.read_bytes()) as listed:
        settings = structs.replace(settings, cifar10=structs.replace(settings.cifar10, mirrors=(listed.url,)))
        monkeypatch.setenv("PIPELINE_CIFAR10_MIRROR", mine.url)
        data = download(settings, tmp_path, POLICY)
        assert (len(mine.requests), len(listed.requests)) == (1, 0)
    assert (data.name, data.digest) == ("cifar10", archive.read(small, "small").digest)


def test_a_mirror_that_is_no_url_is_refused(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_CIFAR10_MIRROR", "mirror.example")
    with pytest.raises(UserError, match=r"^PIPELINE_CIFAR10_MIRROR is 'mirror\.example'; allowed: an http\(s\) URL$"):
        download(settings, tmp_path)


def test_the_listed_mirrors_are_tried_in_order(settings, small, tmp_path):
    with Server(b"", server.status(404)) as first, Server(small.read_bytes()) as second, Server(small.read_bytes()) as third:
        cifar10 = structs.replace(settings.cifar10, mirrors=(first.url, second.url, third.url))
        download(structs.replace(settings, cifar10=cifar10), tmp_path, POLICY)
        assert [len(mirror.requests) for mirror in (first, second, third)] == [1, 1, 0]


# --- source: archive ---------------------------------------------------------------------------------------------


def test_an_archive_of_ones_own_comes_from_a_path_or_a_url_with_the_same_digest(settings, small, tmp_path, monkeypatch):
    monkeypatch.chdir(small.parent)
    checksum = fetch.digest(small, "sha256")
    of_path = download(own(settings, name="mine", url=small.name, sha256=checksum), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    with Server(small.read_bytes()) as good:
        url = good.url + "?token=1"
        of_url = download(own(settings, name="mine", url=url, sha256=checksum), tmp_path / "cache", POLICY)
        download(own(settings, name="mine", url=url, sha256=checksum), tmp_path / "cache", POLICY)
        assert len(good.requests) == 1
    assert (tmp_path / "cache" / f"{checksum[:16]}-file.tar.gz").exists()
    assert of_path.name == of_url.name == "mine"
    assert of_path.digest == of_url.digest == archive.read(small, "small").digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "none.tar.gz"}, "data.archive.url is 'none.tar.gz'; there is no such file (paths start at {folder})"),
        ({"url": "x" * 5000}, f"data.archive.url is '{'x' * 37}...{'x' * 38}'; there is no such file (paths start at {{folder}})"),
        ({"url": "."}, "data.archive.url is '.', a folder; name a tar archive of it: tar czf images.tar.gz cifar-10-batches-py"),
        ({"url": "pipe"}, "pipe: cannot be read: not a plain file"),
        ({"url": "HTTPS://host/a.tar"}, "data.archive.sha256 is empty; put the SHA-256 of HTTPS://host/a.tar there (sha256sum prints it)"),
        ({"url": "ftp://me:pw@host/a.tar"}, "data.archive.url is 'ftp://***@host/a.tar'; allowed: an http(s) URL or a path"),
        (
            {"url": "http://me:pw@h/a?t=1"},
            "data.archive.sha256 is empty; put the SHA-256 of http://***@h/a?*** there (sha256sum prints it)",
        ),
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
    if not os.path.exists("pipe"):
        os.mkfifo("pipe")
    with pytest.raises(UserError) as error:
        download(own(settings, **changes))
    assert str(error.value) == message.format(folder=small.parent, sha256=fetch.digest(small, "sha256"))


@pytest.mark.fault(39)
@pytest.mark.parametrize("checksum", ["", "0" * 64])
def test_what_is_no_tar_archive_is_named_before_its_checksum_is_advised(settings, checksum, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images.zip").write_bytes(b"PK\x03\x04" + bytes(600))
    with pytest.raises(UserError) as error:
        download(own(settings, url="images.zip", sha256=checksum))
    assert str(error.value) == (
        "images.zip: not a whole archive in CIFAR-10's layout: it is a ZIP archive; make one: tar czf images.tar.gz cifar-10-batches-py"
    )


@pytest.mark.fault(37)
@pytest.mark.parametrize("url", ["http://alice:secret@127.0.0.1:1", "http://alice:secret@127.0.0.1:1/?sig=secret"])
def test_no_file_is_named_after_a_secret(settings, url, tmp_path, capsys):
    with pytest.raises(UserError) as error:
        download(own(settings, url=url, sha256="0" * 64), tmp_path, POLICY)
    assert str(error.value).startswith(f"cannot get {'0' * 16}-archive: http://***@127.0.0.1:1")
    assert "secret" not in str(error.value) + str(list(tmp_path.iterdir())) + capsys.readouterr().err


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    "value", ["ftp://alice:secret@host/x", "alice:secret@host/x", "http:/alice:secret@host", "http://alice:sec ret@host"]
)
def test_a_mirror_that_is_no_url_is_refused_without_its_secrets(settings, value, tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_CIFAR10_MIRROR", value)
    with pytest.raises(UserError, match=r"^PIPELINE_CIFAR10_MIRROR is '[fthp:/]*\*\*\*@host(/x)?'; allowed: an http\(s\) URL$"):
        download(settings, tmp_path)
    mirrors = to_builtins(settings.cifar10) | {"mirrors": [value]}
    with pytest.raises(UserError) as error:
        params.section(params.Cifar10, mirrors, "params.yaml")
    assert "secret" not in str(error.value)


def test_an_address_that_is_none_is_refused_with_what_is_wrong_with_it(settings, tmp_path):
    url = "http://[bad/x.tar.gz"
    with pytest.raises(UserError) as error:
        download(own(settings, url=url, sha256="0" * 64), tmp_path, POLICY)
    assert str(error.value).startswith(f"cannot get {'0' * 16}-archive: {url}: not an address that can be asked")


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
        assert sorted(file.name for file in folder.rglob("*") if file.is_file()) == [".lock", f"{NAME}.part", "params.yaml", "stage.lock"]
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
            download(settings, tmp_path, POLICY)
    assert read == []


@pytest.mark.fault(6)
def test_without_any_mirror_the_user_is_told_where_to_put_the_file_and_how_to_run_offline(settings, tmp_path):
    with pytest.raises(UserError) as error:
        download(settings, tmp_path, POLICY)
    assert str(error.value) == (f"cannot get {NAME}: {settings.cifar10.mirrors[0]}: [Errno 111] Connection refused (2 attempts)")
    assert error.value.remedies == (
        f"put the file at {tmp_path / NAME} by hand",
        "name a mirror of your own in PIPELINE_CIFAR10_MIRROR",
        "work offline with `source: synthetic` in params.yaml",
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
    data = download(settings, tmp_path)
    assert (data.name, data.digest) == ("cifar10", archive.read(small, "small").digest)
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


@pytest.mark.fault(8)
def test_the_proxy_variables_are_honoured(settings, small, tmp_path, monkeypatch):
    url = "http://mirror.invalid/file.tar.gz"
    settings = structs.replace(settings, cifar10=structs.replace(settings.cifar10, mirrors=(url,)))
    with Server(small.read_bytes()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/file.tar.gz"))
        download(settings, tmp_path, POLICY)
        assert [path for path, _ in proxy.requests] == [url]


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_imports_neither_torch_nor_dvc(settings, tmp_path):
    folder = folder_with(tmp_path, structs.replace(settings, source="synthetic"))
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
