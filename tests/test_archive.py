import bz2
import gzip
import lzma
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import archive, pickles
from pipeline.errors import UserError
from tests import archives


def refused(path):
    """The message with which the archive is refused."""
    with pytest.raises(UserError) as error:
        archive.read(path, "small")
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


def with_batch(path, **changes):
    """An archive whose second batch differs in the given keys; None takes a key away."""
    contents = archives.contents()
    batch = contents["data_batch_2"] | changes
    contents["data_batch_2"] = {key: value for key, value in batch.items() if value is not None}
    return archives.pack(path, {name: archives.python3(content) for name, content in contents.items()})


def with_pickle(path, pickled):
    """An archive whose second batch is `pickled`."""
    return archives.pack(path, archives.members() | {"data_batch_2": pickled})


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


# --- row 10: members ---------------------------------------------------------------------------------------------


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


# --- row 11: pickles ---------------------------------------------------------------------------------------------


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("function", "protocol", "named"),
    [(os.system, 2, "posix.system"), (os.system, 4, "posix.system"), (eval, 2, "__builtin__.eval"), (eval, 4, "builtins.eval")],
)
def test_a_pickle_that_calls_is_refused_and_nothing_is_executed(function, protocol, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = archives.contents()["data_batch_2"] | {"batch_label": Calls(function, "touch called")}
    path = with_pickle(tmp_path / "a.tar.gz", pickle.dumps(content, protocol))
    assert refused(path) == f"cifar-10-batches-py/data_batch_2: forbidden global '{named}'; nothing was executed"
    assert not Path("called").exists()


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"cos\nsystem\n(S'touch called'\ntR.", "forbidden global 'os.system'; nothing was executed"),
        (b"(ios\nsystem\n.", "forbidden global 'os.system'; nothing was executed"),
        (b"(cos\nsystem\nX\x04\x00\x00\x00trueo.", "forbidden global 'os.system'; nothing was executed"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "not a pickled dictionary"),
        (b"\x80\x02\x82\x01.", "not a pickled dictionary (ValueError)"),
        (b"Pid\n.", "not a pickled dictionary (UnpicklingError)"),
        (b"\x80\x02K\x01Q.", "not a pickled dictionary (UnpicklingError)"),
        (b"\x80\x05\x97.", "not a pickled dictionary (UnpicklingError)"),
        (b"\x80\x05\x96\x03" + bytes(7) + b"abc.", "not a pickled dictionary"),
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "not a pickled dictionary (TypeError)"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "not a pickled dictionary (TypeError)"),
        (b"\x80\x02c_codecs\nencode\n}b.", "not a pickled dictionary"),
        (b"\x80\x02c_codecs\nencode\nN}X\x08\x00\x00\x00__func__K\x01s\x86b.", "not a pickled dictionary (AttributeError)"),
        (b"\x80\x02K\x01.", "not a pickled dictionary"),
        (b"\x80\x02}]K\x01s.", "not a pickled dictionary (TypeError)"),
        (b"\x80\x02}K\x01K\x02s.", "a key is not text"),
        (b"\x80\x02.", "not a pickled dictionary (UnpicklingError)"),
        (b"\x80\x02e.", "not a pickled dictionary (UnpicklingError)"),
        (b"\x80\x02}C\x01\xffK\x01s.", "not a pickled dictionary (UnicodeDecodeError)"),
        (b"\x80\x02}", "not a pickled dictionary (ValueError)"),
        (b"", "not a pickled dictionary (ValueError)"),
    ],
)  # fmt: skip
def test_a_pickle_of_anything_but_a_batch_is_refused_with_the_reason(pickled, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(with_pickle(tmp_path / "a.tar.gz", pickled)) == f"cifar-10-batches-py/data_batch_2: {reason}"
    assert not Path("called").exists()


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"\x80\x02" + b"]" * 300_000 + b".", "more than 200000 pickle operations"),
        (b"\x80\x02]r\xff\xff\xff\xff.", "more than 200000 pickle operations"),
        (b"]p999999999999\n.", "more than 200000 pickle operations"),
        (b"L" + b"9" * 2**20 + b"L\n.", "not a pickled dictionary (ValueError)"),
        (b"\x80\x05\x8e" + b"\xff" * 7 + b"\x00.", "not a pickled dictionary (ValueError)"),
        (b"\x80\x02T\xff\xff\xff\x7f.", "not a pickled dictionary (ValueError)"),
        (
            b"\x80\x02c_codecs\nencode\nX\x00\x00\x80\x00" + b"a" * 2**23 + b"X\x06\x00\x00\x00latin1\x86q\x01R"
            + b"c_codecs\nencode\nh\x01R" * 8 + b".",
            "more than 67108864 bytes",
        ),
    ],
    ids=["many lists", "a note with a huge number", "one in digits", "a huge number", "huge bytes", "a huge string", "encoded again"],
)  # fmt: skip
def test_a_pickle_that_asks_for_the_whole_machine_is_refused(pickled, reason):
    with pytest.raises(pickles.Refused) as error:
        pickles.read(pickled)
    assert str(error.value) == reason


# --- row 12: batches ---------------------------------------------------------------------------------------------


@pytest.mark.fault(12)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": [0] * 9 + [10]}, "label 10; allowed: 0 to 9"),
        ({"labels": [0] * 9 + [-1]}, "label -1; allowed: 0 to 9"),
        ({"labels": [0] * 9 + [10**300]}, f"label 1{'0' * 17}...{'0' * 19}; allowed: 0 to 9"),
        ({"labels": [0] * 9 + [True]}, "'labels' is not a list of whole numbers"),
        ({"labels": [0] * 9 + ["0"]}, "'labels' is not a list of whole numbers"),
        ({"labels": np.zeros(10, np.int64)}, "'labels' is not a list of whole numbers"),
        ({"labels": [0] * 9}, "9 labels for 10 images"),
        ({"labels": None}, "key 'labels' is missing"),
        ({"data": None}, "key 'data' is missing"),
        ({"data": [0] * 10}, "'data' is not an array of uint8"),
        ({"data": archives.pixels(10).astype(np.float32)}, "'data' has the dtype 'f4', not uint8"),
        ({"data": archives.pixels(10).astype(np.int8)}, "'data' has the dtype 'i1', not uint8"),
        ({"data": np.array([[None] * 3072] * 10)}, "'data' is not an array of uint8"),
        ({"data": archives.pixels(10)[:, :3071].copy()}, "'data' has the shape (10, 3071), not (n, 3072)"),
        ({"data": archives.pixels(10).reshape(10, 3, 32, 32)}, "'data' has the shape (10, 3, 32, 32), not (n, 3072)"),
    ],
)  # fmt: skip
def test_a_wrong_batch_is_refused_with_the_file_and_the_reason(changes, reason, tmp_path):
    assert refused(with_batch(tmp_path / "a.tar.gz", **changes)) == f"cifar-10-batches-py/data_batch_2: {reason}"


@pytest.mark.fault(12)
def test_a_truncated_batch_is_refused_with_the_file_and_the_reason(tmp_path):
    whole = archives.members()["data_batch_2"]
    path = with_pickle(tmp_path / "a.tar.gz", whole[: len(whole) // 2])
    assert refused(path) == "cifar-10-batches-py/data_batch_2: not a pickled dictionary (ValueError)"


@pytest.mark.fault(12)
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (9, "'data' has 30720 bytes for 9 images of 3072"),
        (11, "'data' has 30720 bytes for 11 images of 3072"),
        (60_000, "'data' has 30720 bytes for 60000 images of 3072"),
        (0, "'data' has the shape (0, 3072), not (n, 3072)"),
    ],
)
def test_a_shape_that_lies_about_the_size_is_refused(rows, reason, tmp_path):
    whole = archives.members()["data_batch_2"]
    assert whole.count(b"(K\x0aM\x00\x0ct") == 1
    path = with_pickle(tmp_path / "a.tar.gz", whole.replace(b"(K\x0aM\x00\x0ct", b"(M" + struct.pack("<H", rows) + b"M\x00\x0ct"))
    assert refused(path) == f"cifar-10-batches-py/data_batch_2: {reason}"


@pytest.mark.fault(12)
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (None, "'label_names' is not a list of names"),
        ([*archives.CLASSES[:9], 9], "'label_names' is not a list of names"),
        (list(archives.CLASSES[:9]), "'label_names' are not 10 different printable names"),
        ([*archives.CLASSES[:9], "airplane"], "'label_names' are not 10 different printable names"),
        ([*archives.CLASSES[:9], "tr\nuck"], "'label_names' are not 10 different printable names"),
    ],
)  # fmt: skip
def test_wrong_class_names_are_refused(names, reason, tmp_path):
    path = archives.pack(
        tmp_path / "a.tar.gz", archives.members() | {"batches.meta": archives.python2({"label_names": names} if names else {})}
    )
    assert refused(path) == f"cifar-10-batches-py/batches.meta: {reason}"


# --- damaged bytes -----------------------------------------------------------------------------------------------

damage = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 40), st.binary(max_size=8)), min_size=1, max_size=4)


def holds(read, refusal):
    """`read` gives what it should, or a refusal of one line, within 10 seconds; nothing else is raised."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))  # no Exception, so nothing takes it for damage
    signal.alarm(10)
    try:
        return read()
    except refusal as error:
        return len(str(error).splitlines()) == 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@settings(max_examples=150)
@given(damage, st.booleans())
def test_no_damaged_archive_escapes(tmp_path_factory, cuts, compressed):
    path = archives.small(tmp_path_factory.getbasetemp() / "damaged.tar.gz", 1)
    content = path.read_bytes()
    path.write_bytes(archives.damaged(content, cuts) if compressed else archives.damaged(gzip.decompress(content), cuts))
    assert holds(lambda: archive.read(path, "small"), UserError)


@settings(max_examples=150)
@given(damage, st.sampled_from([archives.python2, archives.python3, lambda content: pickle.dumps(content, 4)]))
def test_no_damaged_batch_escapes(tmp_path_factory, cuts, pickled):
    members = archives.members(1, pickled)
    whole = members["data_batch_2"]
    near_the_ends = [(start % 300 if start % 2 else len(whole) - 1 - start % 100, removed, inserted) for start, removed, inserted in cuts]
    members["data_batch_2"] = archives.damaged(whole, near_the_ends)
    path = archives.pack(tmp_path_factory.getbasetemp() / "damaged.tar.gz", members)
    assert holds(lambda: archive.read(path, "small"), UserError)


@settings(max_examples=150)
@given(st.binary(max_size=300))
def test_no_bytes_instead_of_a_pickle_escape(content):
    assert holds(lambda: type(pickles.read(content)) is dict, pickles.Refused)
