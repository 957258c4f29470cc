"""Pickles of batches: nothing is called, and nothing else is read."""

import os
import pickle
from pathlib import Path

import pytest

from pipeline.data import pickles
from tests import archives
from tests.archives import refused, with_pickle


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("function", "protocol", "named"),
    [(os.system, 2, "posix.system"), (os.system, 4, "posix.system"), (eval, 2, "__builtin__.eval"), (eval, 4, "builtins.eval")],
)
def test_a_pickle_that_calls_is_refused_and_nothing_is_executed(function, protocol, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = archives.contents()["data_batch_2"] | {"batch_label": Calls(function, "touch called")}
    path = with_pickle(tmp_path / "a.tar.gz", pickle.dumps(content, protocol))
    assert refused(path) == f"cifar-10-batches-py/data_batch_2: forbidden global '{named}'; nothing was executed"
    assert not Path("called").exists()


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"cos\nsystem\n(S'touch called'\ntR.", "forbidden global 'os.system'; nothing was executed"),
        (b"(ios\nsystem\n.", "forbidden global 'os.system'; nothing was executed"),
        (b"(cos\nsystem\nX\x04\x00\x00\x00trueo.", "forbidden global 'os.system'; nothing was executed"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "not a pickled dictionary"),
        (b"\x80\x02\x82\x01.", "not a pickled dictionary (ValueError)"),
        (b"Pid\n.", "not a pickled dictionary (UnpicklingError)"),
        (b"\x80\x02K\x01Q.", "not a pickled dictionary (UnpicklingError)"),
        (b"\x80\x05\x97.", "not a pickled dictionary (UnpicklingError)"),
        (b"\x80\x05\x96\x03" + bytes(7) + b"abc.", "not a pickled dictionary"),
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "not a pickled dictionary (TypeError)"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "not a pickled dictionary (TypeError)"),
        (b"\x80\x02c_codecs\nencode\n}b.", "not a pickled dictionary"),
        (b"\x80\x02c_codecs\nencode\nN}X\x08\x00\x00\x00__func__K\x01s\x86b.", "not a pickled dictionary (AttributeError)"),
        (b"\x80\x02K\x01.", "not a pickled dictionary"),
        (b"\x80\x02}]K\x01s.", "not a pickled dictionary (TypeError)"),
        (b"\x80\x02}K\x01K\x02s.", "a key is not text"),
        (b"\x80\x02.", "not a pickled dictionary (UnpicklingError)"),
        (b"\x80\x02e.", "not a pickled dictionary (UnpicklingError)"),
        (b"\x80\x02}C\x01\xffK\x01s.", "not a pickled dictionary (UnicodeDecodeError)"),
        (b"\x80\x02}", "not a pickled dictionary (ValueError)"),
        (b"", "not a pickled dictionary (ValueError)"),
    ],
)  # fmt: skip
def test_a_pickle_of_anything_but_a_batch_is_refused_with_the_reason(pickled, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(with_pickle(tmp_path / "a.tar.gz", pickled)) == f"cifar-10-batches-py/data_batch_2: {reason}"
    assert not Path("called").exists()


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"\x80\x02" + b"]" * 300_000 + b".", "more than 200000 pickle operations"),
        (b"\x80\x02]r\xff\xff\xff\xff.", "more than 200000 pickle operations"),
        (b"]p999999999999\n.", "more than 200000 pickle operations"),
        (b"L" + b"9" * 2**20 + b"L\n.", "not a pickled dictionary (ValueError)"),
        (b"\x80\x05\x8e" + b"\xff" * 7 + b"\x00.", "not a pickled dictionary (ValueError)"),
        (b"\x80\x02T\xff\xff\xff\x7f.", "not a pickled dictionary (ValueError)"),
        (
            b"\x80\x02c_codecs\nencode\nX\x00\x00\x80\x00" + b"a" * 2**23 + b"X\x06\x00\x00\x00latin1\x86q\x01R"
            + b"c_codecs\nencode\nh\x01R" * 8 + b".",
            "more than 67108864 bytes",
        ),
    ],
    ids=["many lists", "a note with a huge number", "one in digits", "a huge number", "huge bytes", "a huge string", "encoded again"],
)  # fmt: skip
def test_a_pickle_that_asks_for_the_whole_machine_is_refused(pickled, reason):
    with pytest.raises(pickles.Refused) as error:
        pickles.read(pickled)
    assert str(error.value) == reason
