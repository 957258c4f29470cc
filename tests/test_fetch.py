"""Downloads from a server that misbehaves. Rows 1 and 6 to 8 are in test_download.py."""

import hashlib
import re
import socket
import threading
import time
from dataclasses import replace
from email.utils import formatdate
from types import SimpleNamespace

import pytest
import requests

from pipeline.data import exchange
from pipeline.data import fetch as fetching
from pipeline.data.exchange import RetryPolicy
from pipeline.data.fetch import Expected
from pipeline.errors import UserError
from tests import misbehaving_server as server
from tests.misbehaving_server import Server

CONTENT = hashlib.shake_256(b"a file").digest(300_000)
POLICY = RetryPolicy(attempts=3, worthwhile_bytes=50_000, first_wait_seconds=0.001, longest_wait_seconds=0.002)
HURRY = replace(POLICY, window_seconds=0.5, window_bytes=1000)
"""For servers that stall; a busy machine may then take a good one for stalled, so these tests count no requests after that."""
OFFLINE = "do without"


def of(content, size=True):
    """What a file with this content must be."""
    return Expected(hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest(), len(content) if size else None)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Whatever proxy the machine has, the loopback is reached directly."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "downloads" / "file.tar.gz"


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


def test_a_good_server_is_asked_once(path):
    with Server(CONTENT) as good:
        assert fetched(path, good.url)
        assert good.ranges == [None]
        assert good.requests[0][1]["Accept-Encoding"] == "identity"


def test_a_file_that_is_there_is_not_downloaded(path):
    with Server(CONTENT) as good:
        fetch(path, good.url)
        fetch(path, good.url)
        assert len(good.requests) == 1


def test_a_finished_part_that_lacks_only_its_name_is_not_downloaded_again(path):
    part_of(path, CONTENT)
    with Server(CONTENT, server.status(500)) as bad:
        assert fetched(path, bad.url, expected=of(CONTENT, size=False))
        assert bad.requests == []


@pytest.mark.parametrize("known", [True, False])
def test_a_server_that_tells_no_length_is_read_to_its_end(path, known):
    with Server(CONTENT, server.no_length_after(len(CONTENT))) as old:
        assert fetched(path, old.url, expected=of(CONTENT, size=known))


def test_two_downloads_at_once_do_not_write_the_same_part(path):
    refused = threading.Event()
    with Server(CONTENT, server.stall_after(1000, until=refused)) as slow:
        first = threading.Thread(target=fetch, args=(path, slow.url))
        first.start()
        while not part_of(path).exists():
            time.sleep(0.005)
        with pytest.raises(UserError, match="a download is already running in this folder"):
            fetch(path, slow.url)
        refused.set()
        first.join()
        assert path.read_bytes() == CONTENT


# --- row 2: reset, stalled and trickling connections -------------------------------------------------------------


@pytest.mark.fault(2)
@pytest.mark.parametrize("cut", [server.reset_after, server.close_after, server.no_length_after, server.stall_after, server.trickle_after])
def test_a_connection_that_ends_or_stalls_is_resumed_from_where_it_was(path, cut, capsys):
    with Server(CONTENT, cut(100_000), server.whole) as bad:
        assert fetched(path, bad.url, policy=HURRY if cut in (server.stall_after, server.trickle_after) else POLICY)
        first, second = bad.ranges[:2]
    assert first is None
    assert 100_000 <= int(second.removeprefix("bytes=").removesuffix("-")) < 101_000
    assert f"{bad.url}: " in (printed := capsys.readouterr().err)
    assert "; trying again in 0.001 s" in printed


@pytest.mark.fault(2)
@pytest.mark.parametrize(
    ("cut", "reason", "policy"),
    [
        (server.reset_after(0), "[Errno 104] Connection reset by peer", POLICY),
        (server.no_length_after(0), f"the connection ended after 0 of {len(CONTENT)} bytes", POLICY),
        (server.stall_after(0), "stalled: 0 bytes in 0.5 s", HURRY),
        (server.trickle_headers, "stalled: 0 bytes in 0.5 s", HURRY),
    ],
    ids=["reset", "closed", "stalled", "trickling headers"],
)
def test_a_mirror_that_brings_nothing_is_given_up_for_the_next_one(path, cut, reason, policy, capsys):
    with Server(CONTENT, cut) as bad, Server(CONTENT) as good:
        assert fetched(path, bad.url, good.url, policy=policy)
        assert bad.ranges == [None] * 3
    assert f"{bad.url}: {reason} (3 attempts)" in capsys.readouterr().err


@pytest.mark.fault(2)
def test_a_mirror_that_brings_a_share_each_time_is_not_given_up(path):
    with Server(CONTENT, *[server.close_after(60_000)] * 4, server.whole) as bad:
        assert fetched(path, bad.url)
        assert bad.ranges == [None, *(f"bytes={60_000 * n}-" for n in range(1, 5))]


@pytest.mark.fault(3)
@pytest.mark.parametrize("refusal", [server.status(416), server.wrong_range], ids=["416", "a wrong range"])
def test_a_mirror_that_brings_the_same_bytes_over_and_over_is_given_up(path, refusal):
    with Server(CONTENT, server.in_turn(server.close_after(60_000), refusal)) as bad, Server(CONTENT) as good:
        assert fetched(path, bad.url, good.url)
        assert bad.ranges == [None, "bytes=60000-"] * 2


@pytest.mark.fault(2)
def test_what_one_mirror_began_the_next_one_finishes(path):
    with Server(CONTENT, server.close_after(40_000), server.status(404)) as bad, Server(CONTENT) as good:
        assert fetched(path, bad.url, good.url)
        assert good.ranges == ["bytes=40000-"]


@pytest.mark.fault(2)
@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        ({"ETag": '"1"', "Last_Modified": formatdate(0, usegmt=True)}, '"1"'),
        ({"ETag": 'W/"1"', "Last_Modified": formatdate(0, usegmt=True)}, formatdate(0, usegmt=True)),
        ({"ETag": 'W/"1"'}, None),
    ],
)
def test_a_range_is_asked_for_of_the_same_version_only(path, headers, asked):
    with Server(CONTENT, server.reset_after(100_000, **headers), server.whole) as bad:
        fetch(path, bad.url)
        assert bad.requests[1][1].get("If-Range") == asked
        assert path.read_bytes() == CONTENT


@pytest.mark.fault(2)
def test_waits_double_and_start_again_when_something_came(path, monkeypatch):
    waits = []
    monkeypatch.setattr(fetching, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic, time=time.time))
    failed = server.status(500)
    policy = RetryPolicy(attempts=4, worthwhile_bytes=50_000, first_wait_seconds=1, longest_wait_seconds=3)
    with Server(CONTENT, failed, failed, failed, server.close_after(60_000), failed, failed, server.whole) as bad:
        assert fetched(path, bad.url, policy=policy)
    assert waits == [1, 2, 3, 1, 2, 3]


# --- row 3: ranges -----------------------------------------------------------------------------------------------


@pytest.mark.fault(3)
def test_a_server_that_ignores_the_range_is_read_from_the_start(path):
    part_of(path, CONTENT[:100_000])
    with Server(CONTENT, server.ignore_range) as simple:
        assert fetched(path, simple.url)
        assert simple.ranges == ["bytes=100000-"]


@pytest.mark.fault(3)
@pytest.mark.parametrize("answer", [server.status(416), server.wrong_range])
def test_a_range_that_is_refused_or_wrong_is_forgotten(path, answer):
    part_of(path, CONTENT[:100_000])
    with Server(CONTENT, answer, server.whole) as simple:
        assert fetched(path, simple.url)
        assert simple.ranges == ["bytes=100000-", None]


@pytest.mark.fault(3)
def test_a_part_of_another_file_is_forgotten(path):
    part_of(path, bytes(100_000))
    with Server(CONTENT) as good:
        assert fetched(path, good.url)
        assert good.ranges == ["bytes=100000-", None]


@pytest.mark.fault(3)
@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 1, 2 * len(CONTENT)])
@pytest.mark.parametrize("known", [True, False])
def test_an_oversized_part_is_forgotten(path, size, known):
    part_of(path, bytes(size))
    with Server(CONTENT) as good:
        assert fetched(path, good.url, expected=of(CONTENT, size=known))
        assert good.ranges == [None] if known else [f"bytes={size}-", None]


# --- row 4: busy servers -----------------------------------------------------------------------------------------


@pytest.mark.fault(4)
@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(path, code):
    with Server(CONTENT, server.status(code), server.status(code), server.whole) as busy:
        assert fetched(path, busy.url)


@pytest.mark.fault(4)
@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_stays_busy_is_given_up_for_the_next_one(path, code, capsys):
    with Server(CONTENT, server.status(code)) as busy, Server(CONTENT) as good:
        assert fetched(path, busy.url, good.url)
        assert len(busy.requests) == 3
    assert f"{busy.url}: HTTP {code} " in capsys.readouterr().err


@pytest.mark.fault(4)
@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_server_that_does_not_have_it_is_asked_once(path, code):
    with Server(CONTENT, server.status(code)) as bad, Server(CONTENT) as good:
        assert fetched(path, bad.url, good.url)
        assert len(bad.requests) == 1


@pytest.mark.fault(4)
@pytest.mark.parametrize(
    ("asked", "waited"),
    [("7", 7), ("86400", 10), (formatdate(time.time() + 86400, usegmt=True), 10), ("soon", 1), ("-1", 1)],
    ids=["7", "86400", "tomorrow", "soon", "-1"],
)
def test_the_wait_that_a_server_asks_for_is_kept_within_bounds(path, asked, waited, monkeypatch):
    waits = []
    monkeypatch.setattr(fetching, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic, time=time.time))
    with Server(CONTENT, server.status(503, Retry_After=asked), server.whole) as busy:
        fetch(path, busy.url, policy=RetryPolicy(first_wait_seconds=1, longest_wait_seconds=10))
    assert waits == [waited]


# --- row 5: another file -----------------------------------------------------------------------------------------


@pytest.mark.fault(5)
def test_a_page_instead_of_the_file_is_a_checksum_mismatch_and_costs_no_part(path):
    part_of(path, CONTENT[:1000])
    wanted = of(CONTENT)
    with Server(CONTENT, server.page) as portal:
        assert f"{portal.url}: checksum mismatch: expected bytes 300000, sha256 {wanted.sha256}; got bytes 26, type 'text/html'" in refused(
            path, portal.url
        )
        assert part_of(path).read_bytes() == CONTENT[:1000]


@pytest.mark.fault(5)
@pytest.mark.parametrize("known", [True, False])
def test_a_wrong_file_is_a_checksum_mismatch_with_url_expected_and_got(path, known):
    wrong = bytes(len(CONTENT))
    wanted, served = of(CONTENT), of(wrong)
    size = f"bytes {len(CONTENT)}, " if known else ""
    with Server(wrong) as bad:
        assert (
            f"{bad.url}: checksum mismatch: expected {size}md5 {wanted.md5}, sha256 {wanted.sha256}; "
            f"got {size}md5 {served.md5}, sha256 {served.sha256}"
        ) in refused(path, bad.url, expected=of(CONTENT, size=known))
        assert len(bad.requests) == 1
        assert not part_of(path).exists()


@pytest.mark.fault(5)
def test_a_wrong_file_is_given_up_for_the_next_mirror(path):
    with Server(bytes(len(CONTENT))) as bad, Server(CONTENT) as good:
        assert fetched(path, bad.url, good.url)
        assert good.ranges == [None]


@pytest.mark.fault(5)
def test_a_file_without_end_is_cut_off(path, monkeypatch):
    with Server(CONTENT, server.endless) as bad:
        assert "got more than 300000 bytes" in refused(path, bad.url)
        monkeypatch.setattr(fetching, "LARGEST_BYTES", 400_000)
        assert "got more than 400000 bytes" in refused(path, bad.url, expected=of(CONTENT, size=False))
        assert not part_of(path).exists()


@pytest.mark.fault(5)
def test_a_part_that_stays_wrong_is_not_resumed_for_ever(path):
    wrong = bytes(len(CONTENT))
    with Server(wrong, *[server.close_after(60_000), server.whole] * 20) as bad:
        assert "checksum mismatch" in refused(path, bad.url)
        assert bad.ranges == [None, "bytes=60000-", None, "bytes=60000-"]


# --- row 6 and 8: no network; https stays https ------------------------------------------------------------------


@pytest.mark.fault(6)
def test_each_mirror_is_named_with_its_reason_when_none_helps(path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with Server(CONTENT, server.status(404)) as bad, pytest.raises(UserError) as error:
            fetch(path, dead, bad.url, "http://[bad/file", "http://nowhere.invalid/file")
    assert str(error.value).startswith(
        f"cannot get file.tar.gz: {dead}: [Errno 111] Connection refused (3 attempts); {bad.url}: HTTP 404 Not Found; "
        "http://[bad/file: not an address that can be asked (InvalidURL); http://nowhere.invalid/file: [Errno -"
    )
    assert error.value.remedies == (f"put the file at {path} by hand", "do without")


# --- offline -----------------------------------------------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch):
    """The seconds of the waits between attempts, which end at once."""
    waits = []
    monkeypatch.setattr(fetching, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic, time=time.time))
    return waits


@pytest.fixture
def resolve(monkeypatch):
    """Has the lookup of a name fail with each given error in turn, then answer with the loopback."""

    def failing(*errors):
        left, asked = list(errors), []

        def lookup(host, port, *arguments, **options):
            asked.append(host)
            if left:
                raise socket.gaierror(left.pop(0), "the name does not resolve")
            return real("127.0.0.1", port, *arguments, **options)

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        return asked

    real = socket.getaddrinfo
    monkeypatch.setenv("NO_PROXY", "*")
    return failing


@pytest.mark.fault(40)
@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_NODATA, socket.EAI_FAIL])
def test_without_a_network_that_is_told_at_once(path, code, waits, resolve):
    asked = resolve(*[code] * 9)
    with pytest.raises(UserError) as error:
        fetch(path, "http://one.example/f", "http://me:secret@two.example:8/f", "http://two.example/g")
    assert (asked, waits) == (["one.example", "two.example", "two.example"], [])
    assert str(error.value) == "cannot get file.tar.gz: no network: no name resolves (one.example, two.example)"
    assert error.value.remedies == (f"put the file at {path} by hand", "do without")


@pytest.mark.fault(40)
def test_a_name_that_does_not_resolve_is_passed_over_for_the_next_mirror(path, waits, resolve):
    asked = resolve(socket.EAI_NONAME)
    with Server(CONTENT) as good:
        assert fetched(path, "http://gone.example/f", f"http://good.example:{good.server_port}/f")
    assert (asked, waits) == (["gone.example", "good.example"], [])


@pytest.mark.fault(40)
def test_a_name_that_no_longer_resolves_in_the_middle_of_a_download_is_tried_again(path, waits, resolve):
    def break_down(handler, body):
        resolve(socket.EAI_AGAIN)
        handler.wfile.write(body[:60_000])

    resolve()
    with Server(CONTENT, server.sending(break_down), server.whole) as good:
        assert fetched(path, f"http://good.example:{good.server_port}/f")
        assert good.ranges == [None, "bytes=60000-"]
    assert len(waits) == 2


# --- secrets in addresses ----------------------------------------------------------------------------------------


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    "answer",
    [server.status(403), server.status(503), server.close_after(0), server.page, server.redirect("ftp://me:secret@host/x?sig=secret")],
)
def test_no_secret_of_an_address_is_ever_shown(path, answer, capsys):
    with Server(CONTENT, answer) as bad:
        url = bad.url.replace("http://", "http://alice:secret@") + "?token=secret"
        message = refused(path, url)
        assert bad.requests[0][0].endswith("?token=secret")
    assert f"http://***@127.0.0.1:{bad.server_port}/file.tar.gz?***: " in message
    printed = capsys.readouterr()
    assert "secret" not in message + printed.out + printed.err
    assert "secret" not in str([file.name for file in path.parent.iterdir()])


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    "url",
    [
        "http://alice:secret@[bad/x", "http://alice:se/cret@host/x", "http://alice:secret@host:port/x", "http://alice:secret@/x",
        "http://alice:secret@nowhere.invalid/x?secret", "http://alice:sec#ret@nowhere.invalid/x", "http://secret@nowhere.invalid/",
    ],
)  # fmt: skip
def test_no_secret_of_an_address_that_is_wrong_is_ever_shown(path, url, capsys):
    shown = refused(path, url, policy=replace(POLICY, attempts=1)) + "".join(capsys.readouterr())
    assert not re.search("sec|cret|alice", shown)


@pytest.mark.fault(37)
def test_a_redirect_to_an_insecure_address_is_told_without_its_secrets(path, monkeypatch):
    class Secure(exchange.Session):
        def __init__(self):
            super().__init__()
            self.mount("https://", Canned("http://alice:secret@mirror.example/file?sig=secret"))

    monkeypatch.setattr(exchange, "Session", Secure)
    assert refused(path, "https://secure.example/file").endswith("redirected from https to http://***@mirror.example/file?***")


@pytest.mark.fault(6)
def test_a_wrong_file_that_was_put_there_by_hand_is_named_too(path):
    path.parent.mkdir()
    path.write_bytes(b"short")
    with Server(CONTENT, server.status(404)) as bad, pytest.raises(UserError) as error:
        fetch(path, bad.url)
    assert f"{path}: checksum mismatch: expected bytes 300000," in str(error.value)
    with Server(CONTENT) as good:
        assert fetched(path, good.url)


@pytest.mark.fault(8)
def test_a_redirect_is_followed_but_not_for_ever(path):
    with Server(CONTENT) as good:
        with Server(CONTENT, server.redirect(good.url)) as moved:
            assert fetched(path, moved.url)
        path.unlink()
        good.answers = [server.redirect(good.url)]
        assert "Exceeded 30 redirects" in refused(path, good.url)


class Canned(requests.adapters.BaseAdapter):
    """A transport whose every answer redirects to `target`."""

    def __init__(self, target):
        super().__init__()
        self.target = target

    def send(self, request, **_):
        response = requests.Response()
        response.status_code, response.url, response.request = 302, request.url, request
        response.headers["Location"] = self.target
        response._content = b""
        return response

    def close(self):
        pass


@pytest.mark.fault(8)
@pytest.mark.parametrize("target", ["http://mirror.example/file", "HTTP://secure.example/file", "ftp://secure.example/file"])
def test_https_never_becomes_http(path, target, monkeypatch):
    class Secure(exchange.Session):
        def __init__(self):
            super().__init__()
            self.mount("https://", Canned(target))

    monkeypatch.setattr(exchange, "Session", Secure)
    assert "https://secure.example/file: redirected from https to " in refused(path, "https://secure.example/file")


@pytest.mark.fault(8)
@pytest.mark.parametrize("target", ["/other", "//mirror.example/file", "https://mirror.example/file"])
def test_https_may_become_https_elsewhere(target):
    with exchange.Session() as session:
        session.mount("https://", Canned(target))
        with pytest.raises(requests.TooManyRedirects, match="Exceeded 30 redirects"):
            session.get("https://secure.example/file")
