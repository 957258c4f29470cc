"""Every command against every state of its streams, its paths and its environment: no case here is thought of by name.

The commands and their paths are read from the command line itself, so a new command is swept from its first day. What must hold
each time: no traceback, an exit code that docs/faults.md lists, no verdict that is not one, nothing written outside the workspace.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.models import OptionInfo

from pipeline import cli, files
from tests import folders, kept_runs, network_runs
from tests.conftest import ROOT, own_files

pytestmark = pytest.mark.fault(63)

SLOW = {"train", "demo", "doctor", "predict", "reproduce"}
"""Commands that import PyTorch: swept over fewer cases, but for `evaluate`, which stands for them."""
IN_PLACE_OF = {"runs": ["A", "B"], "folders": ["A", "B"], "run": ["A"], "images": ["no-image.png"], "to": ["A/model.onnx"]}
"""What a path that is not the one in question is, by the parameter's name; any other is left out, or is A where it is required."""
ANSWERED = (0, 2, 3)
LIMIT_SECONDS = 120


@dataclass(frozen=True)
class Parameter:
    """A path that a command takes."""

    name: str
    option: str | None
    """Its option; None for an argument."""
    required: bool
    several: bool


def commands() -> dict[str, list[Parameter]]:
    """Command -> the paths that it takes, from the functions that typer calls."""
    by_command = {}
    for registered in cli.app.registered_commands:
        function = registered.callback
        hints = typing.get_type_hints(function, include_extras=True)
        paths = []
        for name, parameter in inspect.signature(function).parameters.items():
            annotation, info = (
                typing.get_args(hints[name])[:2] if typing.get_origin(hints[name]) is typing.Annotated else (hints[name], None)
            )
            if "Path" in str(annotation) or name == "images":
                named = getattr(info, "param_decls", None) or ()
                option = next((word for word in named if word.startswith("--")), f"--{name.replace('_', '-')}")
                required = parameter.default is inspect.Parameter.empty
                paths.append(Parameter(name, option if isinstance(info, OptionInfo) else None, required, "list" in str(annotation)))
        by_command[registered.name or function.__name__.replace("_", "-")] = paths
    return by_command


COMMANDS = commands()


def words(command: str, given: dict[str, list[str]]) -> list[str]:
    """The command line with these paths, and others where they are needed."""
    line = [command]
    for parameter in sorted(COMMANDS[command], key=lambda parameter: parameter.option is None):
        values = given.get(parameter.name) or IN_PLACE_OF.get(parameter.name) or (["A"] if parameter.required else [])
        for value in values if parameter.several else values[:1]:
            line += [parameter.option, value] if parameter.option else [value]
    return line


def test_the_sweep_sees_the_commands_and_their_paths():
    assert {"download", "train", "evaluate", "fingerprint", "compare", "doctor", "predict", "export"} <= set(COMMANDS)
    assert {name for name, paths in COMMANDS.items() if not paths} == {"download", "train", "doctor", "check"}
    assert words("compare", {"html": ["page"]}) == ["compare", "--html", "page", "A", "B"]
    assert words("evaluate", {"run": [""]}) == ["evaluate", "--run", ""]
    assert words("fingerprint", {"runs": ["x"]}) == ["fingerprint", "x"]


# --- the workspace -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two kept runs whose weights are identical, A and B, and a params.yaml that needs no network and finds no data."""
    folder = tmp_path_factory.mktemp("runs")
    settings = (ROOT / "params.yaml").read_text()
    (folder / "params.yaml").write_text(settings.replace("source: cifar10", "source: folder"))
    with contextlib.chdir(folder):
        for name, hardware in {"A": "A processor", "B": "Another processor"}.items():
            shutil.move(kept_runs.keep(hardware=hardware), name)
        shutil.rmtree("runs")
        shutil.rmtree(".cache")
    return folder


@pytest.fixture
def workspace(runs, tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of `runs` to work in; beside it and in the project nothing may change, and no special file may become another."""
    folder = tmp_path / "workspace"
    shutil.copytree(runs, folder)
    for name in ("home", "beside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site"))
    before, special = own_files(), {path: os.stat(path).st_rdev for path in ("/dev/null", "/dev/full")}
    yield folder
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if folder not in (path, *path.parents)} == {
        "home",
        "home/file",
        "beside",
        "beside/file",
    }
    assert [(tmp_path / name / "file").read_text() for name in ("home", "beside")] == ["home", "beside"]
    assert own_files() == before
    assert {path: os.stat(path).st_rdev for path in special} == special


def check(line: list[str], code: int, out: str, said: str, allowed: tuple[int, ...]) -> None:
    shown = f"{line}: exit code {code}\n{out}\n{said}"
    assert code in allowed, shown
    assert "Traceback" not in out + said, shown


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


# --- streams and variables: each in a process of its own, two at a time -----------------------------------------------------

STREAMS = {
    "closed": (">&- 2>&-", ANSWERED),
    "full": (">/dev/full 2>/dev/full", (2, 74)),
    "read by nobody": ("2>&1 | true", (2, 141)),
}
NONSENSE = {
    # PyTorch and its libraries: those that it may die of, one at a time
    "TORCH_LOGS": "nonsense", "ATEN_CPU_CAPABILITY": "nonsense",
    "TORCH_CPP_LOG_LEVEL": "nonsense", "TORCH_TRACE": "/no/such/folder", "TORCH_DEVICE_BACKEND_AUTOLOAD": "nonsense",
    "CUDA_VISIBLE_DEVICES": "nonsense", "CUBLAS_WORKSPACE_CONFIG": "nonsense", "CUDA_LAUNCH_BLOCKING": "nonsense",
    "MKL_NUM_THREADS": "nonsense", "MKL_CBWR": "nonsense", "ONEDNN_MAX_CPU_ISA": "nonsense",
    # OpenMP
    "OMP_NUM_THREADS": "nonsense", "OMP_WAIT_POLICY": "nonsense", "OMP_PROC_BIND": "nonsense", "OMP_STACKSIZE": "nonsense",
    "OMP_SCHEDULE": "nonsense", "OMP_THREAD_LIMIT": "0", "GOMP_SPINCOUNT": "nonsense",
    # DVC, Git, Python's libraries, the terminal, us
    "DVC_SITE_CACHE_DIR": "/proc/no/such", "DVC_GLOBAL_CONFIG_DIR": "/dev/null", "DVC_SYSTEM_CONFIG_DIR": "/dev/null",
    "DVC_ROOT": "/no/such",
    "DVC_STAGE": "nonsense", "DVC_NO_ANALYTICS": "nonsense", "GIT_DIR": "/dev/null", "GIT_WORK_TREE": "/no/such",
    "GIT_CONFIG_COUNT": "nonsense",
    "GIT_INDEX_FILE": "/dev/null", "TERM": "nonsense", "COLUMNS": "nonsense", "LINES": "-1", "LANG": "nonsense", "LC_ALL": "nonsense",
    "TZ": "nonsense", "HOME": "/no/such", "TMPDIR": "/no/such", "PATH": "", "http_proxy": "nonsense", "PIPELINE_CIFAR10_MIRROR": "nonsense",
    "FORCE_COLOR": "nonsense", "NO_COLOR": "",
}  # fmt: skip
OF_PYTORCH = list(NONSENSE)[: list(NONSENSE).index("DVC_SITE_CACHE_DIR")]
DEADLY = ["TORCH_LOGS"]
WORKERS = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GLOO_SOCKET_IFNAME",
    "PIPELINE_WORKERS_TIMEOUT",
)
WIDTHS = ("0", "1", "-1", "5", "7", "019", "100000", "nonsense", "9" * 30, "8e1", "\u0664\u0664")
"""What COLUMNS and LINES may be set to from outside."""


NO_DVC = """
import os, subprocess
start = subprocess.Popen.__init__
def quick(process, command, *rest, **options):
    if any("dvc" in str(word) for word in command):
        command = ["false"]
    start(process, command, *rest, **options)
subprocess.Popen.__init__ = quick
"""
"""What each process runs first: DVC fails there."""


def started(line: list[str], redirection: str, variables: dict[str, str]) -> tuple[int, str, str]:
    """The exit code of a command in a process of its own, in which DVC fails, and what it prints."""
    environment = {**os.environ, "PYTHONPATH": f"{Path.cwd()}/site-packages:{ROOT}", **variables}
    script = [
        "/bin/bash",
        "-c",
        f'set -o pipefail; {"" if "|" in redirection else "exec"} "$@" {redirection}',
        "bash",
        sys.executable,
        "-m",
        "pipeline",
        *line,
    ]
    done = subprocess.run(script, capture_output=True, env=environment, timeout=LIMIT_SECONDS)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def sweep(cases: list[tuple[list[str], str, dict[str, str], tuple[int, ...]]]) -> None:
    """Start the commands with these redirections and variables; each must end with one of these exit codes."""
    Path("site-packages").mkdir(exist_ok=True)
    Path("site-packages", "sitecustomize.py").write_text(NO_DVC)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda case: started(*case[:3]), cases))
    for (line, redirection, variables, allowed), (code, out, said) in zip(cases, answers, strict=True):
        told = [*line, redirection, *(list(variables) if len(variables) < 3 else ["many variables"])]
        check(told, code, out, said, allowed)
        if line[0] in ("compare", "reproduce"):
            assert code != 3, f"{told}: nothing here is different, exit code {code}"


@pytest.mark.parametrize("state", STREAMS)
def test_no_state_of_the_streams_gives_a_traceback_or_a_false_verdict(state, workspace):
    redirection, allowed = STREAMS[state]
    swept = [command for command in COMMANDS if command not in SLOW or state != "read by nobody"]
    sweep([(words(command, {}), redirection, {}, allowed) for command in swept])


def test_no_nonsense_in_the_variables_gives_a_traceback_or_a_false_verdict_alone(workspace):
    """Those that PyTorch may die of one at a time, its others several at a time; what is not PyTorch's in turn on every command."""
    others = [name for name in NONSENSE if name not in OF_PYTORCH]
    lines = [words(command, {}) for command in COMMANDS if command not in {*SLOW, "evaluate"}]
    harmless = [name for name in OF_PYTORCH if name not in DEADLY]
    groups = [[name] for name in DEADLY] + [harmless[first::4] for first in range(4)]
    cases = [(["evaluate", "--run", "A"], "", {name: NONSENSE[name] for name in group}, (2,)) for group in groups]
    cases += [(lines[number % len(lines)], "", {name: NONSENSE[name]}, ANSWERED) for number, name in enumerate(others)]
    cases += [(["compare", "A", "B"], "", {name: NONSENSE[name]}, (0,)) for name in DEADLY]
    sweep(cases)


def test_no_nonsense_in_the_variables_gives_a_traceback_or_a_false_verdict_together(workspace):
    harmless = {name: value for name, value in NONSENSE.items() if name not in DEADLY}
    sweep([(words(command, {}), "", harmless, ANSWERED) for command in COMMANDS])
    blank = dict.fromkeys([*NONSENSE, *WORKERS], "")
    sweep([(words(command, {}), "", blank, ANSWERED) for command in COMMANDS if command not in SLOW - {"train"}])


@pytest.mark.fault(66)
def test_no_width_that_is_set_from_outside_gives_a_traceback_or_a_column_of_letters(workspace):
    cases = [(words("compare", {}), "", {"COLUMNS": width, "LINES": width}, (0,)) for width in WIDTHS]
    sweep([*cases, *((["--help"], "", {"COLUMNS": width, "LINES": width}, (0,)) for width in WIDTHS)])
    lines = [started(words("compare", {}), "", {"COLUMNS": width})[1].splitlines() for width in ("1", "20", "80")]
    assert lines[0] == lines[2], "what says nothing is not set"
    assert [max(map(len, of)) > 30 for of in lines] == [True] * 3
