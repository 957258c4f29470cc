"""An image file becomes 32 x 32 bytes by the rules of docs/predict.md, in integers."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data import damage, pictures
from pipeline.exact import draws
from pipeline.system.errors import UserError
from tests.folders import ENCODINGS, encoded


def pixels(label: str, *shape: int) -> np.ndarray:
    """Drawn bytes."""
    return draws.random_integers(label, 256, int(np.prod(shape))).astype(np.uint8).reshape(shape)


def saved(image: Image.Image, file_format: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    file.seek(0)
    return file


def read(image: Image.Image, file_format: str = "PNG", **options: Any) -> np.ndarray:
    return pictures.read(saved(image, file_format, **options), "x")


def channels_first(image: np.ndarray) -> np.ndarray:
    return image.transpose(2, 0, 1)


def by_the_text(rgba: np.ndarray) -> np.ndarray:
    """The rule of docs/predict.md in fractions, for uint8 [H, W, 4]: slow, and nothing in it but the text's words."""
    height, width, _ = rgba.shape
    side = min(height, width)
    square = rgba[(height - side) // 2 :, (width - side) // 2 :][:side, :side].tolist()
    size = Fraction(side, 32)

    def shared(i: int, j: int) -> Fraction:
        return max(Fraction(0), min((i + 1) * size, Fraction(j + 1)) - max(i * size, Fraction(j)))

    cover = [[(j, shared(i, j)) for j in range(side) if shared(i, j)] for i in range(32)]
    result = np.zeros((3, 32, 32), np.uint8)
    for channel, y, x in product(range(3), range(32), range(32)):
        total = Fraction(0)
        for (row, high), (column, wide) in product(cover[y], cover[x]):
            sample, alpha = square[row][column][channel], square[row][column][3]
            total += high * wide * (Fraction(sample * alpha, 255) + Fraction(255 * (255 - alpha), 255))
        result[channel, y, x] = int(total / size**2 + Fraction(1, 2))
    return result


@pytest.mark.parametrize(("mode", "depth"), [("RGB", 3), ("L", 1)])
def test_an_image_of_32_by_32_is_its_own_bytes(mode: str, depth: int) -> None:
    image = pixels("own", 32, 32, depth)
    assert np.array_equal(read(Image.fromarray(image.squeeze(), mode)), channels_first(image).repeat(3 // depth, 0))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (5, 7), (31, 33), (33, 31), (64, 64), (50, 90), (100, 37)])
def test_every_size_and_alpha_is_averaged_as_the_text_says(width: int, height: int) -> None:
    rgba = pixels(f"size {width} {height}", height, width, 4)
    assert np.array_equal(read(Image.fromarray(rgba, "RGBA")), by_the_text(rgba))


def test_a_tie_rounds_up() -> None:
    checks = (np.indices((64, 64)).sum(0) % 2).astype(np.uint8)  # four pixels, two of them 1: an average of 1/2
    assert (read(Image.fromarray(checks, "L")) == 1).all()


def test_an_image_that_is_averaged_in_strips_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(pixels("strips", 70, 70, 4), "RGBA")
    whole = read(image)
    monkeypatch.setattr(pictures, "_STRIP_PIXELS", 70 * 3)
    assert np.array_equal(read(image), whole)


def test_the_square_in_the_middle_counts() -> None:
    image = pixels("middle", 32, 47, 3)
    assert np.array_equal(read(Image.fromarray(image, "RGB")), channels_first(image[:, 7:39]))


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, 1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, -1)),
        (9, lambda a: a),
    ],
)
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_exif_orientation_brings_it_upright(orientation: int, stored: Any, file_format: str) -> None:
    upright = pixels("upright", 32, 32, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(upright)), "RGB")
    assert np.array_equal(
        read(image, file_format, exif=exif, **({"lossless": True} if file_format == "WEBP" else {})), channels_first(upright)
    )


def test_an_orientation_in_xmp_does_not_count() -> None:
    image = pixels("xmp", 32, 32, 3)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="3"/></x:xmpmeta>'
    file = saved(Image.fromarray(image, "RGB"), "WEBP", lossless=True, xmp=xmp)
    assert np.array_equal(pictures.read(file, "x"), channels_first(image))


def test_a_palette_is_looked_up_and_its_transparent_entry_is_white() -> None:
    image = Image.new("P", (32, 32))
    image.putpalette([1, 2, 3, 40, 50, 60])
    image.putpixel((0, 0), 1)
    for file_format in ("PNG", "GIF", "BMP"):
        assert (read(image, file_format)[:, 0, 0] == (40, 50, 60)).all()
        assert (read(image, file_format)[:, 1, 1] == (1, 2, 3)).all()
    for file_format in ("PNG", "GIF"):
        assert (read(image, file_format, transparency=0)[:, 1, 1] == 255).all()
        assert (read(image, file_format, transparency=0)[:, 0, 0] == (40, 50, 60)).all()


def test_black_and_white_of_one_bit() -> None:
    image = Image.new("1", (32, 32))
    image.putpixel((3, 2), 1)
    assert (read(image)[:, 2, 3] == 255).all()
    assert read(image).sum() == 3 * 255


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (32, 32), (n, n, n)) for n in (10, 20, 30)]
    for file_format in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        assert (read(frames[0], file_format, save_all=True, append_images=frames[1:], **options) == 10).all()


def test_a_phones_jpeg_with_several_pictures_gives_the_first() -> None:
    frames = [Image.new("L", (32, 32), n) for n in (10, 200)]
    assert (read(frames[0], "MPO", save_all=True, append_images=frames[1:]) == 10).all()


def png(bits: int, colour_type: int, row: bytes, side: int = 32, transparent: bytes | None = None) -> io.BytesIO:
    """A PNG of equal rows, written by hand: Pillow writes no 16-bit colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, bits, colour_type, 0, 0, 0)
    key = b"" if transparent is None else chunk(b"tRNS", transparent)
    body = chunk(b"IDAT", zlib.compress((b"\0" + row) * side))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + body + chunk(b"IEND", b""))


GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6


@pytest.mark.parametrize(
    ("colour_type", "samples", "expected"),
    [
        (GREY, (0x12FF,), (0x12, 0x12, 0x12)),
        (COLOUR, (0x12FF, 0x3480, 0x5600), (0x12, 0x34, 0x56)),
        (GREY_ALPHA, (0x12FF, 0xFFFF), (0x12, 0x12, 0x12)),
        (COLOUR_ALPHA, (0x12FF, 0x3480, 0x5600, 0xFF00), (0x12, 0x34, 0x56)),
        (COLOUR_ALPHA, (0x12FF, 0x3480, 0x5600, 0x00FF), (255, 255, 255)),
    ],
)
def test_of_16_bits_the_upper_8_count(colour_type: int, samples: tuple[int, ...], expected: tuple[int, ...]) -> None:
    image = pictures.read(png(16, colour_type, struct.pack(f">{len(samples)}H", *samples) * 32), "x")
    assert (image == np.array(expected)[:, None, None]).all()


@pytest.mark.parametrize(
    ("bits", "colour_type", "row", "transparent"),
    [
        (1, GREY, b"\x0f" * 4, struct.pack(">H", 1)),
        (2, GREY, b"\x0a" * 8, struct.pack(">H", 2)),
        (4, GREY, b"\x0c" * 16, struct.pack(">H", 12)),
        (8, GREY, b"\x00\x07" * 16, struct.pack(">H", 7)),
        (16, GREY, b"\x00\x00\x07\x01" * 16, struct.pack(">H", 0x0701)),
        (8, COLOUR, b"\x00\x00\x00\x01\x02\x03" * 16, struct.pack(">3H", 1, 2, 3)),
        (16, COLOUR, b"\x00\x00\x00\x00\x00\x00\x01\x09\x02\x09\x03\x09" * 16, struct.pack(">3H", 0x0109, 0x0209, 0x0309)),
    ],
)
def test_a_pngs_transparent_colour_is_white_whatever_the_bits_of_its_samples(
    bits: int, colour_type: int, row: bytes, transparent: bytes
) -> None:
    image = pictures.read(png(bits, colour_type, row, transparent=transparent), "x")
    assert ((image == 0) | (image == 255)).all()
    assert (image == 255).mean() == 0.5


def test_four_inks_become_light_to_the_nearest() -> None:
    inks = pixels("inks", 4).tolist()
    image = read(Image.new("CMYK", (32, 32), tuple(inks)), "JPEG", quality=100)
    decoded = Image.open(saved(Image.new("CMYK", (32, 32), tuple(inks)), "JPEG", quality=100)).getpixel((0, 0))
    cyan, magenta, yellow, black = decoded
    expected = [int(Fraction((255 - ink) * (255 - black), 255) + Fraction(1, 2)) for ink in (cyan, magenta, yellow)]
    assert (image == np.array(expected)[:, None, None]).all()


def refusal(content: bytes) -> str:
    with pytest.raises(UserError) as refused:
        pictures.read(io.BytesIO(content), "a/picture")
    message = str(refused.value)
    assert message.startswith("a/picture: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"P6 1 1 255 abc"])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    refusal(content)


def test_no_program_is_started_for_a_format_that_is_not_listed() -> None:
    tiff = saved(Image.new("L", (4, 4)), "TIFF").getvalue()
    assert refusal(tiff).endswith("not an image that can be read (PNG, JPEG, WEBP, GIF, BMP)")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_truncated_image_is_refused(file_format: str) -> None:
    content = saved(Image.fromarray(pixels("noise", 64, 64, 3), "RGB"), file_format).getvalue()
    assert "damaged or truncated" in refusal(content[: len(content) // 2])


@pytest.mark.parametrize("side", [8193, 60_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    bomb = png(1, GREY, b"", side=1).getvalue().replace(struct.pack(">II", 1, 1), struct.pack(">II", side, side))
    ihdr = bomb[12:29]
    bomb = bomb.replace(bomb[29:33], struct.pack(">I", zlib.crc32(ihdr)))
    assert "more than 67,108,864 pixels" in refusal(bomb)


# --- damage --------------------------------------------------------------------------------------------------------------


def outcome(content: bytes) -> str | bytes:
    """The picture's bytes, or "refused"."""
    try:
        return pictures.read(io.BytesIO(content), "file").tobytes()
    except UserError:
        return "refused"


@pytest.mark.fault(72)
@pytest.mark.parametrize("name", ENCODINGS)
def test_a_picture_that_ends_early_is_refused_wherever_it_was_cut(name):
    content = encoded(name)
    whole = outcome(content)
    assert whole != "refused"
    for keep in {*range(1, len(content) - 2, max(1, len(content) // 150)), len(content) - 3}:
        assert outcome(content[:keep]) == "refused", keep


@pytest.mark.fault(72)
def test_a_jpeg_whose_scan_ends_early_is_refused_though_its_end_is_marked():
    content = encoded("JPEG")
    start = content.index(b"\xff\xda") + 20
    for keep in range(start, len(content) - 10, 97):
        assert outcome(content[:keep] + b"\xff\xd9") == "refused", keep


def chunked(content: bytes) -> list[tuple[bytes, bytes]]:
    """The kinds and contents of a PNG's chunks."""
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def joined(chunks: list[tuple[bytes, bytes]], wrong: bytes = b"") -> bytes:
    """A PNG of these chunks; the checksum of the kind `wrong` is wrong."""
    parts = [
        len(data).to_bytes(4, "big") + kind + data + (zlib.crc32(kind + data) ^ (kind == wrong)).to_bytes(4, "big") for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.fault(72)
@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"IEND"])
def test_a_png_with_a_wrong_checksum_of_its_pixels_is_refused(kind):
    chunks = chunked(encoded("PNG"))
    assert outcome(joined(chunks)) == outcome(encoded("PNG")) != "refused"
    assert outcome(joined(chunks, wrong=kind)) == "refused"


@pytest.mark.fault(72)
def test_a_png_whose_pixels_end_early_between_sound_checksums_is_refused():
    chunks = chunked(encoded("PNG"))
    place = [kind for kind, _ in chunks].index(b"IDAT")
    for keep in range(0, len(chunks[place][1]) - 1, 37):
        assert outcome(joined([*chunks[:place], (b"IDAT", chunks[place][1][:keep]), *chunks[place + 1 :]])) == "refused", keep


@pytest.mark.fault(72)
@pytest.mark.parametrize(
    "chunk",
    [(b"tEXt", b"a\0" + b"x" * 2_000_000), (b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))), (b"iCCP", b"broken"), (b"zTXt", b""),
     (b"tIME", b""), (b"gAMA", b""), (b"eXIf", b"broken")],
    ids=lambda chunk: chunk[0].decode(),
)  # fmt: skip
@pytest.mark.parametrize("checksum", ["right", "wrong"])
def test_what_no_pixel_of_a_png_depends_on_may_be_large_or_broken(chunk, checksum):
    first, *others = chunked(encoded("PNG"))
    assert outcome(joined([first, chunk, *others], wrong=chunk[0] if checksum == "wrong" else b"")) == outcome(encoded("PNG"))


def test_a_png_of_millions_of_chunks_is_refused_after_so_many(monkeypatch):
    monkeypatch.setattr(damage, "MOST_CHUNKS", 20)
    first, *others = chunked(encoded("PNG"))
    few = joined([first, *[(b"IDAT", b"")] * (19 - len(others)), *others])
    assert outcome(few) == outcome(encoded("PNG"))
    with pytest.raises(UserError, match=r"^file: damaged or truncated \(more than 20 chunks\)$"):
        pictures.read(io.BytesIO(joined([first, *[(b"IDAT", b"")] * (20 - len(others)), *others])), "file")


def test_the_scans_of_a_jpeg_are_counted_and_too_many_are_refused_before_they_are_decoded(monkeypatch):
    whole = encoded("JPEG progressive")
    count = damage._scans(whole)
    thumbnail = b"\xff\xe1" + (2 + 400 * 4).to_bytes(2, "big") + b"\xff\xda\x00\x02" * 400  # what a segment holds is no scan
    assert damage._scans(whole[:2] + thumbnail + whole[2:]) == count == 10
    assert damage._scans(whole + b"\xff\xda\x00\x02" * 400) == count, "nor is what follows the end, as a phone's video"
    assert (damage._scans(encoded("JPEG")), damage._scans(encoded("JPEG")[:200])) == (1, 0)
    last = whole.rindex(b"\xff\xda")
    many = whole[:last] + whole[last:-2] * 2_000 + whole[-2:]
    assert damage._scans(many) == damage.MOST_SCANS + 1
    monkeypatch.setattr(Image.Image, "load", pytest.fail)
    monkeypatch.setattr("simplejpeg.decode_jpeg", pytest.fail)
    with pytest.raises(UserError, match=r"^file: damaged or truncated \(more than 100 scans\)$"):
        pictures.read(io.BytesIO(many), "file")


def test_one_channel_is_the_weighted_sum_of_the_colours_rounded_once():
    draw = np.random.default_rng(1).integers(0, 256, (6, 6, 3), np.uint8)
    got = pictures.averaged(Image.fromarray(draw), (1, 3, 3))
    light = draw.astype(int) @ np.array([299, 587, 114])
    sums = light.reshape(3, 2, 3, 2).sum((1, 3))
    assert (got[0] == (2 * sums + 4000) // 8000).all()


def test_an_image_becomes_any_size_by_the_same_rule():
    draw = np.random.default_rng(2).integers(0, 256, (50, 50, 3), np.uint8)
    for size in (1, 7, 50, 64):
        assert (pictures.averaged(Image.fromarray(draw), (3, size, size)) == slowly(draw, size)).all()


def slowly(image: np.ndarray, size: int) -> np.ndarray:
    """As docs/data.md says it, pixel for pixel."""
    side = len(image)
    result = np.zeros((3, size, size), np.uint8)
    for y, x in np.ndindex(size, size):
        total = np.zeros(3, object)
        for j in range(y * side // size, min(side, -(-(y + 1) * side // size))):
            for k in range(x * side // size, min(side, -(-(x + 1) * side // size))):
                units = [max(0, min(size * (n + 1), (i + 1) * side) - max(size * n, i * side)) for n, i in ((j, y), (k, x))]
                total += units[0] * units[1] * 255 * image[j, k].astype(int)
        whole = 255 * side * side
        result[:, y, x] = [(2 * int(one) + whole) // (2 * whole) for one in total]
    return result
