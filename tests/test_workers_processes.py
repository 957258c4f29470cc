"""Real workers: started by `workers: N` and by torchrun, killed, hung, stopped and unlike; always one line, and the next run resumes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import numerics
from pipeline.machine import demo
from pipeline.params import Train
from pipeline.runs import outputs
from pipeline.runs.outputs import OUTPUTS
from pipeline.system import files, tensors
from pipeline.training import loop
from pipeline.training.checkpoint import UNFINISHED
from pipeline.training.stage import WORKERS
from pipeline.training.trainer import Trainer
from tests.conftest import ROOT
from tests.pausing import PAUSE
from tests.processes import descendants, of_group, start
from tests.settings import set_params
from tests.steps import CPU, drawn_set
from tools import scaling

pytestmark = pytest.mark.usefixtures("nothing_outlives_its_test")

LIMIT_SECONDS = 300
"""No test takes long; this is for one that hangs."""
IMAGES = 163
SMALL = {**demo.SETTINGS["train"], "batch_size": 16}
"""Eleven steps an epoch, 33 in all; the last batch of an epoch has 3 images."""
TRAIN = [sys.executable, "-m", "pipeline", "train", "--checkpoint-seconds", "0"]
PAUSING = [sys.executable, "-m", "tests.pausing", "train", "--checkpoint-seconds", "0"]
"""Worker 0 of this one pauses where a file says so; the other waits for it."""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A workspace with a small set, for two workers."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    demo.lay_out(tmp_path)
    drawn_set(IMAGES).save(tmp_path / "data" / "dataset.safetensors")
    set_params(tmp_path, workers=2, train=SMALL)
    return tmp_path


@pytest.fixture(scope="module")
def fingerprint() -> str:
    """Of the weights that one process gives in `folder`."""
    return tensors.fingerprint(loop.train(Trainer(drawn_set(IMAGES), CPU, 0, numerics.select("exact", CPU), Train(**SMALL))).weights)


def elastic(folder: Path, endpoint: str, host: bool) -> subprocess.Popen[str]:
    """A node of one worker, in a group of one or two, which meets at `host`; torchrun notices within seconds that the other is lost."""
    rendezvous = f"is_host={host},last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=2"
    options = ["--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
    pausing = ("-m", "tests.pausing", "train", "--checkpoint-seconds", "0")
    return torchrun(folder, *options, f"--rdzv-conf={rendezvous}", train=pausing)


def torchrun(folder: Path, *options: str, train: tuple[str, ...] = ("-m", "pipeline", "train", "--checkpoint-seconds", "0")):
    return start(folder, sys.executable, "-m", "torch.distributed.run", "--local-addr", "127.0.0.1", *options, *train)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, out, errors


def assert_gone(group: int) -> None:
    """Within seconds nothing of a group runs."""
    limit = time.monotonic() + 60
    while of_group(group):
        assert time.monotonic() < limit, "a worker goes on"
        time.sleep(0.05)


def assert_trained(folder: Path, fingerprint: str) -> None:
    assert tensors.fingerprint(outputs.read_weights(folder / OUTPUTS)) == fingerprint
    assert list((folder / UNFINISHED).glob("*")) == [], "when the stage succeeds, the state goes"
    assert not (folder / WORKERS).exists()


def paused(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A training of two workers, once worker 0 has saved a state and pauses; and worker 1."""
    (folder / PAUSE).touch()
    process = start(folder, *PAUSING)
    await_state(folder, process)
    (other,) = (pid for pid in of_group(process.pid) if pid != process.pid)
    return process, other


def saved_step(folder: Path) -> int:
    """The step of the newest state."""
    return max(int(tensors.read(path).tensors["step"]) for path in (folder / UNFINISHED).glob("*.safetensors"))


def resumed(folder: Path, workers: int, fingerprint: str) -> None:
    """The next run, with another number of workers, goes on from the state and ends in the right weights."""
    (folder / PAUSE).unlink(missing_ok=True)
    set_params(folder, workers=workers)
    assert_resumed(start(folder, *TRAIN), folder, fingerprint)


def assert_resumed(process: subprocess.Popen[str], folder: Path, fingerprint: str) -> None:
    """The training goes on from a state and ends in the right weights."""
    code, _, said = ended(process)
    assert code == 0, said
    assert re.search(r"^resumes at step \d+ of 33 from .cache/training$", said, re.MULTILINE)
    assert_trained(folder, fingerprint)


def await_state(folder: Path, *processes: subprocess.Popen[str]) -> None:
    """Wait until a training has saved a state; none of its processes may end before."""
    while not list((folder / UNFINISHED).glob("*.safetensors")):
        for process in processes:
            assert process.poll() is None, ended(process)
        time.sleep(0.02)


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


# --- started -----------------------------------------------------------------------------------------------------------


def test_workers_in_params_give_the_weights_of_one_process_and_only_worker_0_speaks(folder, fingerprint):
    process = start(folder, *TRAIN)
    code, out, said = ended(process)
    assert code == 0, said
    assert re.fullmatch(rf"outputs/model\.safetensors: {fingerprint}\n4 logged steps, last loss \S+, on cpu\n", out)
    assert [line for line in said.splitlines() if not line.startswith("train: ")] == []
    assert_trained(folder, fingerprint)
    assert of_group(process.pid) == []
    (facts,) = (folder / ".cache" / "environments").rglob("*.json")
    assert json.loads(facts.read_text())["workers"] == 2


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux's list of sockets")
def test_workers_that_are_started_here_listen_nowhere_so_no_stranger_can_take_a_place_or_end_the_training(folder, fingerprint):
    process, other = paused(folder)
    held = {os.readlink(path) for pid in (process.pid, other) for path in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for name in ("tcp", "tcp6", "udp", "udp6") for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]]
    assert [row[1] for row in rows if f"socket:[{row[9]}]" in held] == []
    named = [row.split() for row in Path("/proc/self/net/unix").read_text().splitlines()[1:]]
    assert [row[7] for row in named if f"socket:[{row[6]}]" in held and len(row) > 7] == [], "no name to connect to"
    assert (folder / WORKERS).stat().st_mode & 0o077 == 0, "what they say to each other is for this user alone"
    (folder / PAUSE).unlink()
    assert ended(process)[0] == 0
    assert_trained(folder, fingerprint)


def test_a_program_in_the_current_folder_is_no_worker_of_who_does_not_look_for_modules_there(folder, fingerprint):
    """As the command `pipeline` does not, and `python -P`."""
    files.write_text(folder / "pipeline" / "__init__.py", "open('started', 'w')\n")
    code, _, said = ended(start(folder, sys.executable, "-P", *TRAIN[1:]))
    assert code == 0, said
    assert not (folder / "started").exists()
    assert_trained(folder, fingerprint)


def test_one_process_starts_no_other_and_loads_none_of_what_several_need(folder, fingerprint):
    set_params(folder, workers=1)
    code = (
        "import sys\nfrom pipeline import cli\nsys.argv[1:] = ['train']\ntry: cli.main()\nfinally:\n"
        "    import torch.distributed as dist\n    assert not dist.is_initialized()\n"
        "    print(sorted(name for name in sys.modules if name.startswith('pipeline.workers')))"
    )
    done = ended(start(folder, sys.executable, "-c", code))
    assert done[0] == 0, done
    assert done[1].splitlines()[-1] == "['pipeline.workers', 'pipeline.workers.rank', 'pipeline.workers.session']"
    assert_trained(folder, fingerprint)


def test_torchrun_with_workers_of_unlike_instructions_and_threads_gives_the_weights_of_one_process(folder, fingerprint):
    set_params(folder, workers=1)  # torchrun's number counts
    code, out, said = ended(torchrun(folder, "--standalone", "--nproc-per-node=3", train=("-m", "tests.unlike", "train")))
    assert code == 0, said
    assert out.startswith(f"outputs/model.safetensors: {fingerprint}\n4 logged steps")
    assert out.count("\n") == 2
    assert_trained(folder, fingerprint)


def two_nodes(folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, str]]:
    """How both nodes ended, a worker each: the first in `folder`, the second in `other`."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    rendezvous = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=static", f"--master-port={free_port()}", "--master-addr=127.0.0.1"]
    nodes = [torchrun(at, *rendezvous, f"--node-rank={rank}") for rank, at in enumerate((folder, other))]
    return [ended(node) for node in nodes]


def test_two_nodes_give_the_weights_of_one_process(folder, fingerprint, monkeypatch):
    first, second = two_nodes(folder, folder, monkeypatch)
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert_trained(folder, fingerprint)


@pytest.mark.long
def test_the_scaling_table_times_collectives_where_there_are_several_workers_alone(folder):
    one, two = (scaling._step(folder, 16, workers, 1, 11) for workers in (1, 2))
    assert one.collectives == 0 < two.collectives < two.all


@pytest.mark.fault(45)
def test_a_node_with_other_parameters_is_refused_in_one_line_that_names_the_worker(folder, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    demo.lay_out(other)
    drawn_set(IMAGES).save(other / "data" / "dataset.safetensors")
    set_params(other, train={**SMALL, "lr": 0.02})
    first, second = two_nodes(folder, other, monkeypatch)
    lines = [line for line in first[2].splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: worker 1 disagrees with worker 0: train.lr is 0.02, not 0.01; "
        "give all one params.yaml, one data set and one version of the code"
    ]
    assert first[0] != 0 != second[0]
    assert not (folder / OUTPUTS).exists()


@pytest.mark.long
@pytest.mark.fault(43)
def test_a_node_that_cannot_begin_is_told_by_worker_0_in_one_line(folder, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    demo.lay_out(other)
    set_params(other, train=SMALL)
    first, _ = two_nodes(folder, other, monkeypatch)
    (line,) = [line for line in first[2].splitlines() if line.startswith("error: ")]
    assert re.fullmatch(r"error: worker 1 of 2: data/dataset\.safetensors: not found; run .*", line)


@pytest.mark.long
def test_native_numerics_resume_with_no_other_number_of_workers_and_record_theirs(folder):
    set_params(folder, numerics="native")
    process, _ = paused(folder)
    process.terminate()
    assert ended(process)[0] == 143
    set_params(folder, workers=1)
    code, _, said = ended(start(folder, *TRAIN))
    assert code == 0, said
    assert said.count("of another training (workers): not used") == 2
    assert outputs.read_model(folder / OUTPUTS).provenance.workers == 1


# --- killed, hung, stopped -----------------------------------------------------------------------------------------------


@pytest.mark.fault(43)
def test_a_worker_that_is_killed_ends_the_training_with_one_line_that_names_it_and_another_number_resumes(folder, fingerprint):
    process, other = paused(folder)
    os.kill(other, signal.SIGKILL)
    (folder / PAUSE).unlink()
    code, _, said = ended(process)
    assert code == 2
    (line,) = [line for line in said.splitlines() if not line.startswith("train: ")]
    assert re.fullmatch(r"error: worker 1 of 2 was killed by SIGKILL; run again, which resumes from the last state", line)
    assert of_group(process.pid) == []
    resumed(folder, 1, fingerprint)


@pytest.mark.fault(43)
def test_workers_end_when_worker_0_is_killed_and_another_number_resumes(folder, fingerprint):
    process, _ = paused(folder)
    process.kill()
    assert_gone(process.pid)
    resumed(folder, 3, fingerprint)


@pytest.mark.long
@pytest.mark.fault(44)
def test_a_worker_that_hangs_ends_the_training_after_the_time_out(folder, monkeypatch):
    monkeypatch.setenv("PIPELINE_WORKERS_TIMEOUT", "3")
    process, other = paused(folder)
    os.kill(other, signal.SIGSTOP)
    (folder / PAUSE).unlink()
    code, _, said = ended(process)
    assert code == 2
    (line,) = [line for line in said.splitlines() if not line.startswith("train: ")]
    assert re.fullmatch(
        r"error: worker 1 of 2 died or hangs \(.*\); run again, which resumes from the last state, with a larger "
        r"PIPELINE_WORKERS_TIMEOUT where a step takes more than its 3 seconds",
        line,
    ), line
    assert_gone(process.pid)
    assert saved_step(folder) >= 10


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("number", "to", "code"),
    [(signal.SIGINT, "all", 130), (signal.SIGTERM, "worker 0", 143), (signal.SIGTERM, "worker 1", 143)],
)
def test_a_signal_to_any_worker_ends_all_after_the_same_step_with_a_state(number, to, code, folder):
    process, other = paused(folder)
    if to == "all":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if to == "worker 0" else other, number)
    (folder / PAUSE).unlink()
    exit_code, _, said = ended(process)
    assert exit_code == code, said
    step = re.fullmatch(r"stopped: at step (\d+) of 33; the state is saved, the next run resumes", said.splitlines()[-1])[1]
    assert saved_step(folder) == int(step)
    assert of_group(process.pid) == []


@pytest.mark.long
@pytest.mark.fault(43)
def test_torchrun_starts_killed_workers_again_and_they_resume(folder, fingerprint):
    (folder / PAUSE).touch()
    pausing = ("-m", "tests.pausing", "train", "--checkpoint-seconds", "0")
    process = torchrun(folder, "--standalone", "--nproc-per-node=2", "--max-restarts=1", train=pausing)
    await_state(folder, process)
    (killed,) = [pid for pid in descendants(process.pid) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(killed, signal.SIGKILL)
    (folder / PAUSE).unlink()
    assert_resumed(process, folder, fingerprint)


@pytest.mark.long
@pytest.mark.fault(43)
def test_torchrun_goes_on_with_one_node_when_the_other_is_lost(folder, fingerprint, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    (folder / PAUSE).touch()
    endpoint = f"127.0.0.1:{free_port()}"
    first, second = elastic(folder, endpoint, host=True), elastic(folder, endpoint, host=False)
    await_state(folder, first, second)
    environments = [Path(f"/proc/{pid}/environ").read_bytes() for node in (first, second) for pid in descendants(node.pid)]
    assert [b"\0WORLD_SIZE=2\0" in environment for environment in environments] == [True, True]
    for pid in [second.pid, *descendants(second.pid)]:
        os.kill(pid, signal.SIGKILL)
    (folder / PAUSE).unlink()
    assert_resumed(first, folder, fingerprint)
