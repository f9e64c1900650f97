"""Pictures show what they are given."""

import numpy as np
from PIL import Image

from maskdm.figures import GAP, HIDDEN, curves, grid, hide, save

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def test_a_grid_holds_every_image_pixel_by_pixel():
    sheet = np.array(grid(IMAGES, columns=3, scale=2))
    for index, image in enumerate(IMAGES):
        y, x = (index // 3 * 10 + GAP) * 2, (index % 3 * 10 + GAP) * 2
        assert np.array_equal(sheet[y : y + 16 : 2, x : x + 16 : 2], image)


def test_grey_images_make_a_grey_grid():
    assert grid(IMAGES[..., :1], columns=2).mode == "L"


def test_hiding_greys_exactly_the_patches_that_are_not_visible():
    visible = np.array([[0, 3]] * 5)  # of a 2×2 grid of 4×4 patches: the diagonal
    shown = hide(IMAGES, visible, patch=4)
    assert np.array_equal(shown[:, :4, :4], IMAGES[:, :4, :4])
    assert np.array_equal(shown[:, 4:, 4:], IMAGES[:, 4:, 4:])
    assert (shown[:, :4, 4:] == HIDDEN).all()
    assert (shown[:, 4:, :4] == HIDDEN).all()


def test_the_same_pixels_give_the_same_bytes(tmp_path):
    for name in ("one.png", "two.png"):
        save(grid(IMAGES, 3), tmp_path / "new" / name)
    assert (tmp_path / "new/one.png").read_bytes() == (tmp_path / "new/two.png").read_bytes()


def test_curves_are_drawn_one_chart_a_quantity(tmp_path):
    series = [
        {"flops": f * 1e12, "value": 1 / f, "quantity": q, "curve": "pretraining"}
        for f in (1, 2, 3)
        for q in ("loss", "error")
    ]
    widths = []
    for titles in ({"loss": "a"}, {"loss": "a", "error": "b"}):
        curves(series, titles, tmp_path / "curves.png")
        picture = Image.open(tmp_path / "curves.png").convert("RGB")
        widths.append(picture.width)
        assert len(np.unique(np.array(picture))) > 10
    assert widths[1] > 1.8 * widths[0]
