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
