"""Distances between two sets of images, measured in their features.

The Fréchet distance (Heusel et al., 2017) and the kernel distance (Bińkowski et al., 2018) are the
numbers that clean-fid computes, by cheaper algorithms. The Fréchet distance needs a covariance of
full rank, so it is left out unless there are more images than features; the kernel distance is
unbiased for any number of images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from maskdm.evaluation.features.extraction import Extractor
from maskdm.evaluation.features.registry import FeatureParams
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import Section

if TYPE_CHECKING:
    from torch import Tensor

# Number and size of the kernel distance's subsets are those of clean-fid and of the paper.
SUBSETS = 100
SUBSET_SIZE = 1000
ROWS = 4096  # images at a time in the root of a covariance: 40 MB and more in double precision
BLOCK = 1024  # side of a block of the kernel matrix


class FidParams(Section):
    """The section ``fid``: how samples are compared with real images."""

    features: FeatureParams


def frechet_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2√(Σ₁Σ₂)) of two sets of features.

    The value is clean-fid's, without the square root of a non-symmetric matrix: with Σ = RᵀR, the
    trace of √(Σ₁Σ₂) is the sum of the singular values of R₁R₂ᵀ, and their squares are the
    eigenvalues of a symmetric matrix. Covariances may be singular.

    Args:
        a: ``(n, features)``, in memory or mapped.
        b: ``(m, features)``, likewise.

    Raises:
        UserError: if a set has fewer than two images.
    """
    import torch

    require_two("Fréchet", a, b)
    gap = a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)
    small, large = sorted((covariance_root(a), covariance_root(b)), key=len)
    product = small @ large.T
    squares = torch.linalg.eigvalsh(product @ product.T)
    overlap = squares.clamp_(min=0).sqrt_().sum()  # rounding may leave a zero negative
    return float(gap @ gap + small.square().sum() + large.square().sum() - 2 * overlap)


def covariance_root(features: NDArray[np.float32]) -> Tensor:
    """Return a matrix R for which RᵀR is the sample covariance of features.

    It is computed from the rows (QR): forming their covariance would lose half of the digits.

    Args:
        features: ``(n, features)``, n at least 2; few rows at a time are held in double precision.

    Returns:
        ``(min(n, features), features)`` float64.
    """
    import torch

    count = features.shape[1]
    mean = features.mean(axis=0, dtype=np.float64)
    root = torch.empty(0, count, dtype=torch.float64)
    for start in range(0, len(features), ROWS):
        rows = (features[start : start + ROWS] - mean) / np.sqrt(len(features) - 1)
        root = torch.cat([root, torch.from_numpy(rows)])
        if len(root) > count:
            root = torch.linalg.qr(root, mode="r").R
    return root


def kernel_distance(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    seed: int,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
) -> tuple[float, float]:
    """Return the unbiased squared maximum mean discrepancy of two sets of features.

    The kernel is (x·y / features + 1)³; estimator and subsets are clean-fid's. Double precision
    makes six digits independent of the number of threads.

    Args:
        a: ``(n, features)``, in memory or mapped.
        b: ``(m, features)``, likewise.
        seed: of the subsets.
        subsets: the number of subsets to average over.
        subset_size: images in a subset; fewer if a set has fewer.

    Returns:
        The mean over the subsets, and their standard deviation.

    Raises:
        UserError: if a set has fewer than two images.
    """
    require_two("kernel", a, b)
    if len(a) == len(b) <= subset_size:
        subsets = 1  # the only subset is the whole set
    size = min(len(a), len(b), subset_size)
    in_a, in_b = np.empty((2, subsets, size), np.int64)
    rng = np.random.RandomState(seed)  # as clean-fid draws from NumPy's global generator
    for subset in range(subsets):
        in_b[subset] = rng.choice(len(b), size, replace=False)
        in_a[subset] = rng.choice(len(a), size, replace=False)
    within = pair_sums(a, a, in_a, in_a) - self_sums(a, in_a)
    within += pair_sums(b, b, in_b, in_b) - self_sums(b, in_b)
    across = pair_sums(a, b, in_a, in_b)
    values = (within / (size - 1) - 2 * across / size) / size
    return float(np.mean(values)), float(np.std(values))


def pair_sums(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    in_x: NDArray[np.int64],
    in_y: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return Σᵢⱼ k(xᵢ, yⱼ) for pairs of subsets, k being the kernel of the kernel distance.

    Each k(xᵢ, yⱼ) is computed once, unless the sets are so large that most are not needed.

    Args:
        x: ``(n, features)``.
        y: ``(m, features)``.
        in_x: the rows of x in each subset, ``(subsets, size)``, none twice in one subset.
        in_y: the rows of y in each subset, likewise.

    Returns:
        ``(subsets,)``.
    """
    if len(x) * len(y) > in_x.size * in_y.shape[1]:
        pairs = zip(in_x, in_y, strict=True)
        return np.array([kernel(x[rows], y[columns]).sum() for rows, columns in pairs])
    of_x, of_y = membership(in_x, len(x)), membership(in_y, len(y))
    sums = np.zeros(len(in_x))
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
            sums += (of_x[:, rows] @ kernel(x[rows], y[columns]) * of_y[:, columns]).sum(axis=1)
    return sums


def self_sums(x: NDArray[np.float32], in_x: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return Σᵢ k(xᵢ, xᵢ) for subsets; see ``pair_sums``."""
    squares: NDArray[np.float64] = np.einsum("ij,ij->i", x, x, dtype=np.float64)
    values: NDArray[np.float64] = (squares / x.shape[1] + 1) ** 3
    sums: NDArray[np.float64] = values[in_x].sum(axis=1)
    return sums


def kernel(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (x·y / features + 1)³ of all rows of x with all of y, ``(n, m)``."""
    values = x.astype(np.float64) @ y.astype(np.float64).T
    values /= x.shape[1]
    values += 1
    # Two products are faster than ** 3, which would take longer than the matrix product.
    cubes: NDArray[np.float64] = values * values * values
    return cubes


def membership(subsets: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return 1 where one of ``count`` rows is in a subset, else 0, ``(subsets, count)``."""
    members = np.zeros((len(subsets), count))
    np.put_along_axis(members, subsets, 1, axis=1)
    return members


def require_two(distance: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    """Raise a UserError if either set is too small for a distance."""
    if min(len(a), len(b)) < 2:
        raise UserError(
            f"A {distance} distance needs at least 2 images on each side, not {len(a)} and "
            f"{len(b)}: draw more samples, or hold out more images."
        )


def measure(
    features: NDArray[np.float32],
    reference: NDArray[np.float32],
    extractor: Extractor,
    seed: int = 0,
) -> dict[str, float]:
    """Return every distance that two sets of features allow, named after the features.

    Args:
        features: ``(n, extractor.count)``.
        reference: ``(m, extractor.count)``.
        extractor: the kind of features, which names the distances.
        seed: of the kernel distance's subsets; the same for all sets that are compared.

    Returns:
        The Fréchet distance, unless n or m is at most ``extractor.count``; the kernel distance
        and (``…_std``) its standard deviation over subsets, unless n or m is 1. Six significant
        digits.
    """
    values: dict[str, float] = {}
    if min(len(features), len(reference)) < 2:
        return values
    if min(len(features), len(reference)) > extractor.count:
        values[extractor.frechet] = frechet_distance(features, reference)
    mean, deviation = kernel_distance(features, reference, seed)
    values |= {extractor.kernel: mean, f"{extractor.kernel}_std": deviation}
    return {name: float(f"{value:.6g}") for name, value in values.items()}
