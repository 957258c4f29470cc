"""Downloads of one small file, for the tests of `fetch`."""

import hashlib
from dataclasses import replace

import pytest

from pipeline.data import fetch as fetching
from pipeline.data.exchange import RetryPolicy
from pipeline.data.fetch import Expected
from pipeline.errors import UserError

CONTENT = hashlib.shake_256(b"a file").digest(300_000)
POLICY = RetryPolicy(attempts=3, worthwhile_bytes=50_000, first_wait_seconds=0.001, longest_wait_seconds=0.002)
HURRY = replace(POLICY, window_seconds=0.5, window_bytes=1000)
"""For servers that stall; a busy machine may then take a good one for stalled, so these tests count no requests after that."""
OFFLINE = "do without"


def of(content, size=True):
    """What a file with this content must be."""
    return Expected(hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest(), len(content) if size else None)


def part_of(path, content=None):
    """The name of the unfinished file; with `content`, that file."""
    part = path.with_name(f"{path.name}.part")
    if content is not None:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
    return part


def fetch(path, *urls, expected=None, policy=POLICY):
    fetching.fetch(urls, path, expected or of(CONTENT), policy, OFFLINE)


def fetched(path, *urls, **settings):
    """Whether the file is there after a download, whole and without rest."""
    fetch(path, *urls, **settings)
    return path.read_bytes() == CONTENT and sorted(file.name for file in path.parent.iterdir()) == [".lock", path.name]


def refused(path, *urls, **settings):
    """The message with which a download is refused; there is no file then."""
    with pytest.raises(UserError) as error:
        fetch(path, *urls, **settings)
    assert not path.exists()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)
