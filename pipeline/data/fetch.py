"""One file over HTTP, verified: resumed where it stopped, tried again, taken from the next mirror.

The checksum says what the file is, so what one mirror began another may finish, and a wrong or vanished mirror harms
nothing. An unfinished file is called `NAME.part`.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urljoin

import requests

from pipeline import files
from pipeline.errors import UserError, printable, shown
from pipeline.progress import progress

CHUNK_BYTES = 2**16
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
        """How the file at `path` differs, or None."""
        wanted = {name: value for name in ("bytes", "md5", "sha256") if (value := getattr(self, name)) is not None}
        found = {name: path.stat().st_size if name == "bytes" else digest(path, name) for name in wanted}
        if found == wanted:
            return None
        return "checksum mismatch: expected {}; got {}".format(*(", ".join(f"{k} {v}" for k, v in of.items()) for of in (wanted, found)))


def digest(path: Path, name: str) -> str:
    """A file's hash called `name`, in hex. Raises UserError when it cannot be read."""
    made = hashlib.new(name, usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: made).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Patience:
    """How long to go on with one mirror."""

    attempts: int = 4
    """In a row that bring less than `worthwhile_bytes`."""
    worthwhile_bytes: int = 2**20
    first_wait_seconds: float = 1.0
    """Before the second attempt; then twice as long each time."""
    longest_wait_seconds: float = 30.0
    """Whatever a server asks for with Retry-After."""
    window_seconds: float = 30.0
    window_bytes: int = 2**16
    """An attempt that brings less in a window, from looking up the name to the last byte, has stalled."""


class _Failed(Exception):
    """Why this mirror is given up."""


class _Again(Exception):
    """Why an attempt failed that may succeed next time; with the seconds that the server asks us to wait."""

    def __init__(self, reason: str, wait_seconds: float = 0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class _Mismatch(Exception):
    """What came is not the file."""


def fetch(urls: Sequence[str], path: Path, expected: Expected, patience: Patience, offline: str) -> None:
    """Put the file that is at each of `urls` at `path`, unless it is there.

    Raises:
        UserError: no mirror gave it; names each and why, where to put the file by hand, and `offline`: how to do without it.
    """
    failures = []
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
            try:
                _Mirror(url, part, expected, patience).complete()
            except _Failed as reason:
                failures.append(f"{url}: {reason}")
                print(failures[-1], file=sys.stderr)
            else:
                files.finish(part, path)
                return
    raise UserError(f"cannot get {path.name}: {'; '.join(failures)}; put the file at {path} by hand, or {offline}")


class _Mirror:
    """One place to get the file from."""

    def __init__(self, url: str, part: Path, expected: Expected, patience: Patience) -> None:
        self.url, self.part, self.expected, self.patience = url, part, expected, patience
        self.version: str | None = None
        """What the server calls this version of the file."""

    def complete(self) -> None:
        """Complete and verify the part, in several attempts. Raises _Failed."""
        left, wait, mismatches = self.patience.attempts, self.patience.first_wait_seconds, 0
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
                    raise _Failed(mismatch) from None
                again = _Again("what was there before was of another file")
            except _Again as failure:
                again = failure
            left -= 1
            size = _size(self.part)
            if size - max(had, most) >= self.patience.worthwhile_bytes:
                left, wait = self.patience.attempts, self.patience.first_wait_seconds
            most = max(most, size)
            if left == 0:
                raise _Failed(f"{again} ({self.patience.attempts} attempts)")
            pause = min(max(wait, again.wait_seconds), self.patience.longest_wait_seconds)
            print(f"{self.url}: {again}; trying again in {pause:g} s", file=sys.stderr)
            time.sleep(pause)
            wait *= 2

    def _discard(self) -> None:
        with files.explained(self.part):
            self.part.unlink(missing_ok=True)

    def _attempt(self) -> None:
        """Bring the part to its full size with one request. Raises _Failed, _Again or _Mismatch."""
        start = _size(self.part)
        if self.expected.bytes is not None and start >= self.expected.bytes:
            start = 0
        headers = dict(HEADERS)
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.version:
                headers["If-Range"] = self.version
        with contextlib.closing(_exchange(self.url, headers, self.patience)) as exchange:
            response: requests.Response = next(exchange)
            if response.status_code == HTTPStatus.PARTIAL_CONTENT and start:
                if not re.match(rf"bytes {start}-", found := response.headers.get("Content-Range", "")):
                    self._discard()
                    raise _Again(f"asked for the bytes from {start} on, got {shown(found)}")
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
                found = f"bytes {total}, type {shown(response.headers.get('Content-Type'))}"
                raise _Failed(f"checksum mismatch: expected bytes {wanted}, sha256 {self.expected.sha256}; got {found}")
            self._receive(exchange, start, total or wanted)

    def _refuse(self, response: requests.Response) -> NoReturn:
        """Raise what an answer other than the file means."""
        status = response.status_code
        reason = printable(f"HTTP {status} {response.reason or '':.80}".rstrip())
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            self._discard()
            raise _Again(reason)
        if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Again(reason, _seconds(response.headers.get("Retry-After", "")))
        raise _Failed(reason)

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
            raise _Again(f"the connection ended after {size} of {total} bytes")


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


def _exchange(url: str, headers: dict[str, str], patience: Patience) -> Generator[Any, None, None]:
    """The response to a GET, then its body in chunks, unless it stalls.

    Another thread does the waiting: no time-out of a socket covers the lookup of a name, or headers and bodies that come byte
    by byte.
    """
    items: queue.Queue[Any] = queue.Queue(maxsize=16)
    over = threading.Event()

    def work() -> None:
        try:
            with Session() as session, session.get(url, headers=headers, stream=True, timeout=patience.window_seconds) as response:
                items.put(response)
                while not over.is_set() and (chunk := response.raw.read1(CHUNK_BYTES)):
                    items.put(chunk)
            items.put(None)
        except Exception as error:
            items.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        yield from _in_time(items, patience)
    finally:
        over.set()
        with contextlib.suppress(queue.Empty):  # where the thread waits for room
            while True:
                items.get_nowait()


def _in_time(items: queue.Queue[Any], patience: Patience) -> Iterator[Any]:
    """What comes out of `items` up to None. Raises _Failed or _Again for an exception, and _Again when too little comes."""
    end, got = time.monotonic() + patience.window_seconds, 0
    while True:
        try:
            item = items.get(timeout=max(0, end - time.monotonic()))
        except queue.Empty:
            item = b""
        match item:
            case None:
                return
            case requests.exceptions.SSLError() | requests.TooManyRedirects() | ValueError():  # ValueError: not a URL
                raise _Failed(_reason(item))
            case Exception():
                raise _Again(_reason(item))
            case bytes():
                got += len(item)
        if item != b"":
            yield item
        if time.monotonic() >= end:
            if got < patience.window_bytes:
                raise _Again(f"stalled: {got} bytes in {patience.window_seconds:g} s")
            end, got = time.monotonic() + patience.window_seconds, 0


def _reason(error: BaseException) -> str:
    """The innermost cause, without the libraries' wrapping around it."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return " ".join(str(error).split())[:200] or type(error).__name__


class InsecureRedirect(requests.TooManyRedirects):
    """From https to http."""


class Session(requests.Session):
    """requests' session (which honours the proxy variables), where https never becomes http."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Where a response redirects to, or None. Raises InsecureRedirect."""
        target = super().get_redirect_target(resp)
        if target and resp.url.lower().startswith("https:") and not urljoin(resp.url, target).lower().startswith("https:"):
            raise InsecureRedirect(f"redirected from https to {urljoin(resp.url, target)}")
        return target
