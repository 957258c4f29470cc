"""What a batch must be; and no damage to an archive, a batch or a pickle ends in anything but a refusal."""

import gzip
import pickle
import signal
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import archive, pickles
from pipeline.errors import UserError
from tests import archives
from tests.archives import refused, with_batch, with_pickle

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
