"""Distances between two sets of images, measured in their features.

The Fréchet distance (Heusel et al., 2017) and the kernel distance (Bińkowski et al., 2018), both
as clean-fid computes them. The Fréchet distance needs a covariance of full rank, so it is left
out where there are not more images than features; the kernel distance is unbiased at any number.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from maskdm.errors import UserError
from maskdm.evaluation.features import Extractor, FeatureParams
from maskdm.params import Section

SUBSETS = 100  # both as in clean-fid and in the paper on the kernel distance
SUBSET_SIZE = 1000


class FidParams(Section):
    """The section ``fid``: how samples are compared with real images."""

    features: FeatureParams


def frechet_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2√(Σ₁Σ₂)) of two sets of features.

    Args:
        a: ``(n, features)``.
        b: ``(m, features)``.
    """
    from cleanfid import fid

    a, b = a.astype(np.float64), b.astype(np.float64)
    with warnings.catch_warnings():
        # SciPy warns where a covariance is zero (the mean image's is); the root is right there too.
        warnings.simplefilter("ignore")
        return float(
            fid.frechet_distance(
                a.mean(axis=0), np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False)
            )
        )


def kernel_distance(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    seed: int,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
) -> tuple[float, float]:
    """Return the unbiased squared maximum mean discrepancy of two sets of features.

    The kernel is (x·y / features + 1)³. In double precision, so that six digits of it do not
    depend on the number of threads.

    Args:
        a: ``(n, features)``.
        b: ``(m, features)``.
        seed: of the subsets that are drawn.
        subsets: how many are averaged.
        subset_size: rows of each, at most ``min(n, m)``.

    Returns:
        The mean over the subsets, and their standard deviation.

    Raises:
        UserError: if a set has fewer than two images.
    """
    from cleanfid import fid

    if min(len(a), len(b)) < 2:
        raise UserError(
            f"A kernel distance needs at least 2 images on each side, not {len(a)} and {len(b)}: "
            "draw more samples, or hold out more images."
        )
    if len(a) == len(b) <= subset_size:
        subsets = 1  # there is no other subset than everything
    a, b = a.astype(np.float64), b.astype(np.float64)
    with numpy_seed(seed):
        values = [
            fid.kernel_distance(a, b, num_subsets=1, max_subset_size=subset_size)
            for _ in range(subsets)
        ]
    return float(np.mean(values)), float(np.std(values))


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which clean-fid draws from, and restore it afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def measure(
    features: NDArray[np.float32],
    reference: NDArray[np.float32],
    extractor: Extractor,
    seed: int = 0,
) -> dict[str, float]:
    """Return every distance that can be told of two sets of features, under its honest name.

    Args:
        features: ``(n, extractor.count)``.
        reference: ``(m, extractor.count)``.
        extractor: what the features are; it names the distances.
        seed: of the kernel distance's subsets; the same for whatever is to be compared.

    Returns:
        The Fréchet distance, unless n or m is at most ``extractor.count``; the kernel distance
        and (``…_std``) its standard deviation over subsets. Six significant digits.
    """
    values = {}
    if min(len(features), len(reference)) > extractor.count:
        values[extractor.frechet] = frechet_distance(features, reference)
    kernel, deviation = kernel_distance(features, reference, seed)
    values |= {extractor.kernel: kernel, f"{extractor.kernel}_std": deviation}
    return {name: float(f"{value:.6g}") for name, value in values.items()}
