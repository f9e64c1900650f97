"""Yardsticks: distances of things that are no model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.evaluation.features.extraction import FeatureNetwork, extract
from maskdm.evaluation.features.registry import EXTRACTORS
from maskdm.evaluation.yardsticks import mean_image, shuffled_patches, uniform_noise, yardsticks
from tests.support.images import discs

CPU = torch.device("cpu")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@settings(max_examples=20, deadline=None)
@given(side=st.integers(4, 14), channels=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_shuffling_keeps_every_whole_patch_and_the_rest_in_place(side, channels, seed):
    rng = np.random.default_rng(seed)
    images = uniform_noise(2, (side, side, channels), rng)
    kept = images.copy()
    shuffled = shuffled_patches(images, 4, rng)

    def patches(image):
        corners = range(0, side - 3, 4)
        return sorted(image[y : y + 4, x : x + 4].tobytes() for y in corners for x in corners)

    assert [patches(image) for image in shuffled] == [patches(image) for image in images]
    whole = side // 4 * 4
    assert (shuffled[:, whole:] == images[:, whole:]).all()
    assert (shuffled[:, :, whole:] == images[:, :, whole:]).all()
    assert (images == kept).all()


def test_each_image_is_shuffled_its_own_way(rng):
    image = uniform_noise(1, (32, 32, 3), rng)
    shuffled = shuffled_patches(image.repeat(3, axis=0), 4, rng)
    assert len({one.tobytes() for one in [*image, *shuffled]}) == 4


def test_the_mean_image_is_the_mean():
    images = np.stack([np.zeros((2, 2, 1)), np.full((2, 2, 1), 101), np.full((2, 2, 1), 200)])
    assert (mean_image(images.astype(np.uint8)) == np.full((1, 2, 2, 1), 100)).all()


@pytest.mark.slow
def test_the_yardsticks_are_in_the_order_that_the_eye_sees(rng, lite0):
    train = discs(rng, 24)
    train_features = extract(train, lite0)
    heldout_features = extract(discs(rng, 16), lite0)
    scale = yardsticks(train, train_features, heldout_features, lite0)
    assert list(scale) == ["uniform_noise", "mean_image", "shuffled_patches", "heldout"]
    kid = {name: values["kid_efficientnet_lite0"] for name, values in scale.items()}
    assert kid["heldout"] < 0.2 * min(kid["shuffled_patches"], kid["mean_image"])
    assert kid["shuffled_patches"] < kid["uniform_noise"]
    coverage = {name: values["manifold"]["coverage"] for name, values in scale.items()}
    assert max(coverage, key=coverage.__getitem__) == "heldout"


def test_yardsticks_repeat_exactly_and_the_mean_images_distance_is_that_of_a_point(rng):
    colours = FeatureNetwork(
        replace(EXTRACTORS["efficientnet-lite0"], count=3, side=8),
        lambda batch: batch.mean(dim=(2, 3)),
        CPU,
        "",
    )
    train = discs(rng, 60)
    features = extract(train, colours)
    scale = yardsticks(train, features, features[:20], colours)
    assert scale == yardsticks(train, features, features[:20], colours)
    point = extract(mean_image(train), colours)[0]
    gap = np.sum((features.mean(axis=0) - point) ** 2)
    expected = gap + features.astype(float).var(axis=0, ddof=1).sum()
    assert scale["mean_image"]["fd_efficientnet_lite0"] == pytest.approx(expected, rel=1e-5)
