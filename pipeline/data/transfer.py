"""One file over HTTP, checked by its digest before it has its name: bounded in time and size, from one mirror after the other.

It is not resumed where it broke off. Another thread does the transfer, for no time-out of a socket covers the lookup of a name, or
headers and a body that come byte by byte. What is said of an address is said without its secrets.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin

from pipeline.system import files
from pipeline.system.errors import UserError, printable, shown, without_secrets
from pipeline.system.progress import progress

MIRROR = "PIPELINE_MIRROR"
"""The environment variable that names a folder of the user's own on a server, which holds the files by their names; tried first."""
URL = r"(?i:https?)://[^\s/\x00-\x1f\x7f-\x9f\ud800-\udfff][^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]*"
LARGEST_BYTES = 2**36
MOST_REDIRECTS = 5
_SHOWN_SECONDS = 0.2
_BUSY = (429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Policy:
    """How long a mirror is waited for."""

    window_seconds: float = 30.0
    window_bytes: int = 2**16
    """A transfer that brings less in a window, from looking up the name to the last byte, has stalled."""
    retries: int = 2
    """Of a request that finds no server, or one that is busy."""
    longest_seconds: float = 6 * 3600.0
    """A transfer that lasts longer is given up, however it goes on."""


POLICY = Policy()


@dataclass(frozen=True)
class Digest:
    """What a file must be."""

    kind: str
    """sha256 or md5."""
    value: str

    def wrong(self, path: Path) -> str | None:
        """How the file at `path` differs, or None. Raises UserError when it cannot be read."""
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for its other end
            raise UserError(f"{path}: cannot be read: not a plain file")
        try:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.new(self.kind, usedforsecurity=False)).hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        return None if found == self.value else f"checksum mismatch: expected {self.kind} {self.value}; got {found}"


class Failed(Exception):
    """Why a mirror is given up."""


def fetch(urls: Sequence[str], path: Path, digest: Digest, policy: Policy = POLICY) -> None:
    """Put the file that is at each of `urls`, and in the user's own mirror, at `path`, unless it is there.

    Raises:
        UserError: no mirror gave it; names each and why, the digest, and what can be done.
    """
    import requests  # noqa: F401 - here, so that the time it takes is not taken for the server's

    failures = []
    if os.path.exists(path):
        wrong = digest.wrong(path)
        if wrong is None:
            print(f"{path}: as its {digest.kind} says")
            return
        failures.append(f"{path}: {wrong}")
        print(f"{failures[0]}; downloading it again", file=sys.stderr)
    own = os.environ.get(MIRROR)
    if own and not re.fullmatch(URL, own):
        raise UserError(f"{MIRROR} is {shown(own)}; allowed: an http(s) URL of a folder")
    for url in (*([f"{own.rstrip('/')}/{path.name}"] if own else []), *urls):
        try:
            with files.replacing(path) as file:
                _Transfer(url, file, policy).complete(path.name)
                file.flush()
                if wrong := digest.wrong(Path(file.name)):
                    raise Failed(wrong)
        except Failed as reason:
            failures.append(f"{without_secrets(url)}: {reason}")
            print(printable(failures[-1]), file=sys.stderr)
        else:
            print(f"{path}: downloaded, as its {digest.kind} says")
            return
    raise UserError(
        f"cannot get {path.name}: {'; '.join(failures)}",
        f"put the file with the {digest.kind} {digest.value} at {path} by hand",
        f"name a folder of your own on a server that has it in {MIRROR}",
        "work offline with `source: synthetic` or `source: folder` in params.yaml",
    )


class _Transfer:
    """The body at an address on its way into a file."""

    def __init__(self, url: str, file: IO[bytes], policy: Policy) -> None:
        self.url, self.file, self.policy = url, file, policy
        self.received, self.total = 0, 0
        """Bytes; the total is 0 while it is not known."""
        self.error: BaseException | None = None
        self.given_up = threading.Event()

    def complete(self, name: str) -> None:
        """Wait until it is there. Raises Failed, or OSError where the file cannot be written."""
        worker = threading.Thread(target=self._work, daemon=True)
        worker.start()
        try:
            waited, before = 0.0, 0
            while worker.is_alive() and not self.total:
                worker.join(_SHOWN_SECONDS)
                waited += _SHOWN_SECONDS
                if waited >= self.policy.window_seconds:
                    raise Failed(f"no answer in {self.policy.window_seconds:g} s")
            waited, lasted = 0.0, 0.0
            with progress(f"downloading {name}", -(-self.total // 10**6), "MB") as show:
                while worker.is_alive():
                    worker.join(_SHOWN_SECONDS)
                    show(self.received // 10**6, "")
                    waited += _SHOWN_SECONDS
                    lasted += _SHOWN_SECONDS
                    if lasted >= self.policy.longest_seconds:
                        raise Failed(f"too slow: {self.received} bytes in {lasted:.0f} s")
                    if waited >= self.policy.window_seconds:
                        if self.received - before < self.policy.window_bytes:
                            raise Failed(f"stalled: {self.received - before} bytes in {waited:.0f} s, after {before} bytes")
                        waited, before = 0.0, self.received
        finally:
            self.given_up.set()
        if isinstance(self.error, Failed | OSError) and not _of_network(self.error):
            raise self.error
        if self.error:
            raise Failed(_reason(self.error)) from None

    def _work(self) -> None:
        try:
            self._receive()
        except BaseException as error:  # told in the thread that waits
            self.error = error

    def _receive(self) -> None:
        """Ask, follow redirects, and write what comes."""
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        class Session(requests.Session):
            def get_redirect_target(self, resp: object) -> None:
                """Nowhere: else requests reads and unpacks what comes with a redirect, whatever its size, though it is not to follow it."""

        retry = Retry(self.policy.retries, backoff_factor=0.5, respect_retry_after_header=False)
        with Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=retry))
            url = self.url
            for _ in range(MOST_REDIRECTS + 1):
                with self._asked(session, url) as response:
                    if not response.is_redirect:
                        return self._write(response)
                    onward = urljoin(url, response.headers["location"])  # its body is not read
                if url.lower().startswith("https:") and not onward.lower().startswith("https:"):
                    raise Failed(f"redirected from https to {without_secrets(onward)}")
                url = onward
            raise Failed(f"more than {MOST_REDIRECTS} redirects")

    def _asked(self, session: Any, url: str) -> Any:
        """The response of a server that is not busy, or of the last attempt; no body is read, and that of the others never is."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "pipeline"}
        for attempt in range(self.policy.retries + 1):
            response = session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=2 * self.policy.window_seconds)
            if response.status_code not in _BUSY or attempt == self.policy.retries or self.given_up.wait(0.5 * 2**attempt):
                return response
            response.close()

    def _write(self, response: object) -> None:
        from urllib3.exceptions import ProtocolError

        status, reason = response.status_code, response.reason  # type: ignore[attr-defined]
        if status != 200:
            raise Failed(f"HTTP {status} {reason or '':.80}".rstrip())
        length = response.headers.get("Content-Length", "")  # type: ignore[attr-defined]
        expected = int(length) if re.fullmatch(r"\d{1,15}", length) else None
        self.total = expected or LARGEST_BYTES
        with contextlib.suppress(ProtocolError):  # it ended early, as is told below
            while chunk := response.raw.read1(2**16, decode_content=False):  # type: ignore[attr-defined]
                if self.given_up.is_set():
                    return
                self.file.write(chunk)
                self.received += len(chunk)
                if self.received > self.total:
                    raise Failed(f"more than {self.total} bytes")
        if expected is not None and self.received != expected:
            raise Failed(f"the connection ended after {self.received} of {expected} bytes")


def _of_network(error: BaseException) -> bool:
    import requests

    return isinstance(error, requests.RequestException | ConnectionError | TimeoutError)


def _reason(error: BaseException) -> str:
    """One line of what an error of requests or urllib3 says, its last cause only."""
    text = " ".join(str(error).split())
    if "resolve" in text.lower() or "Name or service not known" in text:
        return "no network: its name does not resolve"
    cause: object = error.args[0] if error.args else error
    cause = getattr(cause, "reason", cause)
    return without_secrets(" ".join(str(cause).split()))[-200:] or type(error).__name__
