"""Small archives in the layout of CIFAR-10's official one, as Python 2 wrote it or as Python 3 writes it, whole or spoiled."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from msgspec import to_builtins

from pipeline import params
from pipeline.data import archive
from pipeline.errors import UserError
from tests.settings import set_params

FOLDER = "cifar-10-batches-py"
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def python2(value):
    """Pickle `value` as cPickle of Python 2 did with protocol 2: `str` is a byte string, and what may recur is noted."""
    notes = 0

    def noted(code):
        nonlocal notes
        notes += 1
        return code + (b"q" + bytes([notes]) if notes < 256 else b"r" + struct.pack("<I", notes))

    def dump(value):
        match value:
            case bool():
                return b"\x88" if value else b"\x89"
            case int():
                return b"K" + bytes([value]) if 0 <= value < 256 else b"M" + struct.pack("<H", value)
            case str() | bytes():
                text = value.encode() if isinstance(value, str) else value
                size = b"U" + bytes([len(text)]) if len(text) < 256 else b"T" + struct.pack("<i", len(text))
                return noted(size + text)
            case list():
                return noted(b"]") + b"(" + b"".join(map(dump, value)) + b"e"
            case dict():
                return noted(b"}") + b"(" + b"".join(dump(k) + dump(v) for k, v in value.items()) + b"u"
            case np.ndarray():
                reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
                shape = b"(" + b"".join(map(dump, value.shape)) + b"t"
                kind = value.dtype.str.lstrip("|<").encode()
                dtype = b"cnumpy\ndtype\n" + dump(kind) + b"K\x00K\x01\x87R(K\x03U\x01|NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
                return noted(reconstruct) + b"(K\x01" + shape + dtype + b"\x89" + dump(value.tobytes()) + b"tb"
        raise TypeError(type(value))

    return b"\x80\x02" + dump(value) + b"."


def python3(value):
    """Pickle `value` as Python 3 does with protocol 2."""
    return pickle.dumps(value, protocol=2)


def pixels(count, seed=0):
    """uint8 [count, 3072], the same for the same seed."""
    return np.random.RandomState(seed).randint(0, 256, (count, 3072)).astype(np.uint8)


def contents(per_batch=10):
    """What the official archive's members hold, with few images: each batch has each class as often as it can."""
    by_member = {"batches.meta": {"num_cases_per_batch": per_batch, "label_names": list(CLASSES), "num_vis": 3072}}
    for n, name in enumerate(BATCHES):
        labels = [(i + n) % 10 for i in range(per_batch)]
        filenames = [f"{CLASSES[label]}_{i:06d}.png" for i, label in enumerate(labels)]
        by_member[name] = {"batch_label": name, "labels": labels, "data": pixels(per_batch, n), "filenames": filenames}
    return by_member


def members(per_batch=10, pickled=python2):
    """The same, pickled."""
    return {name: pickled(content) for name, content in contents(per_batch).items()}


def header(name, size=0, kind=tarfile.REGTYPE):
    """A tar header."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode = size, kind, 0o644
    return info


def pack(path, files, extra=(), form=tarfile.USTAR_FORMAT):
    """Write a gzipped tar archive: the folder, `files` (name in it -> bytes), then `extra` (pairs of header and bytes)."""
    tar_file = io.BytesIO()
    with tarfile.open(fileobj=tar_file, mode="w", format=form) as tar:
        tar.addfile(header(FOLDER, kind=tarfile.DIRTYPE))
        for name, content in files.items():
            tar.addfile(header(f"{FOLDER}/{name}", len(content)), io.BytesIO(content))
        for info, content in extra:
            tar.addfile(info, io.BytesIO(content))
    Path(path).write_bytes(gzip.compress(tar_file.getvalue(), 1, mtime=0))
    return Path(path)


def of(path, dataset):
    """Write an archive of a data set, whose training images are a multiple of five."""
    images = [*np.split(dataset.train_images.reshape(-1, 3072), 5), dataset.test_images.reshape(-1, 3072)]
    labels = [*np.split(dataset.train_labels, 5), dataset.test_labels]
    batches = {name: python2({"data": i, "labels": k.tolist()}) for name, i, k in zip(BATCHES, images, labels, strict=True)}
    return pack(path, batches | {"batches.meta": python2({"label_names": list(dataset.classes)})})


def use(folder, name, dataset):
    """Have the params.yaml in `folder` name an archive of this data set, which is put there."""
    path = of(folder / f"{name}.tar.gz", dataset)
    data = to_builtins(params.load(folder / params.PARAMS).data)
    named = {"name": name, "url": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    set_params(folder, data={**data, "source": "archive", "archive": named})


def small(path, per_batch=10, pickled=python2):
    """Write a good archive."""
    return pack(path, members(per_batch, pickled))


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
    by_member = contents()
    batch = by_member["data_batch_2"] | changes
    by_member["data_batch_2"] = {key: value for key, value in batch.items() if value is not None}
    return pack(path, {name: python3(content) for name, content in by_member.items()})


def with_pickle(path, pickled):
    """An archive whose second batch is `pickled`."""
    return pack(path, members() | {"data_batch_2": pickled})


def damaged(content, cuts):
    """`content` with some bytes taken out and others put in their place."""
    for start, removed, inserted in cuts:
        start %= len(content) + 1
        content = content[:start] + inserted + content[start + removed :]
    return content
