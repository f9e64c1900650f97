"""Densities of points in the plane as heat maps, a line over each."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LETTERS = 14  # height of written names in pixels
# Colours of densities, from none to all, and of the line.
PALEST, DEEPEST, RED = (247, 251, 255), (8, 48, 107), (214, 39, 40)


def heat_maps(panels: list[tuple[str, np.ndarray]], line: np.ndarray) -> Image.Image:
    """Return densities of points in the square [−1, 1]² side by side, a red line over each.

    Args:
        panels: titles, and points ``(count, 2)``.
        line: points ``(count, 2)`` of the line, in order.
    """
    side, fine = 300, 3  # pixels of a panel; drawn larger and then averaged
    top, font = 4 * LETTERS, ImageFont.load_default(LETTERS)
    sheet = Image.new("RGB", (len(panels) * (side + LETTERS) + LETTERS, side + top), "white")
    pen = ImageDraw.Draw(sheet)
    corners = [((x + 1) / 2 * side * fine, (1 - y) / 2 * side * fine) for x, y in line]
    for number, (title, points) in enumerate(panels):
        counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], 100, [[-1, 1], [-1, 1]])
        # The densest hundredth is fully blue: a few full bins must not make the others invisible.
        share = (counts[::-1] / max(1.0, np.quantile(counts, 0.99))).clip(0, 1)[..., None] ** 0.6
        colours = (1 - share) * np.array(PALEST) + share * np.array(DEEPEST)
        panel = Image.fromarray(colours.round().astype(np.uint8))
        panel = panel.resize((side * fine, side * fine), Image.Resampling.NEAREST)
        ImageDraw.Draw(panel).line(corners, RED, fine)
        left = LETTERS + number * (side + LETTERS)
        sheet.paste(panel.resize((side, side), Image.Resampling.BOX), (left, top - LETTERS // 2))
        pen.text((left, LETTERS // 2), title, "black", font)
    return sheet
