"""Does the model copy? The training images that are nearest to its samples, in feature space.

Held-out images are new by construction, so their distances to the training images are the scale:
a model that copies has samples much nearer than they are.
"""

import numpy as np
from numpy.typing import NDArray

CHUNK = 256  # queries at a time: the matrix of distances to 60 000 images then takes 120 MB
CLOSE = 0.01  # of held-out images are at most this close to a training image


def nearest(
    queries: NDArray[np.float32], references: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the nearest references of each query, nearest first, and their Euclidean distances.

    Args:
        queries: ``(n, features)``.
        references: ``(m, features)``, in memory or mapped.
        count: how many, at most m.

    Returns:
        Indices and distances, both ``(n, count)``.
    """
    known = np.asarray(references, np.float64)
    lengths = (known**2).sum(axis=1)
    indices = np.empty((len(queries), count), np.int64)
    distances = np.empty((len(queries), count))
    for start in range(0, len(queries), CHUNK):
        part = np.asarray(queries[start : start + CHUNK], np.float64)
        squared = (part**2).sum(axis=1)[:, None] - 2 * part @ known.T + lengths
        order = squared.argsort(axis=1, kind="stable")[:, :count]
        indices[start : start + CHUNK] = order
        # Once more from the differences: the expansion above loses small distances to rounding.
        gaps = part[:, None] - known[order]
        distances[start : start + CHUNK] = np.sqrt((gaps**2).sum(axis=2))
    return indices, distances


def copying(
    samples: NDArray[np.float32], heldout: NDArray[np.float32], train: NDArray[np.float32]
) -> dict[str, float]:
    """Return how near samples are to the training images, beside held-out images.

    Args:
        samples: their features, ``(n, features)``.
        heldout: those of held-out images.
        train: those of training images.

    Returns:
        ``distance``, the mean distance to the nearest training image; ``distance_heldout``, the
        same of held-out images; ``ratio`` of the two, about 0 for a copier; ``close``, the share
        of samples as near as the nearest 1 % of held-out images.
    """
    (_, ours), (_, theirs) = (nearest(queries, train, 1) for queries in (samples, heldout))
    near = np.quantile(theirs, CLOSE)
    return {
        "distance": round(float(ours.mean()), 4),
        "distance_heldout": round(float(theirs.mean()), 4),
        "ratio": round(float(ours.mean() / theirs.mean()), 4),
        "close": float((ours <= near).mean()),
    }
