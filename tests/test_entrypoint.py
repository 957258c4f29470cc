"""What the images' entry point decides, tried without an engine."""

import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "docker" / "entrypoint.py"
spec = importlib.util.spec_from_file_location("entrypoint", SOURCE)
entrypoint = importlib.util.module_from_spec(spec)
spec.loader.exec_module(entrypoint)

DEAD = {"pid": 1, "cmd": "container 0123456789ab 01234567: dvc repro"}  # a PID that is always somebody's
HOST = {"pid": 4711, "cmd": "dvc repro"}


@pytest.fixture
def tmp(tmp_path):
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    return tmp_path / ".dvc" / "tmp"


def write(tmp: Path, read: dict, write: dict) -> None:
    (tmp / "rwlock").write_text(json.dumps({"read": read, "write": write}))


@pytest.mark.fault(23)
def test_what_a_killed_container_held_is_forgotten_and_what_the_hosts_dvc_holds_is_not(tmp):
    write(tmp, {"/w/data": [DEAD, HOST], "/w/pipeline": [DEAD]}, {"/w/outputs": DEAD, "/home/me/outputs": HOST})
    entrypoint.forget_dead_containers(tmp)
    assert json.loads((tmp / "rwlock").read_text()) == {"read": {"/w/data": [HOST]}, "write": {"/home/me/outputs": HOST}}


@pytest.mark.fault(23)
def test_what_a_living_container_holds_is_left_in_place(tmp):
    write(tmp, {}, {"/w/outputs": DEAD})
    with entrypoint.forget_dead_containers(tmp):
        write(tmp, {}, {"/w/outputs": DEAD})
        entrypoint.forget_dead_containers(tmp)
        assert json.loads((tmp / "rwlock").read_text())["write"] == {"/w/outputs": DEAD}
    entrypoint.forget_dead_containers(tmp)
    assert json.loads((tmp / "rwlock").read_text())["write"] == {}


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    "torn",
    ["", '{"write": {"/w/out', "[]", "7", '{"write": {"/w/outputs": 7}}', '{"write": {"/w/outputs": {"pid": 1}}}', '{"read": {"/w": [[]]}}',
     '{"read": {"/w": [{}]}}', '{"read": 7}', '{"read": {"/w": 7}}', "[" * 100_000, "\udcff"],
    ids=lambda torn: ascii(torn[:30]),
)  # fmt: skip
def test_a_lock_file_torn_by_a_kill_or_strange_is_removed(tmp, torn):
    (tmp / "rwlock").write_text(torn, errors="surrogateescape")
    entrypoint.forget_dead_containers(tmp)
    assert not (tmp / "rwlock").exists()


def test_a_pipe_in_the_place_of_the_lock_file_is_left_to_dvc(tmp):
    os.mkfifo(tmp / "rwlock")
    entrypoint.forget_dead_containers(tmp)
    assert (tmp / "rwlock").is_fifo()


def test_the_lock_file_is_not_touched_while_dvc_edits_it(tmp):
    write(tmp, {}, {"/w/outputs": DEAD})
    code = f"import runpy; e = runpy.run_path({str(SOURCE)!r}); e['forget_dead_containers'](__import__('pathlib').Path({str(tmp)!r}))"
    with open(tmp / "rwlock.lock", "a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        cleaner = subprocess.Popen([sys.executable, "-c", code])
        with pytest.raises(subprocess.TimeoutExpired):
            cleaner.wait(0.5)
        assert json.loads((tmp / "rwlock").read_text())["write"] == {"/w/outputs": DEAD}
    assert cleaner.wait(20) == 0
    assert json.loads((tmp / "rwlock").read_text())["write"] == {}


@pytest.fixture
def project(tmp):
    """A DVC project of one stage, and a function that runs it."""
    root = tmp.parent.parent
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (root / "dvc.yaml").write_text("stages:\n  make:\n    cmd: echo made > made\n    outs:\n      - made\n")

    def repro() -> subprocess.CompletedProcess:
        environment = os.environ | {"DVC_SITE_CACHE_DIR": str(root / "site")}
        return subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=root, capture_output=True, text=True, env=environment)

    return root, repro


@pytest.mark.fault(23)
@pytest.mark.parametrize("torn", [False, True], ids=["a PID that came again", "a torn file"])
def test_dvc_alone_refuses_what_a_kill_left_in_its_lock_file_and_goes_on_after_the_entry_point(tmp, project, torn):
    root, repro = project
    write(tmp, {}, {str(root / "made"): DEAD})
    if torn:
        (tmp / "rwlock").write_text("")
    before = repro()
    entrypoint.forget_dead_containers(tmp)
    after = repro()
    assert (before.returncode, ("corrupted" if torn else "is busy") in before.stderr) == (255, True)
    assert (after.returncode, (root / "made").read_text()) == (0, "made\n")


@pytest.mark.fault(23)
def test_a_dvc_lock_torn_by_a_kill_is_named_and_the_run_succeeds_once_it_is_deleted(project):
    root, repro = project
    assert repro().returncode == 0
    whole = (root / "dvc.lock").read_text()
    (root / "dvc.lock").write_text(whole[: whole.index("outs:") + 3])
    torn = repro()
    assert (torn.returncode != 0, "dvc.lock" in torn.stderr) == (True, True)
    (root / "dvc.lock").unlink()
    assert repro().returncode == 0
    assert (root / "dvc.lock").read_text() == whole


@pytest.mark.fault(31)
def test_a_workspace_that_can_be_written_is_not_complained_about(tmp_path):
    assert entrypoint.unwritable(tmp_path) is None


@pytest.mark.fault(31)
def test_a_folder_of_another_user_is_named_with_the_right_user_option(tmp_path, monkeypatch):
    (tmp_path / "outputs").mkdir()
    monkeypatch.setattr(entrypoint.os, "access", lambda path, mode: path.name != "outputs")
    owner = f"{os.getuid()}:{os.getgid()}"
    assert entrypoint.unwritable(tmp_path) == (
        f"{tmp_path}/outputs belongs to {owner} and this container runs as {owner}, "
        f"which may not write there: docker run --user {owner} ..."
    )


@pytest.mark.fault(31)
def test_a_link_to_what_is_not_mounted_is_named_with_the_mount_that_is_missing(tmp_path):
    (tmp_path / "data").symlink_to("/elsewhere/data")
    assert entrypoint.unwritable(tmp_path) == (
        f"{tmp_path}/data is a link to /elsewhere/data, which is not mounted here: docker run --volume /elsewhere/data:/elsewhere/data ..."
    )


@pytest.mark.parametrize("name", ["no-such-program", "/etc/passwd"])
def test_a_command_that_cannot_be_started_is_one_line_and_exit_code_127(name, tmp_path):
    (tmp_path / "file").touch()
    done = subprocess.run([sys.executable, SOURCE, name], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (127, 1)
    assert done.stderr.startswith(f"error: {name}: ")


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("dvc repro", True),
        ("dvc repro --force train", True),
        ("dvc exp run -n other -S seed=1", True),
        ("dvc exp run -S device=cpu", False),
        ("dvc repro --single-item download", False),
        ("dvc repro --help", False),
        ("dvc exp show", False),
        ("python -m pipeline train", False),
    ],
)
def test_the_device_is_looked_at_before_whatever_computes_on_it(command, needed):
    assert entrypoint.needs_device(command.split()) is needed


@pytest.mark.fault(32)
def test_git_works_in_a_repository_and_not_in_a_worktree_whose_repository_is_elsewhere(tmp_path):
    repository, worktree, plain = (tmp_path / name for name in ("repository", "worktree", "plain"))
    for folder in (repository, worktree, plain):
        folder.mkdir()
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    (worktree / ".git").write_text("gitdir: /not/mounted/here/.git/worktrees/worktree\n")
    assert [entrypoint.git_works(folder) for folder in (repository, worktree, plain)] == [True, False, False]


@pytest.mark.parametrize(
    ("text", "is_cpu"),
    [("device: cpu  # or cuda\n", True), ("device: 'cpu'\n", True), ("seed: 0\ndevice: cuda:1\n", False), ("# device: cpu\n", False)],
)
def test_only_a_device_other_than_the_cpu_is_looked_at_before_the_stages(tmp_path, text, is_cpu):
    (tmp_path / "params.yaml").write_text(text)
    assert entrypoint.device_is_cpu(tmp_path) is is_cpu


@pytest.mark.fault(56)
def test_a_variable_that_dvc_needs_and_that_is_set_to_nothing_is_as_in_the_image(tmp_path):
    image = (SOURCE.parent.parent / "Dockerfile.cuda").read_text()
    for name, value in entrypoint.DEFAULTS.items():
        assert f"{name}={value}" in image
    show = "import os; print([os.environ[name] for name in ('HOME', 'USER', 'LOGNAME', 'DVC_SITE_CACHE_DIR')])"
    environment = os.environ | {"HOME": "", "USER": "", "LOGNAME": "me", "DVC_SITE_CACHE_DIR": ""}
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, SOURCE, sys.executable, "-c", show], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("['/tmp', 'pipeline', 'me', '/tmp/dvc']\n", "")


@pytest.mark.fault(53)
def test_an_image_without_git_works_as_without_a_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert entrypoint.git_works(tmp_path) is False


@pytest.mark.fault(61)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_container_whose_terminal_is_closed_ends_as_one_that_is_stopped(number, tmp_path):
    code = "import os, runpy, sys, types\n"
    code += f"entry = runpy.run_path({str(SOURCE)!r})\n"
    code += "wait = lambda _: (print('here', flush=True), __import__('time').sleep(60))\n"
    code += "sys.modules['dvc'] = types.ModuleType('dvc'); sys.modules['dvc.cli'] = types.SimpleNamespace(main=wait)\n"
    code += "entry['run_dvc'](__import__('pathlib').Path('.'), ['repro'])"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    assert process.wait(20) == 128 + signal.SIGTERM
    process.stdout.close()


def test_a_params_yaml_that_cannot_be_read_is_left_to_the_stages(tmp_path):
    (tmp_path / "params.yaml").mkdir()
    assert entrypoint.device_is_cpu(tmp_path) is True
