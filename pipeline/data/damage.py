"""What Pillow is silent about: parts of a picture that are missing or wrong, where a file can tell.

It shows what it has of a JPEG whose data ends early or cannot be read, and does not look at the checksums of a PNG's pixels; and it
refuses a PNG for what no pixel depends on. Of WebP, GIF and BMP it refuses what its decoders notice.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""Chunks of a PNG on which its pixels depend."""
_ORIENTATION = b"eXIf"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""A PNG's type of colour -> samples of a pixel (PNG, third edition, table 8)."""
_PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
"""First column and step, first row and step of the passes of an interlaced PNG (8.2)."""
_LOST = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")
"""How libjpeg's warnings begin that say that a part of the picture is lost (jerror.h)."""


MOST_SCANS = 100
"""Of a JPEG. Progressive ones have some ten; each is decoded over the whole picture, so many in a small file take minutes."""
MOST_CHUNKS = 2**17
"""Of a PNG. Encoders write some 8 KiB of pixels a chunk; each takes a look of its own, so millions of empty ones take half a minute."""
_END_OF_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
"""What follows the pixels of a scan: a marker, but for those that stand among them."""


class Damaged(Exception):
    """What is wrong with a file."""


class _Chunk(NamedTuple):
    kind: bytes
    content: bytes
    whole: bytes
    """With its length and checksum."""
    sound: bool
    """Whether the checksum is right."""


def without_what_is_not_used(content: bytes) -> bytes:
    """A PNG without the chunks on which no pixel depends, which may be of any size or damaged; anything else as it is.

    Raises:
        Damaged: the chunks that are needed are not whole, or their checksums are wrong.
    """
    if not content.startswith(PNG):
        return content
    return PNG + b"".join(chunk.whole for chunk in _needed(content))


def check(content: bytes, format_name: str) -> None:
    """Raise Damaged where the file in `content` can tell that a part of its picture is lost."""
    if format_name == "PNG":
        _check_png(content)
    elif format_name in ("JPEG", "MPO"):
        _check_jpeg(content)


def _needed(content: bytes) -> Iterator[_Chunk]:
    """The chunks of a PNG that its pixels and its orientation depend on."""
    at = len(PNG)
    for _ in range(MOST_CHUNKS):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        whole = content[at : at + 12 + length]
        if len(whole) < 12 + length:
            raise Damaged("it ends early")
        sound = zlib.crc32(whole[4:-4]) == int.from_bytes(whole[-4:], "big")
        if kind in _PIXELS or (kind == _ORIENTATION and sound):
            if not sound:
                raise Damaged(f"wrong checksum of {kind.decode()}")
            yield _Chunk(kind, whole[8:-4], whole, sound)
        elif not kind[0] & 0x20:  # by its first letter, which is a capital, no decoder may pass it over
            raise Damaged(f"unknown chunk {kind!r}, or a damaged one")
        if kind == b"IEND":
            return
        at += len(whole)
    raise Damaged(f"more than {MOST_CHUNKS} chunks")


def _check_png(content: bytes) -> None:
    """The compressed pixels must be whole and right, as many as the image has."""
    inflate, size, wanted = zlib.decompressobj(), 0, None
    for chunk in _needed(content):
        if chunk.kind == b"IHDR":
            wanted = _png_bytes(chunk.content)
        data = chunk.content if chunk.kind == b"IDAT" else b""
        while data and not inflate.eof and wanted is not None and size <= wanted:
            size += len(inflate.decompress(data, 2**20))
            data = inflate.unconsumed_tail
    if wanted is None or size < wanted or (size == wanted and not inflate.eof):
        raise Damaged("its pixels end early")


def _png_bytes(header: bytes) -> int:
    """Of all rows of a PNG, each with the byte that names its filter."""
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    bits = header[8] * _CHANNELS[header[9]]
    size = 0
    for left, across, top, down in _PASSES if header[12] else ((0, 1, 0, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            size += rows * (1 + -(-columns * bits // 8))
    return size


def _check_jpeg(content: bytes) -> None:
    """Libjpeg warns of what it makes up for; its binding here raises the first warning."""
    import simplejpeg

    if _scans(content) > MOST_SCANS:
        raise Damaged(f"more than {MOST_SCANS} scans")
    try:
        space = simplejpeg.decode_jpeg_header(content)[2]
        simplejpeg.decode_jpeg(content, {"CMYK": "CMYK", "YCCK": "CMYK", "Gray": "GRAY"}.get(space, "RGB"))
    except ValueError as error:
        if str(error).startswith(_LOST):
            raise Damaged(str(error)) from None


def _scans(content: bytes) -> int:
    """How many scans a JPEG has, up to its end or to what is none; each byte is looked at once, and MOST_SCANS + 1 are enough."""
    at, count = 2, 0
    while count <= MOST_SCANS and content[at : at + 1] == b"\xff":
        kind = content[at + 1]
        if kind == 0xFF:  # a marker may be filled up with these
            at += 1
        elif kind == 0xD9:  # the end; a phone's video may follow
            break
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
            if kind == 0xDA:
                count += 1
                at = found.start() if (found := _END_OF_SCAN.search(content, at)) else len(content)
    return count
