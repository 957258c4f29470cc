"""What is at a path, before it is written or read: a file, or something that must be left alone."""

from __future__ import annotations

import stat
from pathlib import Path

from pipeline.errors import UserError

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


LARGEST_BYTES = 2**30
"""What is read of a file at once: a run's files are a thousandth of it."""


def plain(path: Path, largest: int | None = LARGEST_BYTES) -> Path:
    """`path`, once it is known to be a file that can be read whole: no pipe, no device, not endless, of `largest` bytes at most.

    Raises:
        UserError: it is not.
        OSError: it is not there, or may not be looked at.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a plain file")
    if largest is not None and status.st_size > largest:
        raise UserError(f"{path}: {status.st_size} bytes; at most {largest} are read")
    return path
