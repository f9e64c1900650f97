"""Distances between two sets of images, measured in their features.

The Fréchet distance (Heusel et al., 2017) and the kernel distance (Bińkowski et al., 2018): the
numbers that clean-fid computes, by cheaper algorithms. The Fréchet distance needs a covariance of
full rank, so it is left out where there are not more images than features; the kernel distance is
unbiased at any number.
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

SUBSETS = 100  # both as in clean-fid and in the paper on the kernel distance
SUBSET_SIZE = 1000
ROWS = 4096  # rows that a covariance's root takes up at a time; in double they take 40 MB and more
BLOCK = 1024  # rows on both sides of a block of the kernel matrix


class FidParams(Section):
    """The section ``fid``: how samples are compared with real images."""

    features: FeatureParams


def frechet_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2√(Σ₁Σ₂)) of two sets of features.

    What clean-fid computes, but without the square root of a matrix that is not symmetric: with
    Σ = RᵀR, the trace of √(Σ₁Σ₂) is the sum of the singular values of R₁R₂ᵀ, and their squares are
    the eigenvalues of a symmetric matrix. Singular covariances are as good as others.

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
    overlap = squares.clamp_(min=0).sqrt_().sum()  # a zero may be a rounding error below it
    return float(gap @ gap + small.square().sum() + large.square().sum() - 2 * overlap)


def covariance_root(features: NDArray[np.float32]) -> Tensor:
    """Return a matrix R for which RᵀR is the sample covariance of features.

    From the rows themselves (QR), not from their covariance, which would lose half of the digits.

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

    The kernel is (x·y / features + 1)³. In double precision, so that six digits of it do not
    depend on the number of threads. Estimator and subsets are clean-fid's.

    Args:
        a: ``(n, features)``, in memory or mapped.
        b: ``(m, features)``, likewise.
        seed: of the subsets that are drawn.
        subsets: how many are averaged.
        subset_size: rows of each, at most ``min(n, m)``.

    Returns:
        The mean over the subsets, and their standard deviation.

    Raises:
        UserError: if a set has fewer than two images.
    """
    require_two("kernel", a, b)
    if len(a) == len(b) <= subset_size:
        subsets = 1  # there is no other subset than everything
    size = min(len(a), len(b), subset_size)
    in_a, in_b = np.empty((2, subsets, size), np.int64)
    rng = np.random.RandomState(seed)  # draws what clean-fid would from NumPy's global generator
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

    Each k(xᵢ, yⱼ) is computed once, unless the sets are so large that few are needed.

    Args:
        x: ``(n, features)``.
        y: ``(m, features)``.
        in_x: the rows of x that are in each subset, ``(subsets, size)``, none twice in one.
        in_y: the rows of y that are in each subset, likewise.

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
    # As ** 3 it would take longer than the product.
    cubes: NDArray[np.float64] = values * values * values
    return cubes


def membership(subsets: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return 1 where one of ``count`` rows is in a subset, else 0, ``(subsets, count)``."""
    members = np.zeros((len(subsets), count))
    np.put_along_axis(members, subsets, 1, axis=1)
    return members


def require_two(distance: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    """Raise a UserError where either set is too small for a distance."""
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
