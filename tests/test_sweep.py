"""Every command against every state of its paths, and every way to spoil a picture: no case here is thought of by name.

The commands and their paths are read from the command line itself, so a new command is swept from its first day. What must hold
each time: no traceback, an exit code that docs/faults.md lists, no verdict that is not one, nothing written outside the workspace.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import cli
from pipeline.system import files
from tests import folders, network_runs
from tests.sweeping import COMMANDS, LIMIT_SECONDS, check, make_runs, watched, words

pytestmark = pytest.mark.fault(63)


def test_the_sweep_sees_the_commands_and_their_paths():
    assert {"download", "train", "evaluate", "fingerprint", "compare", "doctor", "predict", "export"} <= set(COMMANDS)
    assert {name for name, paths in COMMANDS.items() if not paths} == {"download", "train", "doctor", "check"}
    assert words("compare", {"html": ["page"]}) == ["compare", "--html", "page", "A", "B"]
    assert words("evaluate", {"run": [""]}) == ["evaluate", "--run", ""]
    assert words("fingerprint", {"runs": ["x"]}) == ["fingerprint", "x"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def workspace(runs, tmp_path, monkeypatch) -> Iterator[Path]:
    yield from watched(runs, tmp_path, monkeypatch)


# --- paths: in this process, for PyTorch is imported once ----------------------------------------------------------------


def a_pipe() -> str:
    os.mkfifo("pipe")
    return "pipe"


@contextlib.contextmanager
def drained(pipe: str) -> Iterator[None]:
    """Read what is written to `pipe`, and let nobody who opens it wait."""
    handle, done = os.open(pipe, os.O_RDWR | os.O_NONBLOCK), threading.Event()

    def drain() -> None:
        while not done.is_set():
            if select.select([handle], [], [], 0.05)[0]:
                os.read(handle, 2**16)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        yield
    finally:
        done.set()
        reader.join()
        os.close(handle)


def a_file() -> str:
    Path("file").write_bytes(b"text")
    return "file"


def a_full_folder() -> str:
    Path("folder").mkdir()
    Path("folder", "file").write_bytes(b"text")
    return "folder"


def a_link_to_nothing() -> str:
    os.symlink("nothing", "link")
    return "link"


PATHS = {
    "empty": lambda: "",
    "the folder itself": lambda: ".",
    "missing": lambda: "no/such",
    "a file": a_file,
    "below a file": lambda: a_file() + "/below",
    "a folder of something else": a_full_folder,
    "a pipe": a_pipe,
    "a device": lambda: "/dev/null",
    "a full device": lambda: "/dev/full",
    "below a device": lambda: "/dev/null/below",
    "a link to nothing": a_link_to_nothing,
    "a link to itself": lambda: os.symlink("loop", "loop") or "loop",
    "not UTF-8": lambda: os.fsdecode(b"\xff\xfe"),
    "unwritable": lambda: "/proc/no/such",
    "longer than a name may be": lambda: "n" * 300,
    "longer than a path may be": lambda: "n/" * 3000,
    "what steers a terminal": lambda: "\x1b[2J\n\x07",
    "an option's look": lambda: "./--help",
}
OUTPUTS = {"html", "folder", "out", "output", "to"}
"""Parameters that name what is written; any other names what is read, and none of PATHS can be."""


@pytest.fixture
def answer(monkeypatch) -> Iterator[Callable[[list[str]], int]]:
    """The command line, in which DVC fails at once, so that no command runs all the stages, and which may not wait for ever."""
    start = subprocess.Popen.__init__

    def fails(process: subprocess.Popen, command: list[str], *rest: object, **options: object) -> None:
        start(process, ["false"] if "dvc" in map(str, command) else command, *rest, **options)

    def late(*_: object) -> None:
        raise TimeoutError("a command waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    monkeypatch.setattr(cli, "STOP_SIGNALS", ())
    monkeypatch.setattr(subprocess.Popen, "__init__", fails)
    signal.alarm(LIMIT_SECONDS)
    yield cli.answer
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize(("command", "parameter"), [(name, path) for name, paths in COMMANDS.items() for path in paths],
                         ids=lambda value: getattr(value, "name", value))  # fmt: skip
def test_whatever_a_path_names_the_answer_is_one_line_or_the_right_one(command, parameter, kind, workspace, answer, capfdbinary):
    path = PATHS[kind]()
    line = words(command, {parameter.name: [path]})
    with drained(path) if kind == "a pipe" else contextlib.nullcontext():
        code = answer(line)
    out, said = (text.decode(errors="replace") for text in capfdbinary.readouterr())
    # `port` reads any text as a script
    check(line, code, out, said, (0, 2) if parameter.name in OUTPUTS or command == "port" else (2,))
    if code == 2:
        assert re.search(r"^error: .+(\n  .+)*\n\Z", said, re.MULTILINE), said


@pytest.mark.parametrize("command", [name for name, paths in COMMANDS.items() if any(path.name in OUTPUTS - {"folder"} for path in paths)])
def test_an_output_into_a_full_device_is_never_reported_as_written(command, workspace, answer, capfd):
    (parameter,) = [path for path in COMMANDS[command] if path.name in OUTPUTS]
    assert answer(words(command, {parameter.name: ["/dev/full"]})) == 2
    assert re.match("error: .*/dev/full", capfd.readouterr().err)


# --- pictures: cut and changed at many places ----------------------------------------------------------------------------


@pytest.mark.fault(72)
@pytest.mark.parametrize("encoding", folders.ENCODINGS)
def test_wherever_a_picture_is_cut_or_a_bit_of_it_is_changed_it_is_answered_or_refused_in_one_line(encoding, workspace, answer, capfd):
    content, places = folders.encoded(encoding), np.random.default_rng(len(encoding)).integers(0, 2**31, (2, 60))
    suffix = f".{encoding.split()[0].lower()}"
    network_runs.write(workspace / "net", images=2)
    damaged = {f"cut-{keep}{suffix}": content[:keep] for keep in sorted(set(places[0] % (len(content) - 3)))}
    for place in sorted(set(places[1] % (8 * len(content)))):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        damaged[f"flipped-{place}{suffix}"] = bytes(changed)
    for name, some in damaged.items():
        files.write_bytes(Path("some", name), some)
    code = answer(["predict", "net", "some", "--csv"])
    out, said = capfd.readouterr()
    check([encoding], code, out, said, (2, 3))
    answered, refused = {line.split(",")[0] for line in out.splitlines()[1:]}, re.findall(r"^error: (some/\S+): .", said, re.MULTILINE)
    assert len(refused) == len(said.splitlines())
    assert sorted([*answered, *refused]) == sorted(f"some/{name}" for name in damaged)
    assert not any("cut" in name for name in answered)
    # a set of those that were answered is taken, and one that has another names that one
    for name in [*sorted(answered), f"whole{suffix}"]:
        for folder in ("train/a", "train/b", "test/a", "test/b"):
            files.write_bytes(Path("photos", folder, Path(name).name), damaged.get(Path(name).name, content))
    spoilt = Path("photos", "train", "a", Path(refused[0]).name)
    files.write_bytes(spoilt, damaged[spoilt.name])
    assert answer(["download"]) == 2
    assert re.match(f"error: {spoilt}: .+; mend it, or take it out of the folder\\Z", capfd.readouterr().err.splitlines()[-1])
    spoilt.unlink()
    assert answer(["download"]) == 0
