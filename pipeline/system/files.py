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
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.system import paths
from pipeline.system.errors import UserError, printable

NOT_OFFERED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOLCK}
"""How file systems (CIFS, VirtualBox's, FUSE, Lustre) say that they have no fsync of a folder, or no locks: done without."""


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write at `path` into one line that says what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno == errno.EFBIG:
            raise UserError(f"cannot write {where}: {error.strerror}; raise the limit (ulimit -f), or use another file system") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space: {where}: {error.strerror}; free some and run again, nothing was lost") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            owner = _owner(path)
            raise UserError(
                f"cannot write {where}: {error.strerror}; {owner}"
                f"this process is {os.getuid()}:{os.getgid()} (in a container: docker run --user UID:GID)"
            ) from error
        raise UserError(f"cannot write {where}: {error.strerror or error}; no file is torn, run again when that is fixed") from error


def _owner(path: Path) -> str:
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            status = folder.stat()
            return f"{folder} belongs to {status.st_uid}:{status.st_gid}, "
    return ""


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that the names in it survive a power cut, where the file system can and the folder may be read."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise


def _lock(file: IO[bytes], operation: int) -> bool:
    """Lock an open file; False where the file system has no locks."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
        return False
    return True


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, durably; one that is there stays."""
    if not folder.is_dir():
        make_folder(folder.parent)
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
        sync_folder(folder.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` in one rename when the block ends, and vanishes if the block raises.

    Where `path` is a link to a file, the link is replaced: DVC may have put it there, and its target is then an object of DVC's cache.

    Raises:
        UserError: there is something else than a file, or it cannot be written.
    """
    with explained(path):
        paths.only_a_file(path)
        make_folder(path.parent)
        with _claimed(path.with_name(f".{path.name}.part")) as file:
            yield file
            file.flush()
            _sync(file.fileno())
            os.replace(file.name, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def _claimed(part: Path) -> Iterator[IO[bytes]]:
    """The file `part`, empty and ours alone; gone when the block ends, unless it was renamed.

    One name for all writers of a file, so that what a killed one left does not pile up; the kernel's lock tells it from
    what another process is writing now, and that one is waited for. Where the file system has no locks, the name has this
    process's number in it, and what a killed process left stays. So it does where everybody may write, or where a link or another
    user's file has the name: there it is a name that nobody knows before.
    """
    exclusive = 0
    while True:
        if not exclusive and not _ours(part):
            part, exclusive = part.with_name(f"{part.name.removesuffix('.part')}.{os.urandom(8).hex()}.part"), os.O_EXCL
        paths.only_a_file(part)
        with open(part, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | exclusive, 0o666)) as file:  # noqa: B023
            if not exclusive and not _lock(file, fcntl.LOCK_EX) and not part.name.endswith(own := f".{os.getpid()}.part"):
                part.unlink(missing_ok=True)
                part = part.with_name(part.name.removesuffix(".part") + own)
                continue
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


def _ours(part: Path) -> bool:
    """Whether a file of this name is, or would be, this user's alone: no link, in a folder where not everybody may write."""
    if part.parent.stat().st_mode & stat.S_IWOTH:
        return False
    try:
        status = part.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1


def _is(path: Path, file: IO[bytes]) -> bool:
    """Whether `path` still names the open `file`."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(file.fileno()))
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
    write_bytes(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """`content` as indented JSON (NaN is refused)."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def write_output(path: Path, content: bytes) -> None:
    """Write `content` to what the user named: a file, through links and whole or not at all; or a pipe or device, such as /dev/stdout.

    Raises:
        UserError: it is a folder, a socket or a block device, or cannot be written.
    """
    with explained(path):
        at, kind = paths.followed(path)
        if (number := _standard_stream(path)) is not None:
            (sys.stdout, sys.stderr)[number - 1].flush()
            with open(number, "wb", closefd=False) as file:  # the same open file, so that what is printed follows it
                file.write(content)
        elif kind in ("a pipe", "a character device"):
            with open(at, "wb") as file:
                file.write(content)
        elif kind:
            raise UserError(f"{path}: is {kind}, where a file is to be written; name a file")
        else:
            write_bytes(at, content)


def _standard_stream(path: Path) -> int | None:
    """1 or 2 where `path` names what standard output or standard error goes to, whatever that is."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        at = path.stat()
        for number in (1, 2):
            with contextlib.suppress(OSError):
                if os.path.samestat(at, os.fstat(number)):
                    return number
    return None


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


def _opened(lock: Path) -> IO[bytes]:
    """The file of a lock. A link is not followed: who holds the lock that it leads to would wait for himself."""
    return open(lock, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


@contextlib.contextmanager
def only_one(lock: Path, what: str) -> Iterator[None]:
    """Hold `lock` for the block; a second process is refused. The kernel frees it however the holder dies.

    On a file system that has no locks nobody is refused, and it says so.
    """
    with contextlib.ExitStack() as held:
        with explained(lock):
            paths.only_a_file(lock)
            make_folder(lock.parent)
            handle = held.enter_context(_opened(lock))
            try:
                if not _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    said = f"{lock}: this file system has no locks; see to it that {what} runs once only here"
                    print(printable(said), file=sys.stderr, flush=True)
            except BlockingIOError as error:
                raise UserError(f"{what} is already running in this folder (lock {lock}): wait for it or stop it") from error
        yield


@contextlib.contextmanager
def in_turn(lock: Path) -> Iterator[None]:
    """Hold `lock` for the block; a second process waits, where the file system has locks. The kernel frees it however the holder dies."""
    with contextlib.ExitStack() as held:
        with explained(lock):
            paths.only_a_file(lock)
            make_folder(lock.parent)
            _lock(held.enter_context(_opened(lock)), fcntl.LOCK_EX)
        yield
