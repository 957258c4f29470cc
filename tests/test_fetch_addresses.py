"""Downloads from addresses that do not resolve, hold secrets or lead elsewhere."""

import re
import socket
from dataclasses import replace

import pytest
import requests

from pipeline.data import exchange
from pipeline.errors import UserError
from tests import misbehaving_server as server
from tests.downloads import CONTENT, POLICY, fetch, fetched, refused
from tests.misbehaving_server import Server

# --- row 6: no mirror helps --------------------------------------------------------------------------------------


@pytest.mark.fault(6)
def test_each_mirror_is_named_with_its_reason_when_none_helps(destination):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with Server(CONTENT, server.status(404)) as bad, pytest.raises(UserError) as error:
            fetch(destination, dead, bad.url, "http://[bad/file", "http://nowhere.invalid/file")
    assert str(error.value).startswith(
        f"cannot get file.tar.gz: {dead}: [Errno 111] Connection refused (3 attempts); {bad.url}: HTTP 404 Not Found; "
        "http://[bad/file: not an address that can be asked (InvalidURL); http://nowhere.invalid/file: [Errno -"
    )
    assert error.value.remedies == (f"put the file at {destination} by hand", "do without")


# --- offline -----------------------------------------------------------------------------------------------------


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
def test_without_a_network_that_is_told_at_once(destination, code, waits, resolve):
    asked = resolve(*[code] * 9)
    with pytest.raises(UserError) as error:
        fetch(destination, "http://one.example/f", "http://me:secret@two.example:8/f", "http://two.example/g")
    assert (asked, waits) == (["one.example", "two.example", "two.example"], [])
    assert str(error.value) == "cannot get file.tar.gz: no network: no name resolves (one.example, two.example)"
    assert error.value.remedies == (f"put the file at {destination} by hand", "do without")


@pytest.mark.fault(40)
def test_a_name_that_does_not_resolve_is_passed_over_for_the_next_mirror(destination, waits, resolve):
    asked = resolve(socket.EAI_NONAME)
    with Server(CONTENT) as good:
        assert fetched(destination, "http://gone.example/f", f"http://good.example:{good.server_port}/f")
    assert (asked, waits) == (["gone.example", "good.example"], [])


@pytest.mark.fault(40)
def test_a_name_that_no_longer_resolves_in_the_middle_of_a_download_is_tried_again(destination, waits, resolve):
    def break_down(handler, body):
        resolve(socket.EAI_AGAIN)
        handler.wfile.write(body[:60_000])

    resolve()
    with Server(CONTENT, server.sending(break_down), server.whole) as good:
        assert fetched(destination, f"http://good.example:{good.server_port}/f")
        assert good.ranges == [None, "bytes=60000-"]
    assert len(waits) == 2


@pytest.mark.fault(6)
def test_a_wrong_file_that_was_put_there_by_hand_is_named_too(destination):
    destination.parent.mkdir()
    destination.write_bytes(b"short")
    with Server(CONTENT, server.status(404)) as bad, pytest.raises(UserError) as error:
        fetch(destination, bad.url)
    assert f"{destination}: checksum mismatch: expected bytes 300000," in str(error.value)
    with Server(CONTENT) as good:
        assert fetched(destination, good.url)


# --- row 37: secrets in addresses --------------------------------------------------------------------------------


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    "answer",
    [server.status(403), server.status(503), server.close_after(0), server.page, server.redirect("ftp://me:secret@host/x?sig=secret")],
)
def test_no_secret_of_an_address_is_ever_shown(destination, answer, capsys):
    with Server(CONTENT, answer) as bad:
        url = bad.url.replace("http://", "http://alice:secret@") + "?token=secret"
        message = refused(destination, url)
        assert bad.requests[0][0].endswith("?token=secret")
    assert f"http://***@127.0.0.1:{bad.server_port}/file.tar.gz?***: " in message
    printed = capsys.readouterr()
    assert "secret" not in message + printed.out + printed.err
    assert "secret" not in str([file.name for file in destination.parent.iterdir()])


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    "url",
    [
        "http://alice:secret@[bad/x", "http://alice:se/cret@host/x", "http://alice:secret@host:port/x", "http://alice:secret@/x",
        "http://alice:secret@nowhere.invalid/x?secret", "http://alice:sec#ret@nowhere.invalid/x", "http://secret@nowhere.invalid/",
    ],
)  # fmt: skip
def test_no_secret_of_an_address_that_is_wrong_is_ever_shown(destination, url, capsys):
    shown = refused(destination, url, policy=replace(POLICY, attempts=1)) + "".join(capsys.readouterr())
    assert not re.search("sec|cret|alice", shown)


@pytest.mark.fault(37)
def test_a_redirect_to_an_insecure_address_is_told_without_its_secrets(destination, monkeypatch):
    class Secure(exchange.Session):
        def __init__(self):
            super().__init__()
            self.mount("https://", Canned("http://alice:secret@mirror.example/file?sig=secret"))

    monkeypatch.setattr(exchange, "Session", Secure)
    assert refused(destination, "https://secure.example/file").endswith("redirected from https to http://***@mirror.example/file?***")


# --- row 8: redirects; https stays https -------------------------------------------------------------------------


@pytest.mark.fault(8)
def test_a_redirect_is_followed_but_not_for_ever(destination):
    with Server(CONTENT) as good:
        with Server(CONTENT, server.redirect(good.url)) as moved:
            assert fetched(destination, moved.url)
        destination.unlink()
        good.answers = [server.redirect(good.url)]
        assert "Exceeded 30 redirects" in refused(destination, good.url)


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
def test_https_never_becomes_http(destination, target, monkeypatch):
    class Secure(exchange.Session):
        def __init__(self):
            super().__init__()
            self.mount("https://", Canned(target))

    monkeypatch.setattr(exchange, "Session", Secure)
    assert "https://secure.example/file: redirected from https to " in refused(destination, "https://secure.example/file")


@pytest.mark.fault(8)
@pytest.mark.parametrize("target", ["/other", "//mirror.example/file", "https://mirror.example/file"])
def test_https_may_become_https_elsewhere(target):
    with exchange.Session() as session:
        session.mount("https://", Canned(target))
        with pytest.raises(requests.TooManyRedirects, match="Exceeded 30 redirects"):
            session.get("https://secure.example/file")
