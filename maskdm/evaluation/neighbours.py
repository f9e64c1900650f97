"""Does the model copy? The training images that are nearest to its samples, in feature space.

Held-out images are new by construction, so their distances to the training images are the scale:
the samples of a model that copies are much nearer. What chance alone makes of the comparison is
told by held-out images in the place of the samples.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 256  # queries at a time
BLOCK = 4096  # references at a time: with 1 280 features they and their squares take 84 MB
CLOSE = 0.01  # share of held-out images whose distances count as close
RESAMPLED = 2000  # times that held-out images take the place of the samples
INTERVAL = 0.025, 0.975  # quantiles: what 95 % of them lie between


def nearest(
    queries: NDArray[np.floating], references: NDArray[np.floating], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the nearest references of each query, nearest first, and their Euclidean distances.

    Args:
        queries: ``(n, features)``.
        references: ``(m, features)``, in memory or mapped.
        count: neighbours of each query, at most m.

    Returns:
        Indices and distances, both ``(n, count)``.

    Raises:
        ValueError: if there are not so many references.
    """
    if count > len(references):
        raise ValueError(f"{count} neighbours among {len(references)} references")
    indices = np.zeros((len(queries), count), np.int64)
    distances = np.full((len(queries), count), np.inf)
    for first in range(0, len(references), BLOCK):
        known = np.asarray(references[first : first + BLOCK], np.float64)
        squares = (known**2).sum(axis=1)
        for start in range(0, len(queries), CHUNK):
            part = np.asarray(queries[start : start + CHUNK], np.float64)
            squared = squares - 2 * part @ known.T  # up to the query's own square
            best = squared.argpartition(min(count, len(known)) - 1, axis=1)[:, :count]
            # Differences give the distances: the expansion above loses small ones to rounding.
            exact = np.linalg.norm(part[:, None] - known[best], axis=2)
            rows = slice(start, start + CHUNK)
            near = np.concatenate([indices[rows], first + best], axis=1)
            gaps = np.concatenate([distances[rows], exact], axis=1)
            order = gaps.argsort(axis=1, kind="stable")[:, :count]
            indices[rows] = np.take_along_axis(near, order, axis=1)
            distances[rows] = np.take_along_axis(gaps, order, axis=1)
    return indices, distances


def copying(
    samples: NDArray[np.float32],
    heldout: NDArray[np.float32],
    train: NDArray[np.float32],
    seed: int = 0,
) -> dict[str, Any]:
    """Compare samples with held-out images by their distances to the training images.

    Args:
        samples: features of the samples, ``(n, features)``.
        heldout: features of held-out images.
        train: features of the training images.
        seed: of the null intervals.

    Returns:
        ``distance``, the mean distance to the nearest training image; ``distance_heldout``, the
        same of held-out images; ``ratio`` of the two, about 0 for a copier, None where held-out
        images are training images up to rounding, which is no scale; ``close``, the share of
        samples as near as the nearest 1 % of held-out images. ``ratio_null`` and ``close_null`` say
        between what values the two are, 95 % of the time, for samples that are as new as held-out
        images.
    """
    ours, theirs = (nearest(queries, train, 1)[1].ravel() for queries in (samples, heldout))
    scale = round(float(theirs.mean()), 4)
    near = np.quantile(theirs, CLOSE)
    # As many draws on each side as there are images, from the held-out ones on both (bootstrap).
    rng = np.random.default_rng(seed)
    drawn, known = (rng.choice(theirs, (RESAMPLED, len(side))) for side in (ours, theirs))
    means, nears = known.mean(axis=1), np.quantile(known, CLOSE, axis=1)
    return {
        "distance": round(float(ours.mean()), 4),
        "distance_heldout": scale,
        "ratio": round(float(ours.mean() / theirs.mean()), 4) if scale else None,
        "ratio_null": interval(drawn.mean(axis=1) / means) if scale and means.all() else None,
        "close": float((ours <= near).mean()),
        "close_null": interval((drawn <= nears[:, None]).mean(axis=1)),
    }


def interval(values: NDArray[np.float64]) -> list[float]:
    """Return the two values that 95 % of them lie between."""
    return [round(float(value), 4) for value in np.quantile(values, INTERVAL)]
