"""One file over HTTP, verified: resumed where it stopped, tried again, taken from the next mirror.

The checksum says what the file is, so what one mirror began another may finish, and a wrong or vanished mirror harms
nothing. An unfinished file is called `NAME.part`. What is said of an address is said without its secrets.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import requests

from pipeline import files
from pipeline.data.exchange import Failed, RetryPolicy, TryAgain, Unresolved, exchange
from pipeline.errors import UserError, printable, shown, without_secrets
from pipeline.progress import progress

LARGEST_BYTES = 2 * 2**30
"""What is read of a file whose size is not known beforehand."""
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "pipeline"}


@dataclass(frozen=True)
class Expected:
    """What a file must be."""

    sha256: str
    md5: str | None = None
    bytes: int | None = None

    def mismatch(self, path: Path) -> str | None:
        """How the file at `path` differs, or None. Raises UserError when it cannot be read."""
        wanted = {name: value for name in ("bytes", "md5", "sha256") if (value := getattr(self, name)) is not None}
        actual = {name: path.stat().st_size if name == "bytes" else digest(path, name) for name in wanted}
        if actual == wanted:
            return None
        return "checksum mismatch: expected {}; got {}".format(*(", ".join(f"{k} {v}" for k, v in of.items()) for of in (wanted, actual)))


def digest(path: Path, name: str) -> str:
    """A file's hash called `name`, in hex. Raises UserError when it cannot be read."""
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for its other end
        raise UserError(f"{path}: cannot be read: not a plain file")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


class _Mismatch(Exception):
    """What came is not the file."""


def fetch(urls: Sequence[str], path: Path, expected: Expected, policy: RetryPolicy, *remedies: str) -> None:
    """Put the file that is at each of `urls` at `path`, unless it is there.

    Raises:
        UserError: no mirror gave it; names each and why. Its remedies are to put the file there by hand, and `remedies`.
    """
    failures, unresolved = [], []
    if os.path.exists(path):
        wrong = expected.mismatch(path)
        if wrong is None:
            return
        failures.append(f"{path}: {wrong}")
        print(f"{failures[0]}; downloading it again", file=sys.stderr)
    part = path.with_name(f"{path.name}.part")
    with files.only_one(path.parent / ".lock", "a download"):
        if os.path.exists(path) and expected.mismatch(path) is None:
            return  # another process has just put it there
        if os.path.exists(part) and expected.mismatch(part) is None:
            files.finish(part, path)
            return  # a process was killed before it could
        for url in urls:
            mirror = _Mirror(url, part, expected, policy)
            try:
                mirror.complete()
            except Failed as reason:
                failures.append(f"{mirror.name}: {reason}")
                print(printable(failures[-1]), file=sys.stderr)
                if isinstance(reason.__cause__, Unresolved):
                    unresolved.append(urlsplit(url).hostname or mirror.name)
            else:
                files.finish(part, path)
                return
    if len(unresolved) == len(urls):
        failures[-len(urls) :] = [f"no network: no name resolves ({', '.join(dict.fromkeys(unresolved))})"]
    raise UserError(f"cannot get {path.name}: {'; '.join(failures)}", f"put the file at {path} by hand", *remedies)


class _Mirror:
    """One place to get the file from."""

    def __init__(self, url: str, part: Path, expected: Expected, policy: RetryPolicy) -> None:
        self.url, self.name = url, without_secrets(url)
        self.part, self.expected, self.policy = part, expected, policy
        self.version: str | None = None
        """What the server calls this version of the file."""

    def complete(self) -> None:
        """Complete and verify the part, in several attempts. Raises Failed."""
        left, wait, mismatches = self.policy.attempts, self.policy.first_wait_seconds, 0
        most = 0  # that an attempt reached here: what is brought once more after a part was discarded is no progress
        while True:
            had = _size(self.part)
            try:
                self._attempt()
                if (wrong := self.expected.mismatch(self.part)) is None:
                    return
                raise _Mismatch(wrong)
            except _Mismatch as mismatch:
                self._discard()
                mismatches, most = mismatches + 1, 0
                if not had or mismatches > 1:
                    raise Failed(mismatch) from None
                failure = TryAgain("what was there before was of another file")
            except TryAgain as reason:
                failure = reason
                if isinstance(failure, Unresolved) and not most:  # the network did not break down, there is none
                    raise Failed(failure) from failure
            left -= 1
            size = _size(self.part)
            if size - max(had, most) >= self.policy.worthwhile_bytes:
                left, wait = self.policy.attempts, self.policy.first_wait_seconds
            most = max(most, size)
            if left == 0:
                raise Failed(f"{failure} ({self.policy.attempts} attempts)")
            pause = min(max(wait, failure.wait_seconds), self.policy.longest_wait_seconds)
            print(printable(f"{self.name}: {failure}; trying again in {pause:g} s"), file=sys.stderr)
            time.sleep(pause)
            wait *= 2

    def _discard(self) -> None:
        with files.explained(self.part):
            self.part.unlink(missing_ok=True)

    def _attempt(self) -> None:
        """Bring the part to its full size with one request. Raises Failed, TryAgain or _Mismatch."""
        start = _size(self.part)
        if self.expected.bytes is not None and start >= self.expected.bytes:
            start = 0
        headers = dict(HEADERS)
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.version:
                headers["If-Range"] = self.version
        with contextlib.closing(exchange(self.url, headers, self.policy)) as items:
            response: requests.Response = next(items)
            if response.status_code == HTTPStatus.PARTIAL_CONTENT and start:
                if not re.match(rf"bytes {start}-", content_range := response.headers.get("Content-Range", "")):
                    self._discard()
                    raise TryAgain(f"asked for the bytes from {start} on, got {shown(content_range)}")
            elif response.status_code == HTTPStatus.OK:
                start = 0
            else:
                self._refuse(response)
            etag = response.headers.get("ETag", "W/")  # a weak one does not promise the same bytes
            self.version = response.headers.get("Last-Modified") if etag.startswith("W/") else etag
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if re.fullmatch(r"\d{1,15}", length) else None
            wanted = self.expected.bytes
            if total is not None and wanted is not None and total != wanted:
                received = f"bytes {total}, type {shown(response.headers.get('Content-Type'))}"
                raise Failed(f"checksum mismatch: expected bytes {wanted}, sha256 {self.expected.sha256}; got {received}")
            self._receive(items, start, total or wanted)

    def _refuse(self, response: requests.Response) -> NoReturn:
        """Raise what an answer other than the file means."""
        status = response.status_code
        reason = f"HTTP {status} {response.reason or '':.80}".rstrip()
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            self._discard()
            raise TryAgain(reason)
        if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise TryAgain(reason, _seconds(response.headers.get("Retry-After", "")))
        raise Failed(reason)

    def _receive(self, chunks: Iterator[bytes], start: int, total: int | None) -> None:
        """Append `chunks` to the first `start` bytes of the part, which should become `total` where that is known."""
        most = self.expected.bytes or LARGEST_BYTES
        size, full = start, total or most
        what = f"downloading {self.part.name.removesuffix('.part')}"
        with files.growing(self.part, start) as write, progress(what, _megabytes(full), "MB", start // 10**6) as show:
            for chunk in chunks:
                write(chunk)
                size += len(chunk)
                if size > most:
                    raise _Mismatch(f"checksum mismatch: expected sha256 {self.expected.sha256}; got more than {most} bytes")
                show(_megabytes(size) if size == full else size // 10**6, "")
        if total is not None and size < total:
            raise TryAgain(f"the connection ended after {size} of {total} bytes")


def _size(path: Path) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def _megabytes(count: int) -> int:
    return -(-count // 10**6)


def _seconds(text: str) -> float:
    """From now on, by a Retry-After header: a number, or a date."""
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
