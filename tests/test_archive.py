"""An archive is read whoever packed it, named where it is none, and nothing is written."""

import bz2
import gzip
import lzma
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import archive
from pipeline.errors import UserError
from tests import archives
from tests.archives import refused, with_batch

# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pickled",
    [
        archives.python2,
        archives.python3,
        lambda content: pickle.dumps(content, 4),
        lambda content: pickle.dumps({key.encode(): value for key, value in content.items()}, 2),
        lambda content: archives.python3(content).replace(b"numpy._core", b"numpy.core"),
    ],
    ids=["Python 2", "Python 3", "protocol 4", "keys in bytes", "NumPy 1"],
)
def test_an_archive_gives_the_images_in_order_whoever_wrote_it(pickled, tmp_path):
    data = archive.read(archives.small(tmp_path / "a.tar.gz", 20, pickled), "small")
    assert (data.name, data.classes) == ("small", archives.CLASSES)
    images = np.concatenate([archives.pixels(20, n) for n in range(5)])
    assert np.array_equal(data.train_images, images.reshape(100, 3, 32, 32))
    assert np.array_equal(data.test_images, archives.pixels(20, 5).reshape(20, 3, 32, 32))
    assert data.train_labels.tolist() == [(i + n) % 10 for n in range(5) for i in range(20)]
    assert data.test_labels.tolist() == [(i + 5) % 10 for i in range(20)]


def test_an_array_that_was_pickled_by_columns_is_the_same_array(tmp_path):
    path = with_batch(tmp_path / "a.tar.gz", data=np.asfortranarray(archives.pixels(10, 1)))
    assert archive.read(path, "small").digest == archive.read(archives.small(tmp_path / "b.tar.gz"), "small").digest


def test_a_plain_tar_is_read_too(tmp_path):
    gzipped = archives.small(tmp_path / "a.tar.gz")
    plain = tmp_path / "a.tar"
    plain.write_bytes(gzip.decompress(gzipped.read_bytes()))
    assert archive.read(plain, "small").digest == archive.read(gzipped, "small").digest


def test_times_owners_and_the_official_readme_are_ignored(tmp_path):
    info = archives.header(f"{archives.FOLDER}/readme.html", 5)
    info.pax_headers = {"mtime": "1234567890.5", "uname": "someone"}
    path = archives.pack(tmp_path / "a.tar.gz", archives.members(), [(info, b"<html")], tarfile.PAX_FORMAT)
    assert archive.read(path, "small").digest == archive.read(archives.small(tmp_path / "b.tar.gz"), "small").digest


# --- what is plainly meant ---------------------------------------------------------------------------------------


def packed(tmp_path, *words):
    """An archive that the tar program packs of a folder with the batches, and what macOS leaves beside them."""
    around = tmp_path / "around"
    folder = around / archives.FOLDER
    folder.mkdir(parents=True)
    for name, content in archives.members().items():
        (folder / name).write_bytes(content)
    for name in ("._data_batch_1", ".DS_Store"):
        (folder / name).write_bytes(b"Mac OS X")
    (around / f"._{archives.FOLDER}").write_bytes(b"Mac OS X")
    done = subprocess.run(["tar", *words], cwd=around, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tmp_path / "x.tgz"


@pytest.mark.fault(38)
@pytest.mark.parametrize(
    "words",
    [
        ["czf", "../x.tgz", f"./{archives.FOLDER}"],
        ["czf", "../x.tgz", f"{archives.FOLDER}/"],
        ["cf", "../x.tgz", archives.FOLDER],
        ["czf", "../x.tgz", f"./._{archives.FOLDER}", archives.FOLDER],
        ["czf", "../x.tgz", "."],
        ["czf", "../x.tgz", "--format=v7", archives.FOLDER],
        ["czf", "../x.tgz", "--format=pax", "--owner=somebody-with-a-very-long-name-that-fits-no-header:4294967294", archives.FOLDER],
        ["czf", "../x.tgz", "--format=gnu", "--owner=:4294967294", "--mtime=@99999999999", archives.FOLDER],
    ],
    ids=["./", "a slash at the end", "no gzip", "macOS", "the folder around it", "v7", "pax with a huge uid", "gnu with a huge uid"],
)
def test_an_archive_is_read_however_tar_was_called(words, tmp_path):
    expected = archive.read(archives.small(tmp_path / "b.tar.gz"), "small").digest
    assert archive.read(packed(tmp_path, *words), "small").digest == expected


@pytest.mark.fault(38)
def test_a_folder_of_another_name_is_refused_with_the_name_that_it_must_have(tmp_path):
    path = packed(tmp_path, "czf", "../x.tgz", "--transform", f"s/{archives.FOLDER}/mine/", archives.FOLDER)
    assert refused(path) == (
        "not a whole archive in CIFAR-10's layout: member 'mine' (a folder) does not belong there; "
        "pack the folder cifar-10-batches-py with the batches alone"
    )


@pytest.mark.fault(39)
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04 and so on", "a ZIP archive"),
        (lzma.compress(b"tar"), "an xz file"),
        (bz2.compress(b"tar"), "a bzip2 file"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
        (b"\x28\xb5\x2f\xfd\0", "a Zstandard file"),
        (b"Rar!\x1a\x07\x01\0", "a RAR archive"),
        (b"\r\n<!doctype html><title>Log in</title>" + bytes(600), "a page (HTML or XML)"),
        (b"\xef\xbb\xbf<html>", "a page (HTML or XML)"),
        (b"\xef\xbb\xbfversion https://git-lfs", "a text file"),
        (b"version https://git-lfs.github.com/spec/v1", "no tar archive (it begins with b'version https://')"),
        (archives.members()["data_batch_1"], "a pickle, one batch without its archive"),
        (gzip.compress(b"text", mtime=0), "gzip"),
    ],
)
def test_what_is_no_archive_is_named(content, kind, wrapped, tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(content) if wrapped else content)
    named = kind if kind != "gzip" or wrapped else "no tar archive (it begins with b'text')"
    of = "gzip of " if wrapped or kind == "gzip" else ""
    assert (
        refused(path) == f"not a whole archive in CIFAR-10's layout: it is {of}{named}; make one: tar czf images.tar.gz {archives.FOLDER}"
    )
    with pytest.raises(UserError, match="it is "):
        archive.check_kind(path)


# --- row 9: nothing half-made ------------------------------------------------------------------------------------

KILLED_IN_THE_THIRD_BATCH = """
import os, signal, sys
from pathlib import Path
from pipeline.data import archive

sys.addaudithook(lambda event, arguments: event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and print("wrote", arguments[0]))
read, seen = archive._batch, []
def batch(content):
    seen.append(content)
    if len(seen) == 3:
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return read(content)
archive._batch = batch
archive.read(Path(sys.argv[1]), "small")
"""


@pytest.mark.fault(9)
def test_a_kill_while_unpacking_leaves_nothing_for_nothing_is_written(tmp_path):
    path = archives.small(tmp_path / "a.tar.gz")
    before = path.read_bytes()
    command = [sys.executable, "-B", "-c", KILLED_IN_THE_THIRD_BATCH, str(path)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
    assert [file.name for file in tmp_path.rglob("*")] == ["a.tar.gz"]
    assert path.read_bytes() == before
    assert len(archive.read(path, "small").train_labels) == 50
