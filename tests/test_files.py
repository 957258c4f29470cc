"""Durable writes under fault: the n-th call of the operating system fails, the process is killed, the disk is full."""

from __future__ import annotations

import ast
import builtins
import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.dataset import Dataset
from pipeline.runs import keeping, outputs
from pipeline.runs.environments import Facts
from pipeline.runs.outputs import MODEL, Step
from pipeline.system import files
from pipeline.system.errors import UserError
from pipeline.training.checkpoint import Checkpoint, State
from tests import kept_runs
from tests.conftest import ROOT
from tests.steps import drawn_set

CALLS = ("open", "mkdir", "fsync", "replace", "rename")
SAID = {errno.ENOSPC: "no space: ", errno.EIO: "cannot write ", errno.EACCES: "cannot write "}


class Faults:
    """Fails the n-th of the calls through which a file is written, from when it is armed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.error, self.hit = -1, 0, ""
        monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and nothing here can see whether it worked
        for name in CALLS:
            monkeypatch.setattr(os, name, self.failing(f"os.{name}", getattr(os, name)))
        monkeypatch.setattr(fcntl, "flock", self.failing("flock", fcntl.flock))
        monkeypatch.setattr(files, "open", self.opened, raising=False)

    def arm(self, call: int, error: int) -> None:
        self.left, self.error, self.hit = call, error, ""

    def disarm(self) -> str:
        """The call that failed, or nothing."""
        self.left = -1
        return self.hit

    def failing(self, name: str, call: Callable) -> Callable:
        def instead(*arguments, **named):
            self.left -= 1
            if self.left == 0:
                self.hit = name
                raise OSError(self.error, os.strerror(self.error))
            return call(*arguments, **named)

        return instead

    def opened(self, *arguments, **named):
        """A file whose writing may fail too, half-way, as on a full disk."""
        file = self.failing("open", builtins.open)(*arguments, **named)
        write = file.write

        def half_written(content: bytes) -> int:
            write(content[: len(content) // 2])
            return self.failing("write", lambda rest: write(rest))(content[len(content) // 2 :])

        return Wrapped(file, write=half_written, flush=self.failing("flush", file.flush), truncate=self.failing("truncate", file.truncate))


class Wrapped:
    """An open file with some of its methods replaced."""

    def __init__(self, file, **methods) -> None:
        self.__dict__.update(methods, file=file)

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.file.close()


@pytest.fixture
def faults(monkeypatch):
    return Faults(monkeypatch)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below `folder` by path, hidden parts left out; a folder is None. A kept run's longer name counts as its usual one."""
    return {
        re.sub(r"(-[0-9a-f]{8})[0-9a-f]{8}(?=/|$)", r"\1", str(path.relative_to(folder))): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not any(part.endswith(".part") for part in path.relative_to(folder).parts)
    }


def a_state(step: int) -> State:
    return State(step, [Step(step, 1, 0.5)], {"weights": np.full(9, step, np.float32), "velocity": np.zeros(9, np.float32)})


def keep_a_run(folder: Path) -> None:
    kept_runs.write_outputs(folder / "outputs")
    keeping.keep(folder / "outputs", folder / "runs", Facts(threads=1))


WRITES: dict[str, Callable[[Path, int], object]] = {
    "a text": lambda folder, n: files.write_text(folder / "new" / "text", f"content {n}"),
    "json": lambda folder, n: files.write_json(folder / "metrics.json", {"accuracy": n}),
    "a training": lambda folder, n: outputs.write_training(
        folder, {"w": np.full(1000, n, np.float32)}, [Step(1, 1, n)], kept_runs.provenance(seed=n)
    ),
    "a data set": lambda folder, n: drawn_set(2, f"set {n}").save(folder / "dataset.safetensors"),
    "a kept run": lambda folder, n: keep_a_run(folder),
}


@pytest.mark.fault(17)
@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("what", WRITES)
def test_whichever_call_fails_a_file_is_absent_old_or_complete_and_the_error_is_one_line(what, there_before, faults, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no training is noted
    wanted = {}
    for n in (1, 2):
        WRITES[what](tmp_path / str(n), n)
        wanted[n] = contents(tmp_path / str(n))
    for error, said in SAID.items():
        hits = [""]
        while len(hits) == 1 or hits[-1]:
            folder = tmp_path / f"{error}-{len(hits)}"
            if there_before:
                WRITES[what](folder, 1)
            before = contents(folder)
            faults.arm(len(hits), error)
            reason = failure_of(lambda folder=folder: WRITES[what](folder, 2))
            hits.append(faults.disarm())
            if reason is None:
                unreadable = (hits[-1], error) == ("os.open", errno.EACCES)  # a folder that may be written and not read: no fsync of it
                beside = (what, hits[-1]) == ("a kept run", "os.open")  # the run that stands there cannot be read: kept again, beside it
                assert not hits[-1] or unreadable or beside, "success is reported if and only if nothing failed"
                assert contents(folder) == wanted[2]
            else:
                assert reason.startswith(said) or f": cannot be read: {os.strerror(error)}" in reason  # what was written is read once
                assert str(folder) in reason
                assert "\n" not in reason
            for path, content in contents(folder).items():
                assert content in (None, before.get(path), wanted[2][path]), (hits[-1], path)
            WRITES[what](folder, 2)
            assert contents(folder) == wanted[2], "and the next write succeeds"
            assert not list(folder.rglob(".*.part")), "and leaves nothing behind"
        assert set(hits) >= {"open", "flock", "truncate", "write", "flush", "os.fsync", "os.replace"} or what == "a finished download"


def failure_of(write: Callable[[], object]) -> str | None:
    """What `write` raises, or None."""
    try:
        write()
    except UserError as reason:
        return str(reason)
    return None


@pytest.mark.fault(17)
def test_whichever_call_fails_while_a_state_is_saved_one_whole_state_can_be_loaded(faults, tmp_path):
    for error in SAID:
        call, hit = 0, "a call"
        while hit:
            call += 1
            checkpoint = Checkpoint(tmp_path / f"{error}-{call}", {"seed": 0})
            checkpoint.save(a_state(1))
            checkpoint.save(a_state(2))
            faults.arm(call, error)
            reason = failure_of(lambda checkpoint=checkpoint: checkpoint.save(a_state(3)))
            hit = faults.disarm()
            assert bool(reason) == bool(hit) or (hit, error) == ("os.open", errno.EACCES)
            loaded = Checkpoint(checkpoint.folder, {"seed": 0}).load()
            assert loaded.step in ((2, 3) if hit else (3,))
            assert (loaded.tensors["weights"] == loaded.step).all()
            assert loaded.history == [Step(loaded.step, 1, 0.5)]
        assert call > 7


def killed(code: str, call: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process that is killed the moment before its first `call` of the os module, or after it."""
    moment, _, name = call.partition(" ")
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    wrapped = f"lambda *a, **k: ({kill}, real(*a, **k))" if moment == "before" else f"lambda *a, **k: (real(*a, **k), {kill})"
    setup = f"import os, signal\nfrom pathlib import Path\nfrom pipeline.system import files\nreal = os.{name}\nos.{name} = {wrapped}\n"
    return subprocess.run([sys.executable, "-c", setup + code], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    ("moment", "expected"),
    [("before fsync", "old"), ("after fsync", "old"), ("before replace", "old"), ("after replace", "new")],
)
def test_a_process_killed_while_writing_leaves_the_old_file_or_the_new_one(moment, expected, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    done = killed("files.write_text(Path('file'), 'new')", moment, tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == expected
    assert {p.name for p in tmp_path.iterdir()} <= {"file", ".file.part"}
    files.write_text(path, "newer")
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "what the killed process left is taken over"
    assert path.read_text() == "newer"


@pytest.mark.fault(13)
def test_a_process_killed_while_publishing_a_folder_leaves_no_folder_or_a_whole_one(tmp_path):
    code = "with files.publishing(Path('runs/a')) as part:\n    [files.write_text(part / name, name) for name in 'xyz']"
    assert killed(code, "before rename", tmp_path).returncode == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [".a.part"]
    assert killed(code, "after rename", tmp_path).returncode == -signal.SIGKILL
    assert {p.name: sorted(q.name for q in p.iterdir()) for p in (tmp_path / "runs").iterdir()} == {"a": ["x", "y", "z"]}


def test_two_processes_that_write_one_file_write_it_one_after_the_other(tmp_path):
    code = "import sys\nfrom pathlib import Path\nfrom pipeline.system import files\n"
    code += "for _ in range(200):\n    files.write_text(Path('file'), sys.argv[1] * 10_000)"
    both = [
        subprocess.Popen([sys.executable, "-c", code, letter], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}) for letter in "ab"
    ]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "file").read_text() in ("a" * 10_000, "b" * 10_000)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def a_full_disk(tmp_path: Path) -> tuple[list[str], Path]:
    """What to put before a command so that `folder` is a file system of 64 KiB, and that folder; skips where it cannot be had."""
    folder = tmp_path / "disk"
    folder.mkdir()
    script = f'mount -t tmpfs -o size=64k tmpfs {folder} && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if os.geteuid() == 0:
        prefix = ["unshare", "--mount", *prefix[4:]]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    return prefix, folder


@pytest.mark.fault(17)
def test_on_a_full_disk_the_old_file_stays_and_the_error_names_the_path(tmp_path):
    prefix, folder = a_full_disk(tmp_path)
    code = "import sys\nfrom pathlib import Path\nfrom pipeline.system import files\npath = Path(sys.argv[1])\n"
    code += "files.write_text(path, 'old')\ntry: files.write_text(path, 'new' * 40_000)\nexcept Exception as error: print(error)\n"
    code += "print(path.read_text(), [p.name for p in path.parent.iterdir()])"
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code, str(folder / "file")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    said, left = done.stdout.splitlines()
    assert said == f"no space: {folder / 'file'}: No space left on device; free some and run again, nothing was lost"
    assert left == "old ['file']"


@pytest.mark.fault(17)
def test_a_stage_that_cannot_write_its_output_fails_with_one_line_and_leaves_no_part_of_it(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    drawn_set(64).save(tmp_path / "data" / "dataset.safetensors")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / MODEL).write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "train"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),  # the model has 249,000
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: cannot write outputs/model.safetensors: File too large; raise the limit (ulimit -f), or use another file system"
    )
    assert done.stdout == ""
    assert {p.name: p.read_bytes() for p in (tmp_path / "outputs").iterdir()} == {MODEL: b"old"}


@pytest.mark.fault(31)
def test_a_folder_that_may_not_be_written_is_one_line_with_its_owner_and_ours(faults, tmp_path):
    faults.arm(1, errno.EACCES)
    with pytest.raises(
        UserError, match=r"cannot write .*: Permission denied; .* belongs to \d+:\d+, this process is \d+:\d+ .*--user UID:GID"
    ):
        files.write_text(tmp_path / "file", "text")


@pytest.mark.fault(20)
def test_what_is_no_plain_file_or_an_endless_one_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="not a plain file"):
        outputs.read_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "metrics.json")
    with pytest.raises(UserError, match="not a plain file"):
        outputs.read_metrics(tmp_path)
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="1099511627776 bytes; at most 1073741824 are read"):
        outputs.read_model(tmp_path)


def test_a_lock_is_refused_while_another_process_has_it_and_free_when_that_one_is_killed(tmp_path):
    code = "from pathlib import Path\nfrom pipeline.system import files\n"
    code += "with files.only_one(Path('a.lock'), 'train'): print('mine', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"mine\n"
    with (
        pytest.raises(UserError, match=r"train is already running in this folder .*wait for it or stop it"),
        files.only_one(tmp_path / "a.lock", "train"),
    ):
        pass
    holder.kill()
    holder.wait()
    with files.only_one(tmp_path / "a.lock", "train"):
        pass


@pytest.mark.parametrize("hold", [lambda lock: files.only_one(lock, "train"), files.in_turn])
def test_a_lock_that_is_a_link_is_refused_and_not_waited_for(hold, tmp_path):
    (tmp_path / "a.lock").symlink_to("b.lock")
    with (
        files.in_turn(tmp_path / "b.lock"),
        pytest.raises(UserError, match=r"cannot write .*a\.lock: Too many levels of symbolic links"),
        hold(tmp_path / "a.lock"),
    ):
        pass
    (tmp_path / "b.lock").unlink()
    with pytest.raises(UserError, match="Too many levels of symbolic links"), hold(tmp_path / "a.lock"):
        pass
    assert not (tmp_path / "b.lock").exists()


def test_every_file_that_the_project_writes_is_written_by_the_module_for_it():
    for path in (ROOT / "pipeline").rglob("*.py"):
        if path.name in ("files.py", "private.py"):  # the secret is made whole by a link, outside every workspace
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func)
            modes = [
                a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
            writes = function.endswith(("open", "fdopen")) and any(
                set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes
            )
            writes |= function.split(".")[-1] in ("write_text", "write_bytes") and not function.startswith("files.")
            writes |= function in ("os.replace", "os.rename", "np.save", "torch.save", "json.dump", "pickle.dump")
            writes |= function.startswith(("shutil.copy", "shutil.move"))
            writes |= function.endswith((".rename", ".replace")) and len(node.args) == 1 and not node.keywords  # Path's, not str's
            writes &= not any(ast.unparse(argument) in ("os.devnull", "number") for argument in node.args)  # a stream that is open already
            assert not writes, f"{path}:{node.lineno}: {function}"


def test_a_data_set_written_twice_is_the_same_bytes(tmp_path):
    Dataset.save(drawn_set(4), tmp_path / "a")
    Dataset.save(drawn_set(4), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
