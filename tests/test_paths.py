"""What is at a path, and what its file system offers: nothing but a file is ever replaced, and what is optional is done without."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.system import files
from pipeline.system.errors import UserError
from tests.conftest import ROOT


def device(path: Path, kind: int, major: int, minor: int) -> None:
    try:
        os.mknod(path, kind | 0o666, os.makedev(major, minor))
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if kind == stat.S_IFBLK and path.exists():
            return  # no such disk; nobody will open it
        pytest.skip(f"no device can be made here: {error.strerror}")


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):  # a socket's path must be short
        one.bind(path.name)


MAKE: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a socket": bound,
    "a character device": lambda path: device(path, stat.S_IFCHR, 1, 3),
    "a block device": lambda path: device(path, stat.S_IFBLK, 259, 4095),
}


@pytest.mark.fault(51)
@pytest.mark.parametrize("by_link", [False, True], ids=["itself", "by a link"])
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_text(path, "new"),
        lambda path: files.only_one(path, "train").__enter__(),
        lambda path: files.in_turn(path).__enter__(),
    ],
    ids=["replacing", "only_one", "in_turn"],
)
def test_where_something_else_than_a_file_is_nothing_is_replaced_and_one_line_says_what_it_is(write, kind, by_link, tmp_path):
    (tmp_path / "part").touch()
    MAKE[kind](tmp_path / "it")
    (tmp_path / "link").symlink_to("it")
    path = tmp_path / ("link" if by_link else "it")
    before = path.lstat()
    with pytest.raises(UserError) as refusal:
        write(path)
    assert str(refusal.value) == f"{path}: is {kind}, where a file is to be written; move it away or name another"
    after = path.lstat()
    assert (after.st_mode, after.st_ino, after.st_rdev) == (before.st_mode, before.st_ino, before.st_rdev)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["it", "link", "part"]


@pytest.mark.fault(51)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_among_the_projects_own_files_is_replaced_and_its_target_never_written(dangling, tmp_path):
    """DVC may link outputs to the objects in its cache, which must stay what their names say."""
    if not dangling:
        (tmp_path / "object").write_text("old")
    (tmp_path / "output").symlink_to("object")
    files.write_text(tmp_path / "output", "new")
    assert not (tmp_path / "output").is_symlink()
    assert (tmp_path / "output").read_text() == "new"
    assert (tmp_path / "object").exists() is not dangling
    assert dangling or (tmp_path / "object").read_text() == "old"


@pytest.mark.fault(51)
@pytest.mark.parametrize("dangling", [False, True])
def test_an_output_that_the_user_names_by_a_link_goes_into_what_the_link_names(dangling, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    if not dangling:
        (tmp_path / "elsewhere" / "page").write_text("old")
    (tmp_path / "link").symlink_to("elsewhere/page")
    files.write_output(tmp_path / "link", b"new")
    assert os.readlink(tmp_path / "link") == "elsewhere/page"
    assert (tmp_path / "elsewhere" / "page").read_text() == "new"


@pytest.mark.fault(51)
def test_an_output_that_the_user_names_goes_into_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    files.write_output(tmp_path / "pipe", b"x" * 200_000)
    reader.join()
    assert received == [b"x" * 200_000]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.fault(51)
def test_an_output_that_the_user_names_goes_into_a_device_which_stays_one(tmp_path):
    MAKE["a character device"](tmp_path / "null")
    files.write_output(tmp_path / "null", b"page")
    assert (tmp_path / "null").is_char_device()
    with pytest.raises(UserError, match=r"^no space: /dev/full: No space left on device"):
        files.write_output(Path("/dev/full"), b"page")
    assert Path("/dev/full").is_char_device()


@pytest.mark.fault(51)
@pytest.mark.parametrize("kind", ["a folder", "a socket", "a block device"])
def test_an_output_that_the_user_names_never_goes_into_what_cannot_hold_it(kind, tmp_path):
    MAKE[kind](tmp_path / "it")
    with pytest.raises(UserError) as refusal:
        files.write_output(tmp_path / "it", b"page")
    assert str(refusal.value) == f"{tmp_path / 'it'}: is {kind}, where a file is to be written; name a file"


@pytest.mark.fault(51)
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "output"])
@pytest.mark.parametrize("to", ["a file", "a pipe"])
def test_an_output_named_as_standard_output_stands_in_its_place_among_what_is_printed(name, to, tmp_path):
    code = "import sys\nfrom pathlib import Path\nfrom pipeline.system import files\n"
    code += f"print('before')\nfiles.write_output(Path({name!r}), b'page\\n')\nprint('after')"
    if name == "output" and to == "a pipe":
        os.symlink("/dev/stdout", tmp_path / "output")
    with open(tmp_path / "output" if to == "a file" else os.devnull, "wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
            stdout=file if to == "a file" else subprocess.PIPE,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    printed = (tmp_path / "output").read_bytes() if to == "a file" else done.stdout
    assert printed == b"before\npage\nafter\n"


@pytest.mark.fault(51)
def test_a_file_where_a_folder_must_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"^cannot write {tmp_path}/file: Not a directory"):
        files.write_text(tmp_path / "file" / "new", "text")
    assert (tmp_path / "file").read_bytes() == b""


# --- what the file system does not offer ---------------------------------------------------------------------------------

FSYNC = ["EINVAL", "ENOTSUP", "ENOSYS"]
LOCKS = ["ENOLCK", "ENOTSUP", "ENOSYS"]


def refuse(monkeypatch: pytest.MonkeyPatch, module: object, call: str, error: str) -> None:
    number = getattr(errno, error)

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, call, refused)


@pytest.mark.fault(52)
@pytest.mark.parametrize("error", FSYNC)
def test_a_file_system_that_cannot_fsync_holds_whole_files_all_the_same(error, tmp_path, monkeypatch):
    refuse(monkeypatch, os, "fsync", error)
    files.write_text(tmp_path / "new" / "file", "text")
    with files.publishing(tmp_path / "run") as part:
        files.write_text(part / "a", "a")
    assert {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()} == {
        "new/file": "text",
        "run/a": "a",
    }


@pytest.mark.fault(52)
def test_a_disk_that_fails_to_fsync_is_an_error_for_a_folder_and_for_a_file(tmp_path, monkeypatch):
    refuse(monkeypatch, os, "fsync", "EIO")
    with pytest.raises(UserError, match="Input/output error"):
        files.write_text(tmp_path / "file", "text")
    with pytest.raises(OSError, match="Input/output error"):
        files.sync_folder(tmp_path)


@pytest.mark.fault(52)
@pytest.mark.parametrize("error", LOCKS)
def test_on_a_file_system_without_locks_files_are_written_and_it_is_said_that_nobody_is_refused(error, tmp_path, monkeypatch, capsys):
    refuse(monkeypatch, fcntl, "flock", error)
    with files.only_one(tmp_path / "a.lock", "train"), files.in_turn(tmp_path / "b.lock"):
        files.write_text(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.lock", "b.lock", "file"]
    said = f"{tmp_path}/a.lock: this file system has no locks; see to it that train runs once only here\n"
    assert capsys.readouterr().err == said


@pytest.mark.fault(52)
def test_without_locks_no_two_processes_write_one_part(tmp_path, monkeypatch):
    refuse(monkeypatch, fcntl, "flock", "ENOLCK")
    with files.replacing(tmp_path / "file") as file:
        assert Path(file.name).name == f".file.{os.getpid()}.part"
        file.write(b"ours")
        (tmp_path / ".file.part").write_bytes(b"another process's")
    assert (tmp_path / "file").read_bytes() == b"ours"
    assert (tmp_path / ".file.part").read_bytes() == b"another process's"


@pytest.mark.fault(52)
def test_a_disk_that_fails_to_lock_is_an_error(tmp_path, monkeypatch):
    refuse(monkeypatch, fcntl, "flock", "EIO")
    with pytest.raises(UserError, match="Input/output error"):
        files.write_text(tmp_path / "file", "text")
    with pytest.raises(UserError, match="Input/output error"), files.only_one(tmp_path / "lock", "train"):
        pass


CIFS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/stat.h>
int fsync(int fd) {
    struct stat s;
    if (fstat(fd, &s) == 0 && S_ISDIR(s.st_mode)) { errno = EINVAL; return -1; }
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd);
}
int flock(int fd, int operation) { errno = ENOLCK; return -1; }
"""


@pytest.mark.fault(52)
def test_a_stage_succeeds_on_a_file_system_that_cannot_fsync_a_folder_and_has_no_locks(tmp_path):
    """The C library's own calls fail, as they do on CIFS and on shared folders of virtual machines."""
    if not shutil.which("gcc"):
        pytest.skip("no C compiler")
    (tmp_path / "cifs.c").write_text(CIFS)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "cifs.so", "cifs.c", "-ldl"], cwd=tmp_path, check=True)
    folder = tmp_path / "workspace"
    folder.mkdir()
    settings = (ROOT / "params.yaml").read_text()
    (folder / "params.yaml").write_text(settings.replace("source: cifar10", "source: synthetic"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(tmp_path / "cifs.so")}
    done = subprocess.run([sys.executable, "-m", "pipeline", "download"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "this file system has no locks" in done.stderr
    assert [p.name for p in (folder / "data").iterdir()] == ["dataset.safetensors"]


def everybodys(folder: Path) -> Path:
    """A folder like /tmp, where another user has put what is there."""
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize("what", ["link", "dangling link", "link to a folder", "pipe"])
def test_what_another_user_put_where_everybody_may_write_is_not_written_into(what, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("old")
    shared, path = everybodys(tmp_path / "shared"), tmp_path / "shared" / "page.html"
    trap = path
    if what == "pipe":
        os.mkfifo(path)
    elif what == "link to a folder":
        trap, path = shared / "out", shared / "out" / "precious"
        trap.symlink_to(tmp_path / "mine")
    else:
        path.symlink_to(tmp_path / "mine" / ("precious" if what == "link" else "new"))
    os.chown(trap, 12345, 12345, follow_symlinks=False)
    for named in (path, shared / ".." / "shared" / path.relative_to(shared)):
        with pytest.raises(UserError, match=r"is a (link|pipe) of another user's \(12345\) where everybody may write; name another place$"):
            files.write_output(named, b"new")
    assert (tmp_path / "mine" / "precious").read_text() == "old"
    assert [one.name for one in (tmp_path / "mine").iterdir()] == ["precious"]
    os.chown(trap, 0, 0, follow_symlinks=False)
    if what == "link":
        files.write_output(path, b"new")
        assert (tmp_path / "mine" / "precious").read_text() == "new", "the user's own link is followed"


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_what_another_user_puts_there_after_it_was_looked_at_is_replaced_and_not_written_into(what, tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("old")
    path, lstat = everybodys(tmp_path / "shared") / "page.html", Path.lstat

    def looked_at(named):
        try:
            return lstat(named)
        except FileNotFoundError:
            if named == path and what == "link":
                path.symlink_to(tmp_path / "precious")
            elif named == path:
                os.mkfifo(path)
            raise

    monkeypatch.setattr(Path, "lstat", looked_at)
    with contextlib.nullcontext() if what == "link" else pytest.raises(UserError, match=r"page\.html: is a pipe, where a file is to be"):
        files.write_output(path, b"new")
    assert (tmp_path / "precious").read_text() == "old"
    assert what == "pipe" or (not path.is_symlink() and path.read_text() == "new")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize("sticky", [True, False])
@pytest.mark.parametrize("trap", ["a link", "a hard link", "a pipe", "another user's file"])
def test_what_stands_under_a_temporary_name_is_neither_written_nor_waited_for(trap, sticky, tmp_path):
    (tmp_path / "precious").write_text("old")
    folder = everybodys(tmp_path / "shared") if sticky else tmp_path / "own"
    folder.mkdir(exist_ok=True)
    part = folder / ".page.html.part"
    match trap:
        case "a link":
            part.symlink_to(tmp_path / "precious")
        case "a hard link":
            os.link(tmp_path / "precious", part)
        case "a pipe":
            os.mkfifo(part)
        case _:
            part.write_text("theirs")
            os.chown(part, 12345, 12345)
    files.write_output(folder / "page.html", b"new")
    assert (folder / "page.html").read_bytes() == b"new"
    assert (tmp_path / "precious").read_text() == "old"
    assert sorted(one.name for one in folder.iterdir()) == [".page.html.part", "page.html"]


def test_where_everybody_may_write_a_temporary_name_is_known_to_nobody_before_and_gone_when_it_fails(tmp_path):
    shared = everybodys(tmp_path / "shared")
    names = set()
    for _ in range(2):
        with contextlib.suppress(KeyError), files.replacing(shared / "page.html") as file:
            names.add(file.name)
            raise KeyError
    assert len(names) == 2
    assert list(shared.iterdir()) == []
