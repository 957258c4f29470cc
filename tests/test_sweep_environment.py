"""Every command against every state of its streams and its environment, each in a process of its own; else as tests/test_sweep.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.sweeping import ANSWERED, COMMANDS, LIMIT_SECONDS, SLOW, check, make_runs, watched, words

pytestmark = pytest.mark.fault(63)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def workspace(runs, tmp_path, monkeypatch) -> Iterator[Path]:
    yield from watched(runs, tmp_path, monkeypatch)


NAMES = re.compile(
    r"[\"'](?:(?:PIPELINE|GLOO|MASTER|LOCAL|OMP|GOMP|DVC|TORCH|TORCHELASTIC|XDG)_[A-Z_]+|WORLD_SIZE|RANK|COLUMNS|LINES)[\"']"
)
OURS = {"TORCH_NCCL_BLOCKING_WAIT", "GOMP_SPINCOUNT", "TORCH_CPP_LOG_LEVEL", "PYTORCH_NVML_BASED_CUDA_CHECK"}
"""Variables that we set for libraries, and nowhere read."""


@pytest.mark.fault(56)
def test_the_sweep_sets_every_variable_that_the_sources_name():
    sources = [path for path in (ROOT / "pipeline").rglob("*.py") if path.parent.name != "port"]  # which writes scripts that name others
    named = {name.strip("\"'") for path in sources for name in NAMES.findall(path.read_text())}
    assert {"PIPELINE_MIRROR", "WORLD_SIZE", "GLOO_SOCKET_IFNAME", "COLUMNS"} <= named
    assert named - OURS <= {*NONSENSE, *WORKERS}


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
    "TZ": "nonsense", "HOME": "/no/such", "TMPDIR": "/no/such", "PATH": "", "http_proxy": "nonsense", "PIPELINE_MIRROR": "nonsense",
    "PIPELINE_IMAGE": "nonsense", "PIPELINE_CUDA_GRAPH": "nonsense", "PIPELINE_WORKERS_FILE": "nonsense",
    "PIPELINE_WORKERS_SOCKET": "nonsense", "TORCHELASTIC_RUN_ID": "nonsense", "XDG_STATE_HOME": "/no/such", "PYTHONSAFEPATH": "nonsense",
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


@pytest.mark.long
@pytest.mark.parametrize("state", STREAMS)
def test_no_state_of_the_streams_gives_a_traceback_or_a_false_verdict(state, workspace):
    redirection, allowed = STREAMS[state]
    swept = [command for command in COMMANDS if command not in SLOW or state != "read by nobody"]
    sweep([(words(command, {}), redirection, {}, allowed) for command in swept])


@pytest.mark.long
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


@pytest.mark.long
def test_no_nonsense_in_the_variables_gives_a_traceback_or_a_false_verdict_together(workspace):
    """Each command with one of the two, `train` with both."""
    harmless = {name: value for name, value in NONSENSE.items() if name not in DEADLY}
    blank = dict.fromkeys([*NONSENSE, *WORKERS], "")
    blanked = [command for command in COMMANDS if command not in SLOW][::2]
    sweep([(words(command, {}), "", harmless, ANSWERED) for command in COMMANDS if command not in blanked])
    sweep([(words(command, {}), "", blank, ANSWERED) for command in [*blanked, "train"]])


@pytest.mark.fault(66)
def test_no_width_that_is_set_from_outside_gives_a_traceback_or_a_column_of_letters(workspace):
    cases = [(words("compare", {}), "", {"COLUMNS": width, "LINES": width}, (0,)) for width in WIDTHS]
    sweep([*cases, *((["--help"], "", {"COLUMNS": width, "LINES": width}, (0,)) for width in WIDTHS)])
    lines = [started(words("compare", {}), "", {"COLUMNS": width})[1].splitlines() for width in ("1", "20", "80")]
    assert lines[0] == lines[2], "what says nothing is not set"
    assert [max(map(len, of)) > 30 for of in lines] == [True] * 3
