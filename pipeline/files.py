"""Durable, whole-or-nothing writes: every file of this project is absent, old or complete, whatever happens.

The method is the usual one: a temporary file in the same folder, flush, fsync, rename over the old one, fsync of the
folder. A crash at any point leaves the old file or the new one, and at worst a hidden `.part` beside it, which the next
write of the same file takes over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write at `path` into one line that says what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"no space: {where}: {error.strerror}; free some and run again, nothing was lost") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            owner = _owner(path)
            raise UserError(
                f"cannot write {where}: {error.strerror}; {owner}"
                f"this process is {os.getuid()}:{os.getgid()} (in a container: docker run --user UID:GID)"
            ) from error
        raise UserError(f"cannot write {where}: {error.strerror or error}; no file is torn, run again when that is mended") from error


def _owner(path: Path) -> str:
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            found = folder.stat()
            return f"{folder} belongs to {found.st_uid}:{found.st_gid}, "
    return ""


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that the names in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, durably; one that is there stays."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` in one rename when the block ends, and vanishes if the block raises."""
    with explained(path):
        make_folder(path.parent)
        part = path.with_name(f".{path.name}.part")
        with _claimed(part) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def _claimed(part: Path) -> Iterator[IO[bytes]]:
    """The file `part`, empty and ours alone; gone when the block ends, unless it was renamed.

    One name for all writers of a file, so that what a killed one left does not pile up; the kernel's lock tells it from
    what another process is writing now, and that one is waited for.
    """
    while True:
        with open(part, "ab") as file:  # empties nothing before it is ours
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is(part, file):
                continue  # it was renamed while we waited
            try:
                file.truncate(0)
                yield file
            finally:
                with contextlib.suppress(OSError):
                    if _is(part, file):
                        part.unlink()
            return


def _is(path: Path, file: IO[bytes]) -> bool:
    """Whether `path` still names the open `file`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 `content` to `path`, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON (NaN is refused), whole or not at all."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """A new folder, hidden beside `folder`, that becomes `folder` in one rename when the block ends.

    The block writes in it through this module. `folder` must not exist, and the caller holds a lock (`only_one`): what a
    killed process left is discarded.
    """
    with explained(folder):
        make_folder(folder.parent)
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir()
            yield part
            os.rename(part, folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def only_one(lock: Path, what: str) -> Iterator[None]:
    """Hold `lock` for the block; a second process is refused. The kernel frees it however the holder dies."""
    with contextlib.ExitStack() as held:
        with explained(lock):
            make_folder(lock.parent)
            handle = held.enter_context(open(lock, "ab"))
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{what} is already running in this folder (lock {lock}): wait for it or stop it") from error
        yield


@contextlib.contextmanager
def in_turn(lock: Path) -> Iterator[None]:
    """Hold `lock` for the block; a second process waits. The kernel frees it however the holder dies."""
    with contextlib.ExitStack() as held:
        with explained(lock):
            make_folder(lock.parent)
            fcntl.flock(held.enter_context(open(lock, "ab")), fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def growing(path: Path, keep: int) -> Iterator[Callable[[bytes], None]]:
    """A file that lasts while it grows, so that a download goes on after a crash: its first `keep` bytes, then what the block writes.

    The block calls the yielded function with bytes. Each call reaches the operating system at once.
    """
    with explained(path):
        make_folder(path.parent)
        file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed below; only the writing is explained

    def write(content: bytes) -> None:
        with explained(path):
            while content:
                content = content[file.write(content) :]

    with file:
        with explained(path):
            file.truncate(keep)
        yield write


def finish(part: Path, path: Path) -> None:
    """Give the finished file `part` the name `path` beside it, durably."""
    with explained(path):
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)


LARGEST_BYTES = 2**30
"""What is read of a file at once: a run's files are a thousandth of it."""


def plain(path: Path) -> Path:
    """`path`, once it is known to be a file that can be read whole: no pipe, no device, not endless.

    Raises:
        UserError: it is not.
        OSError: it is not there, or may not be looked at.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: not a plain file")
    if found.st_size > LARGEST_BYTES:
        raise UserError(f"{path}: {found.st_size} bytes; at most {LARGEST_BYTES} are read")
    return path
