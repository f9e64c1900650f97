"""Seams: the grid of patches in flat areas is measured where it is, and nowhere else."""

import math

import numpy as np
import pytest

from benchmarks.scaling.seams import PICTURES, images_of, seams
from maskdm.figures import grid, save
from maskdm.runtime.errors import UserError
from tests.support.graph import ROOT

NOISE = np.random.default_rng(0).integers(-3, 4, (32, 32, 32, 3))


def flat(noise, colour=(200, 60, 90)):
    return (np.array(colour) + noise).astype(np.uint8)


def test_noise_alone_has_no_seams():
    found = seams(flat(NOISE), 4)
    assert found.windows == 32 * 7 * 7
    assert found.across == pytest.approx(found.within, rel=0.02)


@pytest.mark.parametrize("axis", [1, 2])
def test_patches_that_disagree_have_seams_as_high_as_they_disagree(axis):
    """Every second row, or column, of patches is 8 levels darker: half of the pairs across."""
    place = np.arange(32) // 4 % 2 * 8
    uneven = flat(np.zeros_like(NOISE) - (place[:, None, None] if axis == 1 else place[:, None]))
    found = seams(uneven, 4)
    assert (found.across, found.within) == (4, 0)
    assert seams(np.roll(uneven, 2, axis=axis), 4).across == 0  # steps elsewhere are no seams


def test_white_and_what_is_not_flat_say_nothing():
    for images in (flat(NOISE, (250, 250, 250)), flat(NOISE * 20)):
        found = seams(images, 4)
        assert found.windows == 0
        assert math.isnan(found.across)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_grid_is_taken_apart_into_the_images_that_it_was_made_of(tmp_path, scale):
    images = flat(NOISE)
    save(grid(images, columns=16, scale=scale), tmp_path / "samples.png")
    assert np.array_equal(images_of(tmp_path / "samples.png", 32), images)


def test_another_side_is_refused_with_what_to_say(tmp_path):
    save(grid(flat(NOISE), columns=16, scale=2), tmp_path / "samples.png")
    for side in (16, 31, 64):
        with pytest.raises(UserError, match=rf"no grid of 16 images of {side} pixels.*--side"):
            images_of(tmp_path / "samples.png", side)


def test_areas_without_any_difference_have_no_ratio():
    found = seams(flat(np.zeros_like(NOISE)), 4)
    assert (found.across, found.within) == (0, 0)
    assert math.isnan(found.ratio)


@pytest.mark.parametrize(("picture", "side"), PICTURES.items())
def test_the_committed_pictures_have_as_many_images_as_their_pages_say(picture, side):
    assert images_of(ROOT / picture, side).shape == (80, side, side, 3)
