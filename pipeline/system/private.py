"""What only this user has on this machine: a secret of 32 bytes, in a folder that nobody else may enter."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_BYTES = 32


def secret() -> bytes:
    """The user's secret, made the first time. Where there is no place that is the user's alone, another one for each process.

    What is sealed with it was written by this user's own processes: a file that came from elsewhere, whoever put it where it is, has no
    valid seal.
    """
    with contextlib.suppress(OSError, RuntimeError):  # the latter of a user who has no home
        named = Path(os.environ.get("XDG_STATE_HOME", ""))  # a relative one is to be ignored: it would be in whichever folder this is
        folder = (named if named.is_absolute() else Path.home() / ".local" / "state") / "pipeline"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_ISDIR((found := folder.lstat()).st_mode) and _alone(found):
            with contextlib.suppress(FileExistsError):
                new = os.open(own := folder / f".{os.urandom(8).hex()}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(new, "wb") as file:
                    file.write(os.urandom(_BYTES))
                try:
                    os.link(own, folder / "secret")  # whole, or not at all; the first one stays
                finally:
                    own.unlink()
            with open(os.open(folder / "secret", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                status, content = os.fstat(file.fileno()), file.read(_BYTES)
            if stat.S_ISREG(status.st_mode) and _alone(status) and len(content) == _BYTES:
                return content
    return os.urandom(_BYTES)


def _alone(status: os.stat_result) -> bool:
    """Whether only this user may read and write it."""
    return status.st_uid == os.getuid() and not status.st_mode & 0o077
