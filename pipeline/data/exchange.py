"""One GET over HTTP that always ends: a server that stalls, in headers or body, is given up in time; https never becomes http."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import requests

from pipeline.errors import without_secrets

CHUNK_BYTES = 2**16


@dataclass(frozen=True)
class RetryPolicy:
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


class Failed(Exception):
    """Why a mirror is given up."""


class TryAgain(Exception):
    """Why an attempt failed that may succeed next time; with the seconds that the server asks us to wait."""

    def __init__(self, reason: str, wait_seconds: float = 0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class Unresolved(TryAgain):
    """A name did not resolve: usually there is no network."""


def exchange(url: str, headers: dict[str, str], policy: RetryPolicy) -> Generator[Any, None, None]:
    """The response to a GET, then its body in chunks of bytes, unless it stalls.

    Another thread does the waiting: no time-out of a socket covers the lookup of a name, or headers and bodies that come byte
    by byte.

    Raises:
        Failed: asking again is of no use.
        TryAgain: it may be of use.
    """
    items: queue.Queue[Any] = queue.Queue(maxsize=16)
    over = threading.Event()

    def work() -> None:
        try:
            # _in_time decides first; this time-out only ends the thread
            with Session() as session, session.get(url, headers=headers, stream=True, timeout=2 * policy.window_seconds) as response:
                items.put(response)
                while not over.is_set() and (chunk := response.raw.read1(CHUNK_BYTES)):
                    items.put(chunk)
            items.put(None)
        except Exception as error:
            items.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        yield from _in_time(items, policy)
    finally:
        over.set()
        with contextlib.suppress(queue.Empty):  # where the thread waits for room
            while True:
                items.get_nowait()


def _in_time(items: queue.Queue[Any], policy: RetryPolicy) -> Iterator[Any]:
    """What comes out of `items` up to None. Raises Failed or TryAgain for an exception, and TryAgain when too little comes."""
    end, received = time.monotonic() + policy.window_seconds, 0
    while True:
        try:
            item = items.get(timeout=max(0, end - time.monotonic()))
        except queue.Empty:
            item = b""
        match item:
            case None:
                return
            case Exception():
                raise _judged(item)
            case bytes():
                received += len(item)
        if item != b"":
            yield item
        if time.monotonic() >= end:
            if received < policy.window_bytes:
                raise TryAgain(f"stalled: {received} bytes in {policy.window_seconds:g} s")
            end, received = time.monotonic() + policy.window_seconds, 0


def _judged(error: Exception) -> Failed | TryAgain:
    """What an exception of requests means, in the words of its innermost cause, without the libraries' wrapping around it."""
    if isinstance(error, ValueError):  # its text may quote the URL, secrets included
        return Failed(f"not an address that can be asked ({type(error).__name__})")
    cause: BaseException = error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
    reason = without_secrets(" ".join(str(cause).split()))[:200] or type(cause).__name__
    if isinstance(error, requests.exceptions.SSLError | requests.TooManyRedirects):
        return Failed(reason)
    return Unresolved(reason) if isinstance(cause, socket.gaierror) else TryAgain(reason)


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
