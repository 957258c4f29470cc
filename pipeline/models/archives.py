"""What torch.load is given of a file that came from elsewhere: what was looked at, and nothing that takes more than it says."""

from __future__ import annotations

import encodings
import io
import pickletools
import tarfile
import zipfile

ARCHIVE = b"PK\3\4"
"""With which the file of torch.save begins, since PyTorch 1.6."""
PICKLES = 5
"""In a file of before: a mark, a version, facts of the machine, the content, and the names of the numbers that follow."""
LONGEST = 1000
"""Characters of a text that are looked at for the name of an encoding."""


def readable(content: bytearray) -> io.BytesIO:
    """The bytes of a file of torch.save, for torch.load.

    Raises:
        ValueError: it unpacks to more than it is, has a name twice, or calls what takes any memory or time.
        zipfile.BadZipFile: it is damaged.
    """
    return _repacked(content) if content.startswith(ARCHIVE) else _old(content)


def _repacked(content: bytearray) -> io.BytesIO:
    """An archive of what is in that of torch.save, which compresses nothing.

    Two readers can find two directories in the same bytes: so what PyTorch reads is made of what was checked here.

    Raises:
        ValueError: it unpacks to more than it is, or has a name twice.
        zipfile.BadZipFile: it is damaged.
    """
    whole = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(whole, "w") as again:
        if (size := sum(each.file_size for each in archive.infolist())) > len(content):
            raise ValueError(f"an archive of {len(content)} bytes that unpacks to {size}")
        if len(set(archive.namelist())) < len(archive.namelist()):
            raise ValueError("an archive with two files of one name")
        for each in archive.infolist():
            again.writestr(each.filename, data := archive.read(each))
            if each.filename.endswith("data.pkl"):
                _refuse_costly(io.BytesIO(data))
    whole.seek(0)
    return whole


def _old(content: bytearray) -> io.BytesIO:
    """A file of PyTorch before 1.6: pickles, one after the other, then the numbers. Raises ValueError as `_refuse_costly` does."""
    whole = io.BytesIO(content)
    if tarfile.is_tarfile(whole):
        raise ValueError("a tar archive, as PyTorch wrote before 0.2")
    whole.seek(0)
    for _ in range(PICKLES):
        _refuse_costly(whole)
    whole.seek(0)
    return whole


def _refuse_costly(pickled: io.BytesIO) -> None:
    """Raise ValueError where a pickle calls what takes any memory or time, though `torch.load` allows it; read on after it."""
    called, texts = set[str](), set[str]()
    for operation, given, _ in pickletools.genops(pickled):
        if operation.name == "GLOBAL":
            called.add(str(given))
        elif isinstance(given, str):
            texts.add(encodings.normalize_encoding(given[:LONGEST]).lower())
    if costly := called & {"builtins bytearray", "__builtin__ bytearray"} or ("_codecs encode" in called and texts & {"punycode", "idna"}):
        raise ValueError(f"it calls {min(costly)}")


def is_script(content: bytearray) -> bool:
    """Whether the bytes are an archive of TorchScript's."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any("/code/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False
