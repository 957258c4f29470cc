"""Downloads from a server whose connection breaks, stalls or knows no ranges."""

import threading
import time
from email.utils import formatdate

import pytest

from pipeline.data.exchange import RetryPolicy
from pipeline.errors import UserError
from tests import misbehaving_server as server
from tests.downloads import CONTENT, HURRY, POLICY, fetch, fetched, of, part_of
from tests.misbehaving_server import Server


def test_a_good_server_is_asked_once(destination):
    with Server(CONTENT) as good:
        assert fetched(destination, good.url)
        assert good.ranges == [None]
        assert good.requests[0][1]["Accept-Encoding"] == "identity"


def test_a_file_that_is_there_is_not_downloaded(destination):
    with Server(CONTENT) as good:
        fetch(destination, good.url)
        fetch(destination, good.url)
        assert len(good.requests) == 1


def test_a_finished_part_that_lacks_only_its_name_is_not_downloaded_again(destination):
    part_of(destination, CONTENT)
    with Server(CONTENT, server.status(500)) as bad:
        assert fetched(destination, bad.url, expected=of(CONTENT, size=False))
        assert bad.requests == []


@pytest.mark.parametrize("known", [True, False])
def test_a_server_that_tells_no_length_is_read_to_its_end(destination, known):
    with Server(CONTENT, server.no_length_after(len(CONTENT))) as old:
        assert fetched(destination, old.url, expected=of(CONTENT, size=known))


def test_two_downloads_at_once_do_not_write_the_same_part(destination):
    refused = threading.Event()
    with Server(CONTENT, server.stall_after(1000, until=refused)) as slow:
        first = threading.Thread(target=fetch, args=(destination, slow.url))
        first.start()
        while not part_of(destination).exists():
            time.sleep(0.005)
        with pytest.raises(UserError, match="a download is already running in this folder"):
            fetch(destination, slow.url)
        refused.set()
        first.join()
        assert destination.read_bytes() == CONTENT


# --- row 2: reset, stalled and trickling connections -------------------------------------------------------------


@pytest.mark.fault(2)
@pytest.mark.parametrize("cut", [server.reset_after, server.close_after, server.no_length_after, server.stall_after, server.trickle_after])
def test_a_connection_that_ends_or_stalls_is_resumed_from_where_it_was(destination, cut, capsys):
    with Server(CONTENT, cut(100_000), server.whole) as bad:
        assert fetched(destination, bad.url, policy=HURRY if cut in (server.stall_after, server.trickle_after) else POLICY)
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
def test_a_mirror_that_brings_nothing_is_given_up_for_the_next_one(destination, cut, reason, policy, capsys):
    with Server(CONTENT, cut) as bad, Server(CONTENT) as good:
        assert fetched(destination, bad.url, good.url, policy=policy)
        assert bad.ranges == [None] * 3
    assert f"{bad.url}: {reason} (3 attempts)" in capsys.readouterr().err


@pytest.mark.fault(2)
def test_a_mirror_that_brings_a_share_each_time_is_not_given_up(destination):
    with Server(CONTENT, *[server.close_after(60_000)] * 4, server.whole) as bad:
        assert fetched(destination, bad.url)
        assert bad.ranges == [None, *(f"bytes={60_000 * n}-" for n in range(1, 5))]


@pytest.mark.fault(3)
@pytest.mark.parametrize("refusal", [server.status(416), server.wrong_range], ids=["416", "a wrong range"])
def test_a_mirror_that_brings_the_same_bytes_over_and_over_is_given_up(destination, refusal):
    with Server(CONTENT, server.in_turn(server.close_after(60_000), refusal)) as bad, Server(CONTENT) as good:
        assert fetched(destination, bad.url, good.url)
        assert bad.ranges == [None, "bytes=60000-"] * 2


@pytest.mark.fault(2)
def test_what_one_mirror_began_the_next_one_finishes(destination):
    with Server(CONTENT, server.close_after(40_000), server.status(404)) as bad, Server(CONTENT) as good:
        assert fetched(destination, bad.url, good.url)
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
def test_a_range_is_asked_for_of_the_same_version_only(destination, headers, asked):
    with Server(CONTENT, server.reset_after(100_000, **headers), server.whole) as bad:
        fetch(destination, bad.url)
        assert bad.requests[1][1].get("If-Range") == asked
        assert destination.read_bytes() == CONTENT


@pytest.mark.fault(2)
def test_waits_double_and_start_again_when_something_came(destination, waits):
    failed = server.status(500)
    policy = RetryPolicy(attempts=4, worthwhile_bytes=50_000, first_wait_seconds=1, longest_wait_seconds=3)
    with Server(CONTENT, failed, failed, failed, server.close_after(60_000), failed, failed, server.whole) as bad:
        assert fetched(destination, bad.url, policy=policy)
    assert waits == [1, 2, 3, 1, 2, 3]


# --- row 3: ranges -----------------------------------------------------------------------------------------------


@pytest.mark.fault(3)
def test_a_server_that_ignores_the_range_is_read_from_the_start(destination):
    part_of(destination, CONTENT[:100_000])
    with Server(CONTENT, server.ignore_range) as simple:
        assert fetched(destination, simple.url)
        assert simple.ranges == ["bytes=100000-"]


@pytest.mark.fault(3)
@pytest.mark.parametrize("answer", [server.status(416), server.wrong_range])
def test_a_range_that_is_refused_or_wrong_is_forgotten(destination, answer):
    part_of(destination, CONTENT[:100_000])
    with Server(CONTENT, answer, server.whole) as simple:
        assert fetched(destination, simple.url)
        assert simple.ranges == ["bytes=100000-", None]


@pytest.mark.fault(3)
def test_a_part_of_another_file_is_forgotten(destination):
    part_of(destination, bytes(100_000))
    with Server(CONTENT) as good:
        assert fetched(destination, good.url)
        assert good.ranges == ["bytes=100000-", None]


@pytest.mark.fault(3)
@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 1, 2 * len(CONTENT)])
@pytest.mark.parametrize("known", [True, False])
def test_an_oversized_part_is_forgotten(destination, size, known):
    part_of(destination, bytes(size))
    with Server(CONTENT) as good:
        assert fetched(destination, good.url, expected=of(CONTENT, size=known))
        assert good.ranges == [None] if known else [f"bytes={size}-", None]
