"""From an image of any mode and size to a square of 8-bit pixels.

Resizing is antialiased bicubic as in clean-fid (Parmar et al., *On Aliased Resizing and
Surprising Subtleties in GAN Evaluation*, 2022), so that training and measuring use one filter.
"""

import io
import logging
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageColor, PngImagePlugin

from maskdm.data.levels import to_eight_bits
from maskdm.runtime.errors import UserError, reason

# What files are read as, whatever their names say. PIL knows more formats: those that start another
# program (EPS), are stubs without a reader (HDF5, MPEG) or hold no pictures are not asked.
FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM"),
    *("PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
)
# Of an image in memory, by default: with transparency, 1.2 GiB while it is read.
MOST_PIXELS = 64_000_000
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, but never below this many times the wanted
# size, which leaves the antialiased resize enough to work on.
DRAFT_MARGIN = 4
# EXIF's types of whole numbers → bytes. Orientation is to be a SHORT, 3; many hands wrote it.
WHOLE = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}
UPRIGHT = {  # EXIF's Orientation → what turns the pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.MAX_IMAGE_PIXELS = None  # read_image has a limit of its own, for what a JPEG is decoded to
# Comments and colour profiles of more than 1 MiB are no reason to refuse a picture.
PngImagePlugin.MAX_TEXT_CHUNK = 2**26
PngImagePlugin.MAX_TEXT_MEMORY = 2**27
# A picture is read or it is not: what PIL has to say besides is of no use here.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


@cache
def formats() -> tuple[str, ...]:
    """Return those of ``FORMATS`` that this PIL was built with."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def endings() -> set[str]:
    """Return how the names of image files end, in lower case: ``.png`` and so on."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in formats()}


def read_image(
    content: bytes, size: int | None, background: str, most_pixels: int = MOST_PIXELS
) -> Image.Image:
    """Return the image of a file as it is meant to be seen: upright, first frame, mode RGB.

    Args:
        content: a file of any of ``FORMATS``.
        size: the side in pixels at which the image is used: a much larger JPEG is decoded smaller;
            None decodes every image at its own size.
        background: the colour behind transparent pixels.
        most_pixels: larger images are refused, before their pixels are decoded.

    Raises:
        OSError, ValueError, SyntaxError: if PIL cannot decode the file, the image is too large, or
            its numbers do not say what is white.
    """
    with Image.open(io.BytesIO(content), formats=formats()) as image:
        if size is not None:
            image.draft(None, (DRAFT_MARGIN * size, DRAFT_MARGIN * size))
        _bounded(image, most_pixels, "data.max_pixels =")
        picture = to_eight_bits(image)
        upright = UPRIGHT.get(_orientation(image))
        return to_rgb(picture.transpose(upright) if upright is not None else picture, background)


def open_image(path: Path) -> Image.Image:
    """Return the image in a file just as it is: of any size and mode, not turned.

    Args:
        path: of a file in any of ``FORMATS``.

    Raises:
        UserError: if there is none, it cannot be read, or has more than ``MOST_PIXELS`` pixels.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError("there is no such file")
        with Image.open(path, formats=formats()) as image:
            _bounded(image, MOST_PIXELS, "there may be")
            image.load()
            return image
    except Exception as error:  # a decoder may raise anything for a damaged file
        raise UserError(f"{path} is no image that can be read: {reason(error)}.") from None


def _bounded(image: Image.Image, most_pixels: int, limit: str) -> None:
    """Refuse an image of too many pixels before they are decoded."""
    if image.width * image.height > most_pixels:
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than {limit} {most_pixels}"
        )


def _orientation(image: Image.Image) -> int:
    """Return EXIF's Orientation, whatever else is wrong with the EXIF; 1 if it cannot be read.

    PIL reads all tags, and stops at the first that is damaged. So this one is looked up where it
    stands (EXIF 2.32, section 4.6: a table of tag, type, count and value).
    """
    with suppress(Exception):  # anything may stand there
        block = image.info.get("exif")
        if block is None:
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
        block = block.removeprefix(b"Exif\0\0")
        order: Literal["little", "big"] = "little" if block[:2] == b"II" else "big"

        def number(at: int, length: int) -> int:
            return int.from_bytes(block[at : at + length], order)

        table = number(4, 4)
        for entry in range(table + 2, table + 2 + 12 * number(table, 2), 12):
            if number(entry, 2) == ExifTags.Base.Orientation:
                return number(entry + 8, WHOLE[number(entry + 2, 2)])
    return 1


def to_rgb(image: Image.Image, background: str) -> Image.Image:
    """Return an image of 8 bits a channel as RGB, transparent pixels composed on ``background``."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    canvas = Image.new("RGBA", picture.size, (*ImageColor.getrgb(background)[:3], 255))
    return Image.alpha_composite(canvas, picture).convert("RGB")


def fit(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Return the centre square of an image, resized: uint8 (size, size, channels).

    Args:
        image: mode RGB or L.
        size: the side in pixels.
        channels: 1 for grey (ITU-R 601 luma), 3 for colour.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    square = square.convert("L" if channels == 1 else "RGB")
    if side == size:  # a resize would change nothing
        return np.array(square).reshape(size, size, channels)
    # Bands are resized in floating point: on bytes, PIL clips the overshoot of bicubic between its
    # two passes.
    bands = [
        np.asarray(band.convert("F").resize((size, size), Image.Resampling.BICUBIC))
        for band in square.split()
    ]
    return np.stack(bands, axis=-1).round().clip(0, 255).astype(np.uint8)
