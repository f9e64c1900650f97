"""From an image of any mode and size to a square of 8-bit pixels.

Resizing is antialiased bicubic as in clean-fid (Parmar et al., *On Aliased Resizing and
Surprising Subtleties in GAN Evaluation*, 2022), so that training and measuring use one filter.
"""

import io

import numpy as np
from PIL import Image, ImageColor, ImageOps

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, but never below this many times the wanted
# size, which leaves the antialiased resize enough to work on.
DRAFT_MARGIN = 4


def read_image(content: bytes, size: int | None, background: str) -> Image.Image:
    """Return the image of a file as it is meant to be seen: upright, first frame, mode RGB.

    Args:
        content: a file of any format that PIL reads.
        size: the side in pixels at which the image is used: a much larger JPEG is decoded smaller;
            None decodes every image at its own size.
        background: the colour behind transparent pixels.

    Raises:
        OSError, ValueError, SyntaxError: if PIL cannot decode the file.
    """
    with Image.open(io.BytesIO(content)) as image:
        if size is not None:
            image.draft(None, (DRAFT_MARGIN * size, DRAFT_MARGIN * size))
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image, background)


def to_rgb(image: Image.Image, background: str) -> Image.Image:
    """Return an image of any mode as RGB, its transparent pixels composed on ``background``.

    Raises:
        ValueError: for floating-point pixels, which do not say what is white.
    """
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers, which do not say what is white")
    if image.mode.startswith("I"):  # 16 bits: 65535 is white, and 65535 / 257 = 255
        levels = np.asarray(image).clip(0, 65535)
        image = Image.fromarray(((levels + 128.0) / 257).astype(np.uint8))
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
