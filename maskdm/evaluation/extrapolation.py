"""FD∞: the Fréchet distance that infinitely many samples would have (Chong & Forsyth 2020).

A covariance of n samples is not the covariance: the distance comes out too large, and the more so
the fewer there are (arXiv 1911.07023). Its bias is a series in 1/n, so the distances of smaller
sets of the same samples tell where the distance goes as 1/n goes to 0. Chong & Forsyth fit a line;
with little more samples than features it overshoots, so here the term in 1/n² is fitted, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maskdm.evaluation.distances import covariance_root, require_two
from maskdm.evaluation.features.extraction import Extractor

if TYPE_CHECKING:
    from torch import Tensor

# Samples are split into so many parts, and all sets looked at that lack one. In each way of
# splitting every sample is left out equally often, which takes most of the noise out of the fit.
SPLITS = (2, 3)
BOOTSTRAPS = 12
T_95 = 2.201  # Student's t for 95 %, with BOOTSTRAPS − 1 degrees of freedom


def frechet_limit(
    samples: NDArray[np.float32], reference: NDArray[np.float32], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return the Fréchet distance to a reference, extrapolated to infinitely many samples.

    The reference stays as it is. The estimate is nearly unbiased, so it may be negative where the
    distance is 0.

    Args:
        samples: ``(n, features)``.
        reference: ``(m, features)``, in memory or mapped.
        seed: of the splits and of the bootstrap.

    Returns:
        The distance, and its interval of 95 %: Student's, with the standard deviation over
        bootstraps of the samples. It is too wide rather than too narrow where n is small.

    Raises:
        UserError: if a set has fewer than two images.
    """
    require_two("Fréchet", samples, reference)
    rng = np.random.default_rng(seed)
    distances = _Distances(samples, reference)
    count = len(samples)
    found = distances.limit(rng.permutation(count))
    resampled = [distances.limit(rng.integers(0, count, count)) for _ in range(BOOTSTRAPS)]
    reach = T_95 * float(np.std(resampled, ddof=1))
    return found, (found - reach, found + reach)


def extrapolated(
    features: NDArray[np.float32], reference: NDArray[np.float32], extractor: Extractor
) -> dict[str, Any]:
    """Return FD∞ and its interval under names that follow the features.

    Args:
        features: of the samples, ``(n, extractor.count)``.
        reference: ``(m, extractor.count)``.
        extractor: the kind of features, which names the distance.

    Returns:
        ``…_infinity`` and ``…_infinity_interval``, four significant digits; nothing where there is
        no Fréchet distance, either, since n or m is at most ``extractor.count``.
    """
    if min(len(features), len(reference)) <= extractor.count:
        return {}
    value, interval = frechet_limit(features, reference)
    name = f"{extractor.frechet}_infinity"
    rounded = [float(f"{number:.4g}") for number in (value, *interval)]
    return {name: rounded[0], f"{name}_interval": rounded[1:]}


class _Distances:
    """The Fréchet distances of selections of samples, by what all of them share."""

    def __init__(self, samples: NDArray[np.float32], reference: NDArray[np.float32]) -> None:
        import torch

        root = covariance_root(reference)
        mean = torch.from_numpy(reference.mean(axis=0, dtype=np.float64))
        self.samples = torch.from_numpy(np.asarray(samples, np.float64)) - mean
        self.turned = self.samples @ root.T
        self.variance = float(root.square().sum())

    def limit(self, rows: NDArray[np.int64]) -> float:
        """Return the distance of selected rows, extrapolated.

        Args:
            rows: in random order; a row may stand there several times.
        """
        inverse, values = [1 / len(rows)], [self.distance(rows)]
        for parts in SPLITS:
            groups = np.array_split(rows, parts)
            lacking = [np.concatenate(groups[:i] + groups[i + 1 :]) for i in range(parts)]
            inverse.append(float(np.mean([1 / len(kept) for kept in lacking])))
            values.append(float(np.mean([self.distance(kept) for kept in lacking])))
        return float(np.polyfit(inverse, values, len(SPLITS))[-1])

    def distance(self, rows: NDArray[np.int64]) -> float:
        """Return the Fréchet distance of selected rows; see ``distances.frechet_distance``."""
        import torch

        chosen, times = np.unique(rows, return_counts=True)
        weights = torch.from_numpy(times / len(rows))[:, None]
        spread = len(rows) / (len(rows) - 1)

        def moments(values: Tensor) -> tuple[Tensor, Tensor]:
            mean = (weights * values).sum(dim=0)
            return mean, (weights * spread).sqrt() * (values - mean)

        gap, centred = moments(self.samples[chosen])
        _, product = moments(self.turned[chosen])
        if len(product) > product.shape[1]:
            product = product.T
        squares = torch.linalg.eigvalsh(product @ product.T)
        overlap = squares.clamp_(min=0).sqrt_().sum()
        return float(gap @ gap + self.variance + centred.square().sum() - 2 * overlap)
