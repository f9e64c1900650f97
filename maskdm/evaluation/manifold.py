"""Are the samples good, and is everything there? Precision, recall, density, coverage.

A Fréchet or a kernel distance is one number for both; a guide that leads samples to the typical
improves the one and loses the other. Here each set of features spans a manifold, the balls around
its images that reach to their k-th nearest neighbours in the set, and one asks how much of the
other set lies in it (Kynkäänniemi et al. 2019, arXiv 1904.06991, and Naeem et al. 2020, arXiv
2002.09797).
"""

import numpy as np
from numpy.typing import NDArray

from maskdm.evaluation.neighbours import nearest

NEIGHBOURS = 5  # k, as Naeem et al. chose it for all four
MOST = 5000  # images of either set; the rest is left out, since time grows with the square
BLOCK = 1024  # images at a time on both sides
# Of squared distances, relative to the images' own squares: what rounding may make of equal ones.
ROUNDING = 1e-9


def manifold(
    samples: NDArray[np.float32],
    real: NDArray[np.float32],
    seed: int = 0,
    neighbours: int = NEIGHBOURS,
) -> dict[str, float]:
    """Compare two sets of features by the manifolds that they span.

    Both sets are first brought to the same size, at most ``MOST``, by a random choice: balls shrink
    as a set grows, and recall is measured in those of the samples, precision in those of the real.

    Args:
        samples: ``(n, features)``, in memory or mapped.
        real: ``(m, features)``, likewise.
        seed: of the choice.
        neighbours: k, the neighbour that a ball reaches to.

    Returns:
        ``precision``, the share of samples in a ball of a real image; ``recall``, the share of real
        images in a ball of a sample; ``density``, in how many balls of real images a sample lies,
        divided by k (1 for samples that are like the real, and not bounded by it); ``coverage``,
        the share of balls of real images that hold a sample. Nothing if either set has not more
        than k images. Six significant digits.
    """
    size = min(len(samples), len(real), MOST)
    if size <= neighbours:
        return {}
    rng = np.random.default_rng(seed)
    drawn, known = (
        np.asarray(one[np.sort(rng.choice(len(one), size, replace=False))], np.float64)
        for one in (samples, real)
    )
    radii_drawn, radii_known = radii(drawn, neighbours), radii(known, neighbours)
    in_known, holds = np.zeros(size), np.zeros(size, bool)  # balls a sample is in; that hold one
    in_drawn = np.zeros(size, bool)
    for rows in blocks(size):
        for columns in blocks(size):
            squared, slack = squared_distances(known[rows], drawn[columns])
            of_known = squared <= radii_known[rows, None] ** 2 + slack
            in_known[columns] += of_known.sum(axis=0)
            holds[rows] |= of_known.any(axis=1)
            in_drawn[rows] |= (squared <= radii_drawn[columns] ** 2 + slack).any(axis=1)
    values = {
        "precision": (in_known > 0).mean(),
        "recall": in_drawn.mean(),
        "density": in_known.mean() / neighbours,
        "coverage": holds.mean(),
    }
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def expected_coverage(size: int, neighbours: int = NEIGHBOURS) -> float:
    """Return the coverage by samples that follow the distribution of the real images.

    1 − Π (n−i) / (2n−i) over i = 1 … k, for n images on each side: the chance that the k nearest of
    all other images are all real ones (Naeem et al. 2020, section 3.3).
    """
    of_real = [(size - i) / (2 * size - i) for i in range(1, neighbours + 1)]
    return 1 - float(np.prod(of_real))


def radii(features: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    """Return the distance of each image to its k-th nearest neighbour in its set, ``(n,)``."""
    _, distances = nearest(features, features, neighbours + 1)  # the nearest is the image itself
    return distances[:, neighbours]


def squared_distances(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the squared distances of all x to all y, and what rounding may have added."""
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)
    return squares - 2 * x @ y.T, ROUNDING * squares


def blocks(size: int) -> list[slice]:
    """Return slices of at most ``BLOCK`` that cover ``size`` images."""
    return [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]
