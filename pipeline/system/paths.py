"""What is at a path, before it is written or read: a file, or something that must be left alone."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from pipeline.system.errors import UserError

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def kind(path: Path) -> str | None:
    """What `path`, or what it links to, is, where that is not a regular file; None for a file and for nothing."""
    try:
        return KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except (FileNotFoundError, NotADirectoryError):
        return None


def only_a_file(path: Path) -> None:
    """Refuse, with a UserError, to write where there is something that is no file. A link to a file counts as one."""
    if other := kind(path):
        raise UserError(f"{path}: is {other}, where a file is to be written; move it away or name another")


def followed(path: Path) -> tuple[Path, str | None]:
    """Where `path` leads, with no link on the way any more, and what is there, as `kind` says it.

    What the user names is followed through links, and another user's would lead into his own files. It is the rule of Linux's
    protected_symlinks, which does not see what is resolved before it is opened. Each link is looked at and followed once: whoever writes
    at `path` itself may find another there a moment later.

    Raises:
        UserError: another user's link, pipe or device is on the way, in a folder where everybody may write.
        OSError: links lead on and on.
    """
    at, left, links, status = Path.cwd(), list(reversed(path.parts)), 0, None
    while left:
        part = left.pop()
        here = at / part
        try:
            status, folder = here.lstat(), at.stat()
        except OSError:
            return here.joinpath(*reversed(left)), None  # whoever opens it is told
        if (
            folder.st_mode & stat.S_IWOTH
            and status.st_uid not in (os.geteuid(), folder.st_uid)
            and not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))
        ):
            what = "a link" if stat.S_ISLNK(status.st_mode) else KINDS.get(stat.S_IFMT(status.st_mode), "something")
            raise UserError(f"{path}: {here} is {what} of another user's ({status.st_uid}) where everybody may write; name another place")
        if stat.S_ISLNK(status.st_mode):
            if (links := links + 1) > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            text = Path(os.readlink(here))
            if at.parts[:2] == ("/", "proc") and not os.path.lexists(at / text):  # of an open pipe, which the kernel alone can follow
                return here, kind(here)
            left += reversed(text.parts)
        else:
            at = at.parent if part == os.pardir else here
    return at, KINDS.get(stat.S_IFMT((status or at.stat()).st_mode))


MOST_LINKS = 40
"""On the way to a file; Linux follows as many."""
LARGEST_BYTES = 2**30
"""What is read of a file at once: a run's files are a thousandth of it."""


@contextlib.contextmanager
def plain(path: Path, most: int | None = LARGEST_BYTES) -> Iterator[tuple[FileIO, int]]:
    """The file at `path`, open for reading, and how many bytes are to be read of it: no pipe, no device, not endless.

    What is open is looked at, not what a name leads to, which may be another thing a moment later. Files of the kernel's, whose
    reading may wait for ever, say that they have no bytes.

    Raises:
        UserError: it is not such a file, or larger than `most` bytes.
        OSError: it is not there, or may not be opened.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:  # of a pipe, it waits for no writer
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: not a plain file")
        if most is not None and status.st_size > most:
            raise UserError(f"{path}: {status.st_size} bytes; at most {most} are read")
        yield file, status.st_size


def read(path: Path, most: int = LARGEST_BYTES) -> bytearray:
    """All bytes of a plain file. Raises as `plain` does."""
    with plain(path, most) as (file, size):
        content, had = bytearray(size), 0
        while had < size and (more := file.readinto(memoryview(content)[had:])):
            had += more
        return content[:had] if had < size else content
