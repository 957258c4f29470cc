"""The reader of safetensors files takes what the library takes, refuses what it refuses, and reads into one buffer."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import dataset
from pipeline.exact import arrays
from pipeline.runs import outputs
from pipeline.system import tensors
from pipeline.system.errors import UserError

ARRAYS = {
    "bytes": np.arange(6, dtype=np.uint8).reshape(1, 2, 3), "flag": np.array([True, False, True]), "none": np.zeros((0, 4), np.float32),
    "step": np.array(7, np.int64), "weights": np.linspace(-1, 1, 5, dtype=np.float32), "wide": np.array([1.5, -0.0]),
}  # fmt: skip


def saved() -> bytes:
    return safetensors.numpy.save(ARRAYS, {"dataset": "é"})


def file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read(folder: Path, content: bytes) -> tensors.Content:
    path = folder / "x.safetensors"
    path.write_bytes(content)
    return tensors.read(path)


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return {n: (a.dtype, a.shape, a.tobytes()) for n, a in ours.items()} == {n: (a.dtype, a.shape, a.tobytes()) for n, a in theirs.items()}


def test_what_the_library_writes_is_read_with_its_metadata(tmp_path):
    content = read(tmp_path, saved())
    assert same(content.tensors, ARRAYS)
    assert content.metadata == {"dataset": "é"}
    assert all(array.flags.aligned and array.flags.writeable for array in content.tensors.values())


@pytest.mark.parametrize("dtype", tensors.DTYPES.values(), ids=str)
def test_every_type_of_numpys_is_read(tmp_path, dtype):
    assert same(read(tmp_path, safetensors.numpy.save({"a": np.ones(3, dtype)})).tensors, {"a": np.ones(3, dtype)})


def test_no_tensor_is_copied_out_of_the_buffer(tmp_path):
    weights = read(tmp_path, safetensors.numpy.save({"a": np.ones(2**20), "b": np.ones(2**20)})).tensors
    a, b = (array.__array_interface__["data"][0] for array in weights.values())
    assert abs(a - b) == 8 * 2**20, "one after the other, as in the file"


@given(st.data())
def test_a_spoilt_file_is_refused_or_read_as_the_library_reads_it(tmp_path_factory, data):
    content = bytearray(saved())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        ours = read(tmp_path_factory.getbasetemp(), bytes(content)).tensors
    except tensors.Damaged:
        return
    assert same(ours, dict(safetensors.numpy.load(bytes(content))))


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_a_file_that_is_larger_than_memory_is_mapped_and_one_that_cannot_be_is_not_called_damaged(tmp_path, monkeypatch):
    size = 2**42  # in a file without blocks
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(tmp_path / "large", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(8 + len(header) + size - 1)
        file.write(b"\7")
    x = tensors.read(tmp_path / "large", mapped=True).tensors["x"]
    assert (x.shape, x[0], x[-1], x.flags.writeable) == ((size,), 0, 7, True)

    def full(*_):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(tensors.mmap, "mmap", full)
    with pytest.raises(UserError, match=r"large: cannot be read: Cannot allocate memory$"):
        dataset.load(tmp_path / "large")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a header of 0 bytes in a file of 0"),
        (struct.pack("<Q", 2**63) + b"{}", f"a header of {2**63} bytes in a file of 10"),
        (file(b"{"), "truncated"),
        (file(b"\xff{}"), ""),
        (file([]), "Expected `object`"),
        (file(b"[" * 100_000), ""),
        (file(b'{"a":' + b"[" * 100_000), ""),
        (file({"a": 1}), "Expected `object`"),
        (file({"__metadata__": {"a": 1}}), "Expected `str`"),
        (file({"a": ENTRY}, bytes(7)), "tensor 'a' of F32 [2] is said to be at bytes 0 to 8 of 7"),
        (file({"a": ENTRY}, bytes(9)), "1 bytes after the last tensor"),
        (file({"a": ENTRY | {"shape": [3]}}, bytes(8)), "tensor 'a' of F32 [3] is said to be at bytes 0 to 8 of 8"),
        (file({"a": ENTRY | {"shape": [-2]}}, bytes(8)), ">= 0"),
        (file({"a": ENTRY | {"shape": [0, 2**70], "data_offsets": [0, 0]}}), ""),
        (file({"a": ENTRY | {"shape": [2**62, 4]}}, bytes(8)), f"tensor 'a' of F32 [{2**62}, 4]"),
        (file({"a": ENTRY | {"data_offsets": [-8, 0]}}, bytes(8)), "is said to be at bytes -8 to 0"),
        (file({"a": ENTRY, "b": ENTRY}, bytes(8)), "is said to be at bytes 0 to 8 of 8"),
        (file({"a": ENTRY, "b": ENTRY | {"data_offsets": [9, 17]}}, bytes(17)), "is said to be at bytes 9 to 17 of 17"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole_is_refused_with_what_is_wrong(tmp_path, content, said):
    with pytest.raises(tensors.Damaged) as refused:
        read(tmp_path, content)
    assert said in str(refused.value)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.numpy.load(content)


@pytest.mark.parametrize("name", ["a b", "a\nb", "a float32 0\nb", "a\x1b", "a\u00a0b", "a\u2028", "\ud800"])
def test_a_name_that_could_be_taken_for_another_has_no_fingerprint(name):
    with pytest.raises(
        UserError, match=r"^a tensor is called .*; a fingerprint is of names that can be shown and hold no space$"
    ) as refusal:
        tensors.fingerprint({"a": np.zeros(0, np.float32), name: np.zeros(0, np.float32)})
    assert str(refusal.value).isprintable()
    with pytest.raises(UserError, match=r"^the network: .* is called so; allowed: a name that can be shown and holds no space$"):
        outputs.check_weights({name: np.zeros(0, np.float32)}, "the network")
    with pytest.raises(ValueError, match=r"^a tensor is called .*; a fingerprint is of names that can be shown and hold no space$"):
        arrays.fingerprint({name: np.zeros(0, np.float32)})


def test_a_type_that_numpy_lacks_is_refused(tmp_path):
    with pytest.raises(tensors.Damaged, match=r"^tensor 'a' is of type 'BF16'$"):
        read(tmp_path, file({"a": ENTRY | {"dtype": "BF16"}}, bytes(4)))
