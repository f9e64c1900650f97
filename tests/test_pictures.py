"""The pictures of how a model draws: from noise, between noises, by class."""

import numpy as np
import pytest

import maskdm
from stages import pictures
from tests.support.models import arrays, drawing, saved


def test_denoising_ends_in_the_samples(model):
    strip = pictures.denoising(model, drawing())
    last = strip.reshape(pictures.ROWS, pictures.COLUMNS, 16, 16, 3)[:, -1]
    assert np.array_equal(last, arrays(model.sample(pictures.ROWS, nfe=5)))


def test_denoising_goes_from_noise_to_the_samples_in_ten_moments(model):
    asked = drawing(nfe=20)
    every = list(model.estimates(asked, range(pictures.ROWS)))
    strip = pictures.denoising(model, asked).reshape(pictures.ROWS, pictures.COLUMNS, 16, 16, 3)
    moments = [
        next(n for n, images in enumerate(every) if np.array_equal(images, strip[:, column]))
        for column in range(pictures.COLUMNS)
    ]
    assert (moments[0], moments[-1]) == (0, len(every) - 1)
    steps = np.diff(moments)
    assert steps.min() >= 1
    assert steps.max() - steps.min() <= 1  # evenly


def test_every_row_goes_between_two_samples_of_its_own(model):
    images = pictures.interpolation(model, drawing()).astype(int)
    ends = images.reshape(pictures.ROWS, pictures.COLUMNS, 16, 16, 3)[:, [0, -1]]
    samples = arrays(model.sample(2 * pictures.ROWS, nfe=5)).reshape(ends.shape)
    assert abs(ends - samples).max() <= 1


@pytest.mark.parametrize("fixture", ["model", "conditional"])
def test_interpolation_goes_from_a_sample_to_another(fixture, request):
    model = request.getfixturevalue(fixture)
    images = pictures.interpolation(model, drawing()).astype(int)
    rows = images.reshape(pictures.ROWS, pictures.COLUMNS, 16, 16, 3)
    label = model.labels(None, 0, range(1))
    ends = arrays(model.sample(2, nfe=5, label=None if label is None else label.item()))
    assert abs(rows[0, [0, -1]] - ends).max() <= 1  # up to the rounding of other batches


def test_classes_are_rows_and_a_column_is_one_noise(conditional, model):
    rows = pictures.by_class(conditional, drawing())
    assert [name for name, _ in rows] == ["cat", "dog", "owl"]
    expected = arrays(conditional.sample(pictures.COLUMNS, nfe=5, label="owl"))
    assert np.array_equal(rows[2][1], expected)
    ((name, images),) = pictures.by_class(model, drawing())
    assert (name, len(images)) == ("", pictures.COLUMNS)


def test_many_classes_are_shown_in_part(tmp_path):
    many = maskdm.load(saved(tmp_path, classes={f"c{n}": 1 for n in range(50)}), device="cpu")
    names = [name for name, _ in pictures.by_class(many, drawing(nfe=2))]
    assert len(names) == pictures.MOST_CLASSES
    assert (names[0], names[-1]) == ("c0", "c49")
