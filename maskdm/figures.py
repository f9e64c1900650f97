"""Figures: grids, rows and masks of images as small PNGs, and curves drawn by Vega-Lite."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskdm.runtime.files import replacing, write_bytes

GAP = 2  # pixels between images
PAPER = 255  # grey level of the background
LETTERS = 14  # height of written names in pixels
HIDDEN = (128, 128, 140)  # grey of hidden patches, which emoji hardly contain


def grid(images: np.ndarray, columns: int, scale: int = 1) -> Image.Image:
    """Return images side by side on white, row by row.

    Args:
        images: uint8 ``(count, H, W, C)``.
        columns: images in a row.
        scale: side of the square that a pixel becomes.
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    step_y, step_x = height + GAP, width + GAP
    sheet = np.full((rows * step_y + GAP, columns * step_x + GAP, channels), PAPER, np.uint8)
    for index, image in enumerate(images):
        y, x = index // columns * step_y + GAP, index % columns * step_x + GAP
        sheet[y : y + height, x : x + width] = image
    large = sheet.repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(large if channels == 3 else large[:, :, 0])


def rows(named: list[tuple[str, np.ndarray]], scale: int = 1) -> Image.Image:
    """Return rows of images, each with its name on its left; names may be empty.

    Args:
        named: names, and uint8 ``(count, H, W, C)``.
        scale: side of the square that a pixel becomes.
    """
    strips = [grid(images, len(images), scale).convert("RGB") for _, images in named]
    font = ImageFont.load_default(LETTERS)
    margin = max(round(font.getlength(name)) for name, _ in named)
    left = margin + 2 * LETTERS if margin else 0
    width = left + max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for (name, _), strip in zip(named, strips, strict=True):
        sheet.paste(strip, (left, top))
        pen.text((LETTERS, top + strip.height // 2), name, "black", font, anchor="lm")
        top += strip.height
    return sheet


def hide(images: np.ndarray, visible: np.ndarray, patch: int) -> np.ndarray:
    """Return the images, in colour, with all but the visible patches greyed out.

    Args:
        images: uint8 ``(count, H, W, C)``.
        visible: positions of the visible patches, ``(count, S)``.
        patch: side of a patch in pixels.
    """
    count, height, width, _ = images.shape
    shown = np.zeros((count, (height // patch) * (width // patch)), bool)
    np.put_along_axis(shown, visible, True, axis=1)
    pixels = shown.reshape(count, height // patch, width // patch)
    pixels = pixels.repeat(patch, axis=1).repeat(patch, axis=2)
    colour = np.broadcast_to(images, (count, height, width, 3))
    return np.where(pixels[..., None], colour, np.array(HIDDEN, np.uint8))


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG, making its folder; the same pixels give the same bytes."""
    with replacing(path) as begun:
        picture.save(begun, "png", optimize=True)


def curves(series: list[dict[str, Any]], titles: dict[str, str], path: Path) -> None:
    """Draw a chart of each quantity against training FLOPs, side by side, as a PNG.

    Args:
        series: rows of ``{"flops", "quantity", "value", "curve"}``.
        titles: quantity → title of its axis, in the order of the charts.
        path: the PNG to write.
    """
    import vl_convert

    charts = [
        {
            "transform": [{"filter": {"field": "quantity", "equal": quantity}}],
            "width": 380,
            "height": 260,
            "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 18}},
            "encoding": {
                "x": {"field": "flops", "type": "quantitative", "title": "training FLOPs"},
                "y": {
                    "field": "value",
                    "type": "quantitative",
                    "title": title,
                    "scale": {"type": "log", "nice": False},
                },
                "color": {"field": "curve", "type": "nominal", "title": None},
            },
        }
        for quantity, title in titles.items()
    ]
    chart = {
        "background": "white",
        "data": {"values": series},
        "hconcat": charts,
        "config": {"axis": {"format": ".2~g"}},
    }
    write_bytes(path, vl_convert.vegalite_to_png(chart, scale=1.5))
