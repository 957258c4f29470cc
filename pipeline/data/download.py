"""The `download` stage: the data set that params.yaml names, from wherever it is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from pipeline import files
from pipeline.data import archive, dataset, synthetic
from pipeline.data.dataset import Dataset
from pipeline.data.exchange import RetryPolicy
from pipeline.data.fetch import Expected, digest, fetch
from pipeline.errors import UserError, shown, without_secrets
from pipeline.inputs import CACHE, LOCK, Inputs
from pipeline.params import URL, Archive, Cifar10, Data

DOWNLOADS = CACHE / "downloads"
MIRROR = "PIPELINE_CIFAR10_MIRROR"
"""The environment variable that names a mirror of the user's own."""
OFFLINE = "work offline with `source: synthetic` in params.yaml"


def stage(inputs: Inputs) -> None:
    """Put the data set of params.yaml into data/. Raises UserError as `download` does, or when params.yaml changed meanwhile."""
    with files.only_one(LOCK, "a stage"):
        data = download(inputs.params.data)
        inputs.check_unchanged()
        data.save()
    print(
        f"{dataset.DATASET}: {data.name}, {len(data.train_images)} training and {len(data.test_images)} test images, digest {data.digest}"
    )


def download(data: Data, cache: Path = DOWNLOADS, policy: RetryPolicy = RetryPolicy()) -> Dataset:  # noqa: B008 - frozen
    """The data set that `data` describes; what is downloaded is kept in `cache`, where a user may also put it by hand.

    Raises:
        UserError: it cannot be had, or is not what its checksum says, or not in CIFAR-10's layout.
    """
    if data.source == "synthetic":
        return synthetic.make()
    if data.source == "cifar10":
        return archive.read(_official(data.cifar10, cache, policy), "cifar10")
    return archive.read(_own(data.archive, cache, policy), data.archive.name)


def _official(cifar10: Cifar10, cache: Path, policy: RetryPolicy) -> Path:
    own = os.environ.get(MIRROR)
    if own and not re.fullmatch(URL, own):
        raise UserError(f"{MIRROR} is {shown(own)}; allowed: an http(s) URL")
    path = cache / "cifar-10-python.tar.gz"
    expected = Expected(cifar10.sha256, cifar10.md5, cifar10.bytes)
    fetch([*filter(None, [own]), *cifar10.mirrors], path, expected, policy, f"name a mirror of your own in {MIRROR}", OFFLINE)
    return path


def _own(own: Archive, cache: Path, policy: RetryPolicy) -> Path:
    if not re.match(r"(?i)https?://", own.url):
        return _local(own)
    if not own.sha256:
        raise UserError(f"data.archive.sha256 is empty; put the SHA-256 of {without_secrets(own.url)} there (sha256sum prints it)")
    name = re.sub(r"[^A-Za-z0-9._-]", "_", _path_of(own.url).rpartition("/")[2])[-80:] or "archive"
    path = cache / f"{own.sha256[:16]}-{name}"
    fetch([own.url], path, Expected(own.sha256), policy, OFFLINE)
    return path


def _path_of(url: str) -> str:
    """The path in a URL: what comes before it may hold a password."""
    try:
        return urlsplit(url).path
    except ValueError:  # it is no URL, as `fetch` will say
        return ""


def _local(own: Archive) -> Path:
    path, named = Path(own.url), f"data.archive.url is {shown(own.url)}"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", own.url):
        raise UserError(f"{named}; allowed: an http(s) URL or a path")
    if os.path.isdir(path):
        raise UserError(f"{named}, a folder; name a tar archive of it: tar czf images.tar.gz {archive.FOLDER}")
    if not os.path.exists(path):
        raise UserError(f"{named}; there is no such file (paths start at {Path.cwd()})")
    checksum = digest(path, "sha256")
    archive.check_kind(path)  # before any advice to name its checksum
    if not own.sha256:
        raise UserError(f"data.archive.sha256 is empty; if {own.url} is the file that you mean, set it to {checksum}")
    if checksum != own.sha256:
        raise UserError(f"{own.url}: checksum mismatch: expected sha256 {own.sha256}; got sha256 {checksum}")
    return path
