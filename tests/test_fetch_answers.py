"""Downloads from a server that is busy, or gives another file."""

import time
from email.utils import formatdate

import pytest

from pipeline.data import fetch as fetching
from pipeline.data.exchange import RetryPolicy
from tests import misbehaving_server as server
from tests.downloads import CONTENT, fetch, fetched, of, part_of, refused
from tests.misbehaving_server import Server

# --- row 4: busy servers -----------------------------------------------------------------------------------------


@pytest.mark.fault(4)
@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(destination, code):
    with Server(CONTENT, server.status(code), server.status(code), server.whole) as busy:
        assert fetched(destination, busy.url)


@pytest.mark.fault(4)
@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_stays_busy_is_given_up_for_the_next_one(destination, code, capsys):
    with Server(CONTENT, server.status(code)) as busy, Server(CONTENT) as good:
        assert fetched(destination, busy.url, good.url)
        assert len(busy.requests) == 3
    assert f"{busy.url}: HTTP {code} " in capsys.readouterr().err


@pytest.mark.fault(4)
@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_server_that_does_not_have_it_is_asked_once(destination, code):
    with Server(CONTENT, server.status(code)) as bad, Server(CONTENT) as good:
        assert fetched(destination, bad.url, good.url)
        assert len(bad.requests) == 1


@pytest.mark.fault(4)
@pytest.mark.parametrize(
    ("asked", "waited"),
    [("7", 7), ("86400", 10), (formatdate(time.time() + 86400, usegmt=True), 10), ("soon", 1), ("-1", 1)],
    ids=["7", "86400", "tomorrow", "soon", "-1"],
)
def test_the_wait_that_a_server_asks_for_is_kept_within_bounds(destination, asked, waited, waits):
    with Server(CONTENT, server.status(503, Retry_After=asked), server.whole) as busy:
        fetch(destination, busy.url, policy=RetryPolicy(first_wait_seconds=1, longest_wait_seconds=10))
    assert waits == [waited]


# --- row 5: another file -----------------------------------------------------------------------------------------


@pytest.mark.fault(5)
def test_a_page_instead_of_the_file_is_a_checksum_mismatch_and_costs_no_part(destination):
    part_of(destination, CONTENT[:1000])
    wanted = of(CONTENT)
    with Server(CONTENT, server.page) as portal:
        assert f"{portal.url}: checksum mismatch: expected bytes 300000, sha256 {wanted.sha256}; got bytes 26, type 'text/html'" in refused(
            destination, portal.url
        )
        assert part_of(destination).read_bytes() == CONTENT[:1000]


@pytest.mark.fault(5)
@pytest.mark.parametrize("known", [True, False])
def test_a_wrong_file_is_a_checksum_mismatch_with_url_expected_and_got(destination, known):
    wrong = bytes(len(CONTENT))
    wanted, served = of(CONTENT), of(wrong)
    size = f"bytes {len(CONTENT)}, " if known else ""
    with Server(wrong) as bad:
        assert (
            f"{bad.url}: checksum mismatch: expected {size}md5 {wanted.md5}, sha256 {wanted.sha256}; "
            f"got {size}md5 {served.md5}, sha256 {served.sha256}"
        ) in refused(destination, bad.url, expected=of(CONTENT, size=known))
        assert len(bad.requests) == 1
        assert not part_of(destination).exists()


@pytest.mark.fault(5)
def test_a_wrong_file_is_given_up_for_the_next_mirror(destination):
    with Server(bytes(len(CONTENT))) as bad, Server(CONTENT) as good:
        assert fetched(destination, bad.url, good.url)
        assert good.ranges == [None]


@pytest.mark.fault(5)
def test_a_file_without_end_is_cut_off(destination, monkeypatch):
    with Server(CONTENT, server.endless) as bad:
        assert "got more than 300000 bytes" in refused(destination, bad.url)
        monkeypatch.setattr(fetching, "LARGEST_BYTES", 400_000)
        assert "got more than 400000 bytes" in refused(destination, bad.url, expected=of(CONTENT, size=False))
        assert not part_of(destination).exists()


@pytest.mark.fault(5)
def test_a_part_that_stays_wrong_is_not_resumed_for_ever(destination):
    wrong = bytes(len(CONTENT))
    with Server(wrong, *[server.close_after(60_000), server.whole] * 20) as bad:
        assert "checksum mismatch" in refused(destination, bad.url)
        assert bad.ranges == [None, "bytes=60000-", None, "bytes=60000-"]
