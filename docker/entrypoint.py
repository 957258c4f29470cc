"""What both images start: the command, by default `dvc repro`, in the checkout mounted at /workspace.

Here is only what a container needs and a host does not. Standard library only: the environment below is the image's,
the code that runs is the checkout's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, NoReturn

IMAGE = Path(__file__).resolve().parent.parent
"""The copy of the project that the image holds."""

DVC_WRITES = (".", ".dvc", ".dvc/tmp", ".dvc/cache", ".cache", "data", "outputs", "runs", "dvc.lock")
"""What DVC and the stages write in a checkout, where it is there."""

MARK = "container "
"""How the name of a holder in DVC's rwlock begins when DVC was started here."""

DEFAULTS = {"HOME": "/tmp", "USER": "pipeline", "LOGNAME": "pipeline", "DVC_SITE_CACHE_DIR": "/tmp/dvc"}  # noqa: S108 - the image's own
"""Variables that DVC needs, as the images set them."""


def main(command: list[str]) -> NoReturn:
    """Become `command`; a mistake of the user's is one line and exit code 2."""
    for name, value in DEFAULTS.items():
        os.environ[name] = os.environ.get(name) or value  # `docker run --env HOME=` sets it to nothing
    here = Path.cwd()
    if not is_checkout(here):
        if not os.path.ismount(here) and not any(here.iterdir()):
            here = scratch_copy()
            if command == ["dvc", "repro"]:
                command = ["python", "-m", "pipeline", "demo"]
        elif runs_stages(command):
            fail(
                unwritable(here)
                or f"{here}: no dvc.yaml and params.yaml here; mount a checkout of the project: docker run "
                f'--volume "$PWD:{here}" ..., or mount nothing to see the demo'
            )
        else:  # a folder that holds a received run: the image's own code looks at it
            os.environ["PYTHONPATH"] = str(IMAGE)
    if not git_works(here):
        os.environ["DVC_SYSTEM_CONFIG_DIR"] = str(IMAGE / "docker" / "dvc-without-git")
    if command[:1] != ["dvc"]:
        try:
            os.execvp(command[0], command)  # noqa: S606 - no shell is meant
        except OSError as error:
            fail(f"{command[0]}: {error.strerror}; name a program of the image, such as dvc or python", 127)
    if reason := unwritable(here):
        fail(reason)
    if needs_device(command) and not device_is_cpu(here):
        checked = subprocess.run([sys.executable, "-m", "pipeline", "doctor", "--quiet"])
        if checked.returncode:
            sys.exit(checked.returncode)
    run_dvc(here, command[1:])


def fail(reason: str, code: int = 2) -> NoReturn:
    """Say what the user can fix, and end."""
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(code)


def runs_stages(command: list[str]) -> bool:
    """Whether DVC would run stages, whatever its options."""
    return command[:2] == ["dvc", "repro"] or command[:3] == ["dvc", "exp", "run"]


def needs_device(command: list[str]) -> bool:
    """Whether stages would compute on the device of params.yaml: not with another one in an option, nor a download alone."""
    return runs_stages(command) and not any(word in ("download", "-h", "--help") or "device=" in word for word in command)


def is_checkout(folder: Path) -> bool:
    """Whether the stages could run here."""
    return all(os.path.exists(folder / name) for name in ("dvc.yaml", "params.yaml"))


def scratch_copy() -> Path:
    """A copy of the image's project that this user may write to; go there."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="pipeline-"))
    except OSError as error:
        fail(f"no folder to write to ({error.strerror or error}): add --tmpfs /tmp to docker run")
    shutil.copytree(IMAGE, folder, dirs_exist_ok=True)
    os.chdir(folder)
    return folder


def unwritable(folder: Path) -> str | None:
    """Why DVC and the stages could not write in `folder`, and the `docker run` option that helps."""
    for path in (folder / name for name in DVC_WRITES):
        if path.is_symlink() and not path.exists():
            target = os.path.realpath(path)
            return f"{path} is a link to {target}, which is not mounted here: docker run --volume {target}:{target} ..."
        if not os.path.lexists(path) or os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
            continue
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return f"{path} is mounted read-only and the stages write there: drop ':ro' or 'readonly' from the mount"
        owner = path.stat()
        return (
            f"{path} belongs to {owner.st_uid}:{owner.st_gid} and this container runs as {os.getuid()}:{os.getgid()}, "
            f"which may not write there: docker run --user {owner.st_uid}:{owner.st_gid} ..."
        )
    return None


def git_works(folder: Path) -> bool:
    """Whether Git finds its repository: not without .git, and not in a worktree whose repository is not mounted."""
    with contextlib.suppress(OSError):  # an image without Git
        return subprocess.run(["git", "-C", str(folder), "rev-parse", "--git-dir"], capture_output=True).returncode == 0
    return False


def device_is_cpu(folder: Path) -> bool:
    """Whether params.yaml needs no look at the devices before anything is downloaded."""
    with contextlib.suppress(OSError):
        return re.search(r"(?m)^device:\s*['\"]?cpu\b", (folder / "params.yaml").read_text(errors="replace")) is not None
    return True  # the stages say what is wrong with it


def run_dvc(folder: Path, arguments: list[str]) -> NoReturn:
    """Run DVC in this process, with what DVC leaves out for a container: SIGTERM, and PIDs that come again.

    SIGTERM and SIGHUP count as Ctrl-C. While a stage runs DVC ignores that: the stage got the same signal (tini -g), saves its
    state and fails, and DVC ends in good order. Else DVC is interrupted and lets go of its locks. bash becomes the
    stage's command where sh would wait for it, die of the signal first, and make DVC believe that the stage has ended.
    """
    os.environ["SHELL"] = "/bin/bash"
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        alive = forget_dead_containers(folder / ".dvc" / "tmp") if (folder / ".dvc").is_dir() else None
        sys.argv = [f"{MARK}{socket.gethostname()} {secrets.token_hex(4)}: dvc", *arguments]  # what DVC's rwlock tells of us
        from dvc.cli import main as dvc

        code = dvc(arguments)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    del alive
    sys.exit(code)


def forget_dead_containers(tmp: Path) -> IO[str] | None:
    """Take what killed containers left out of DVC's rwlock; return a handle to keep open while this container lives.

    DVC's rwlock is a file that names its holders by PID. In the next container that PID is somebody else, often DVC
    itself, so DVC would report "busy" for ever. The kernel knows better: every container here shares a lock on one file,
    and who can have it alone knows that all the others are dead. A host's DVC on the same checkout is left in peace.
    """
    with contextlib.suppress(OSError):  # a file system without locks: then nothing is known, and nothing is done
        tmp.mkdir(exist_ok=True)
        alive = open(tmp / "containers.lock", "a")  # noqa: SIM115 - held open
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            with open(tmp / "rwlock.lock", "a") as guard:  # DVC's own guard of the file
                fcntl.flock(guard, fcntl.LOCK_EX)
                clean(tmp / "rwlock")
        fcntl.flock(alive, fcntl.LOCK_SH)
        return alive
    return None


def clean(rwlock: Path) -> None:
    """Drop containers' entries from DVC's rwlock, and the whole file if DVC was killed while writing it."""
    if rwlock.exists() and not rwlock.is_file():
        return  # DVC says what it thinks of it; opening a pipe would wait for its other end
    try:
        found = json.loads(rwlock.read_text())
        kept = {
            "read": {path: left for path, holders in found.get("read", {}).items() if (left := [h for h in holders if not ours(h)])},
            "write": {path: holder for path, holder in found.get("write", {}).items() if not ours(holder)},
        }
    except FileNotFoundError:
        return
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        rwlock.unlink()
        return
    if kept != {"read": {}, "write": {}, **found}:
        part = rwlock.with_name("rwlock.part")
        part.write_text(json.dumps(kept))
        part.replace(rwlock)


def ours(holder: dict[str, Any]) -> bool:
    """Whether DVC started by this file wrote this entry."""
    return str(holder["cmd"]).startswith(MARK)


if __name__ == "__main__":
    main(sys.argv[1:])
