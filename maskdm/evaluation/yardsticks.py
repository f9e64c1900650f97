"""Yardsticks: how things compare that are no model, a scale on which to read a model's distances.

From the worst to the best that one can hope for, they are uniform noise, the mean image (no
variety), training images with shuffled patches (right colours and strokes, no objects), and
held-out images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskdm.evaluation.distances import measure
from maskdm.evaluation.features.extraction import FeatureNetwork, extract
from maskdm.evaluation.manifold import manifold
from maskdm.runtime.sharded import Images

COUNT = 1500  # images per yardstick: more than the embedded extractor has features
PATCH = 4  # pixels


def uniform_noise(
    count: int, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return ``(count, *shape)`` images of independent uniform pixels."""
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


def mean_image(images: Images) -> NDArray[np.uint8]:
    """Return the rounded mean of ``(N, H, W, C)`` images, ``(1, H, W, C)``."""
    parts = (images[start : start + COUNT] for start in range(0, len(images), COUNT))
    total = sum(part.sum(axis=0, keepdims=True, dtype=np.float64) for part in parts)  # exact
    mean: NDArray[np.float64] = total / len(images)
    return mean.round().astype(np.uint8)


def shuffled_patches(
    images: NDArray[np.uint8], patch: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return the images with their patches in random order, a different one for each image.

    Pixels beyond the last whole patch stay where they are.

    Args:
        images: ``(N, H, W, C)``.
        patch: side of a patch in pixels.
        rng: draws the orders.
    """
    count, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    shuffled = np.array(images)
    whole = shuffled[:, : rows * patch, : columns * patch]
    patches = whole.reshape(count, rows, patch, columns, patch, channels).swapaxes(2, 3)
    patches = patches.reshape(count, rows * columns, patch, patch, channels)
    order = rng.random((count, rows * columns)).argsort(axis=1)
    patches = np.take_along_axis(patches, order[:, :, None, None, None], axis=1)
    patches = patches.reshape(count, rows, columns, patch, patch, channels).swapaxes(2, 3)
    whole[:] = patches.reshape(whole.shape)
    return shuffled


def yardsticks(
    train: Images,
    train_features: NDArray[np.float32],
    heldout_features: NDArray[np.float32],
    network: FeatureNetwork,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return how each yardstick compares with the training images.

    Args:
        train: the training images, ``(N, H, W, C)`` uint8.
        train_features: features of the training images.
        heldout_features: features of the held-out images.
        network: the network that extracted the features.
        seed: of the noise, the choice of images and their shuffling.

    Returns:
        For each yardstick, the result of ``distances.measure``, and under ``"manifold"`` that of
        ``manifold``.
    """
    rng = np.random.default_rng(seed)
    count = min(COUNT, len(train))
    noise = uniform_noise(count, train.shape[1:], rng)
    chosen = train[np.sort(rng.choice(len(train), count, replace=False))]
    shuffled = shuffled_patches(chosen, PATCH, rng)
    features = {
        "uniform_noise": extract(noise, network, label="yardstick: noise"),
        # One image repeated: its covariance is exactly zero, so its distance is that of a point.
        "mean_image": extract(mean_image(train), network).repeat(count, axis=0),
        "shuffled_patches": extract(shuffled, network, label="yardstick: shuffled patches"),
        "heldout": heldout_features,
    }
    return {
        name: {
            **measure(values, train_features, network.extractor),
            "manifold": manifold(values, train_features),
        }
        for name, values in features.items()
    }
