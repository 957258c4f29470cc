"""What an archive may hold: the members, each once, and nothing large beside them."""

import gzip
import tarfile

import pytest

from tests import archives
from tests.archives import refused


@pytest.mark.fault(10)
@pytest.mark.parametrize(
    ("name", "kind", "described"),
    [
        ("../data_batch_1", tarfile.REGTYPE, "'../data_batch_1' (a file)"),
        (f"{archives.FOLDER}/../../etc/passwd", tarfile.REGTYPE, "'cifar-10-batches-py/../../etc/passwd' (a file)"),
        ("/etc/passwd", tarfile.REGTYPE, "'/etc/passwd' (a file)"),
        (f"{archives.FOLDER}/extra", tarfile.REGTYPE, "'cifar-10-batches-py/extra' (a file)"),
        ("data_batch_1", tarfile.REGTYPE, "'data_batch_1' (a file)"),
        (f"{archives.FOLDER}/sub", tarfile.DIRTYPE, "'cifar-10-batches-py/sub' (a folder)"),
        (f"{archives.FOLDER}/test_batch", tarfile.SYMTYPE, "'cifar-10-batches-py/test_batch' (a symbolic link)"),
        (f"{archives.FOLDER}/test_batch", tarfile.LNKTYPE, "'cifar-10-batches-py/test_batch' (a hard link)"),
        (f"{archives.FOLDER}/test_batch", tarfile.CHRTYPE, "'cifar-10-batches-py/test_batch' (a device)"),
        (f"{archives.FOLDER}/test_batch", tarfile.BLKTYPE, "'cifar-10-batches-py/test_batch' (a device)"),
        (f"{archives.FOLDER}/test_batch", tarfile.FIFOTYPE, "'cifar-10-batches-py/test_batch' (a pipe)"),
        (f"{archives.FOLDER}/test_batch", tarfile.GNUTYPE_SPARSE, "'cifar-10-batches-py/test_batch' (of another kind)"),
        (f"{archives.FOLDER}/\x1b[31m", tarfile.REGTYPE, "'cifar-10-batches-py/\\x1b[31m' (a file)"),
    ],
)
def test_a_member_that_does_not_belong_there_is_refused_by_name(name, kind, described, tmp_path):
    info = archives.header(name, kind=kind)
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    path = archives.pack(tmp_path / "a.tar.gz", archives.members(), [(info, b"")])
    assert refused(path) == (
        f"not a whole archive in CIFAR-10's layout: member {described} does not belong there; "
        "pack the folder cifar-10-batches-py with the batches alone"
    )


@pytest.mark.fault(10)
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_missing_member_is_refused_by_name(name, tmp_path):
    members = archives.members()
    del members[name]
    assert refused(archives.pack(tmp_path / "a.tar.gz", members)) == (
        f"cifar-10-batches-py/{name} is missing; "
        "there must be data_batch_1, data_batch_2, data_batch_3, data_batch_4, data_batch_5, test_batch, batches.meta"
    )


@pytest.mark.fault(10)
def test_a_member_that_is_there_twice_is_refused(tmp_path):
    content = archives.members()["test_batch"]
    again = archives.header(f"{archives.FOLDER}/test_batch", len(content))
    path = archives.pack(tmp_path / "a.tar.gz", archives.members(), [(again, content)])
    assert refused(path) == "cifar-10-batches-py/test_batch is there twice"


@pytest.mark.fault(10)
def test_a_member_that_claims_too_much_is_refused_before_it_is_read(tmp_path):
    info = archives.header(f"{archives.FOLDER}/data_batch_1", 2**40)
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    assert refused(path) == (
        "not a whole archive in CIFAR-10's layout: cifar-10-batches-py/data_batch_1 claims 1099511627776 bytes; at most 67108864 are read"
    )


@pytest.mark.fault(10)
@pytest.mark.parametrize("name", ["folder", "attributes", "readme"])
def test_a_bomb_beside_the_batches_is_refused_by_size(name, tmp_path):
    zeros = bytes(2 * 2**20)
    bombs = {
        "folder": archives.header(archives.FOLDER, kind=tarfile.DIRTYPE).tobuf() * 2100,
        "attributes": archives.header("x", len(zeros), tarfile.XHDTYPE).tobuf() + zeros,
        "readme": archives.header(f"{archives.FOLDER}/readme.html", len(zeros)).tobuf() + zeros,
    }
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(bombs[name] + bytes(1024)))
    assert refused(path) == "not a whole archive in CIFAR-10's layout: more than 1048576 bytes beside the batches"


@pytest.mark.fault(10)
@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"<html>" * 200, gzip.compress(b"text", mtime=0), bytes(1024)])
def test_what_is_no_archive_is_refused(content, tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    assert "not a whole archive in CIFAR-10's layout" in (message := refused(path)) or "is missing" in message


@pytest.mark.fault(10)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_an_archive_that_ends_early_is_refused(share, tmp_path):
    path = archives.small(tmp_path / "a.tar.gz")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert refused(path).startswith("not a whole archive in CIFAR-10's layout: ")
