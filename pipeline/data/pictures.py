"""An image file -> the bytes that the network sees, by rules in integers from the decoded samples on.

docs/data.md states the rules in words. Pillow decodes; it may give other samples of a JPEG or a lossy WebP with another
version of its libraries, and everything after that is the same everywhere. Damage is looked for in `pipeline.data.damage`.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.data import damage
from pipeline.data.dataset import TUTORIAL, Shape
from pipeline.system.errors import UserError

WHITE = 255
"""The ground that shows through where an image is transparent."""
LARGEST_PIXELS = 2**26
"""Of an image, decoded: 8192 x 8192. With it every sum here stays within 2^53, and decoding within some 830 MB."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
"""Names of image files end so, in capitals or not."""
_GREY = np.array([299, 587, 114])
"""Of 1000: what red, green and blue are of a grey (Rec. ITU-R BT.601, 2.5.1)."""
_STRIP_PIXELS = 2**20
"""Pixels that are averaged at once."""
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what brings the image upright (EXIF 2.32, 4.6.4)."""
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I")
"""Pillow's modes of a grey PNG with 16 bits a sample."""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without Pillow's warnings, about what is decided here: an image's size, its EXIF. For all threads, so not within one of several."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read(file: IO[bytes], name: str, shape: Shape = TUTORIAL) -> np.ndarray:
    """The image in the open `file` as uint8 [C, H, W] of `shape`, H being W; `name` is the file's, for messages.

    Raises:
        UserError: it is no image of FORMATS, has more than LARGEST_PIXELS, or is damaged or truncated.
    """
    image, key = _decoded(file.read(), name)
    return averaged(image, shape, key)


def png(image: np.ndarray) -> bytes:
    """An image, uint8 [1 or 3, height, width], as a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))).save(file, "PNG")
    return file.getvalue()


def _decoded(content: bytes, name: str) -> tuple[Image.Image, tuple[int, ...] | None]:
    """The first frame, upright, and the colour that counts as transparent, in the samples that Pillow gives; None without one."""
    try:
        image = Image.open(io.BytesIO(damage.without_what_is_not_used(content)), formats=FORMATS)
        if image.width * image.height > LARGEST_PIXELS:
            raise Image.DecompressionBombError
        damage.check(content, image.format or "")
        key = _transparent_colour(image)
        image.load()
    except UnidentifiedImageError:
        raise UserError(f"{name}: not an image that can be read ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, MemoryError):
        raise UserError(f"{name}: an image of more than {LARGEST_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # Pillow's decoders raise almost anything for a damaged file
        raise UserError(f"{name}: damaged or truncated ({error or type(error).__name__})") from None
    for xmp in ("xmp", "XML:com.adobe.xmp"):  # Pillow takes an orientation from there, too; EXIF alone counts here
        image.info.pop(xmp, None)
    orientation = None
    with contextlib.suppress(Exception):  # EXIF that cannot be read gives no orientation
        orientation = image.getexif().get(_ORIENTATION)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image, key


def _transparent_colour(image: ImageFile.ImageFile) -> tuple[int, ...] | None:
    """A PNG's transparent colour on the scale of 8 bits. Pillow gives it as the file has it, on the scale of the file's samples."""
    if image.mode not in ("1", "L", "RGB", *_SIXTEEN_BITS) or "transparency" not in image.info:
        return None
    given = image.info.pop("transparency")  # else Pillow would look at it in conversions
    raw_mode = str(image.tile[0].args)
    bits = 1 if image.mode == "1" else next((bits for bits in (16, 4, 2) if f";{bits}" in raw_mode), 8)
    key = given if isinstance(given, tuple) else (given,) * 3
    return tuple(sample >> 8 if bits == 16 else sample * 255 // (2**bits - 1) for sample in key)


def averaged(image: Image.Image, shape: Shape, key: tuple[int, ...] | None = None) -> np.ndarray:
    """The largest square in the middle, on white, each pixel of the result the average of what it covers: uint8 of `shape`.

    Averages are weighted by area: on a scale where a pixel of the square is `size` units wide and one of the result `side`,
    all weights are integers. Compositing and averaging are one sum of integers, exact in float64, and round once, half up. So does
    the weighted sum of the colours that is the grey of a single channel.
    """
    channels, size, _ = shape
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if side == size:  # each pixel covers one
        rgba = _rgba(image.crop((left, top, left + side, top + side)), key)
        if channels == 3 and (rgba[..., 3] == 255).all():
            return rgba[..., :3].transpose(2, 0, 1).copy()
    edges = np.arange(side)[None] * size, np.arange(size)[:, None] * side
    overlap = np.minimum(edges[0] + size, edges[1] + side) - np.maximum(edges[0], edges[1])
    cover = overlap.clip(0).astype(np.float64)  # [size, side]: units that a pixel of the result shares with one of the square
    columns = np.zeros((size, side * 3))
    at_once = max(1, _STRIP_PIXELS // side)
    for first in range(0, side, at_once):
        rows = min(at_once, side - first)
        light = _on_white(_rgba(image.crop((left, top + first, left + side, top + first + rows)), key))  # [rows, side, 3]
        columns += cover[:, first : first + rows] @ light.reshape(rows, -1)
    total = (cover @ columns.reshape(size, side, 3)).astype(np.int64)  # [size, size, 3], at most 255 * 255 * side * side
    whole = 255 * side * side
    if channels == 1:
        total, whole = (total @ _GREY)[..., None], 1000 * whole
    return ((2 * total + whole) // (2 * whole)).astype(np.uint8).transpose(2, 0, 1)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    """For uint8 [..., 4]: 255 times the colour on white, float64 [..., 3] holding integers."""
    colour, alpha = rgba[..., :3].astype(np.float64), rgba[..., 3:].astype(np.float64)
    light: np.ndarray = colour * alpha + WHITE * (255 - alpha)
    return light


def _rgba(image: Image.Image, key: tuple[int, ...] | None) -> np.ndarray:
    """Samples of 8 bits, uint8 [H, W, 4], by a rule for each of the modes in which Pillow decodes FORMATS."""
    if image.mode == "CMYK":
        light = 255 - np.asarray(image, np.int64)  # of each ink, what it lets through
        return _opaque((2 * light[..., :3] * light[..., 3:] + 255) // 510)  # a product of two parts of 255, to the nearest
    if image.mode in _SIXTEEN_BITS:
        rgba = _opaque(np.asarray(image)[..., None].repeat(3, -1) >> 8)
    elif image.mode in ("1", "L", "RGB"):
        rgba = _opaque(np.asarray(image.convert("RGB")))
    else:  # a palette, with or without transparent entries, or alpha: looked up or copied, nothing is computed
        rgba = np.asarray(image.convert("RGBA"))
    if key is not None:
        rgba[..., 3] = np.where((rgba[..., :3] == key).all(-1), 0, 255)
    return rgba


def _opaque(colour: np.ndarray) -> np.ndarray:
    return np.concatenate([colour, np.full_like(colour[..., :1], 255)], -1).astype(np.uint8)
