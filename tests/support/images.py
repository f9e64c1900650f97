"""Images that features can tell apart."""

import numpy as np


def discs(rng: np.random.Generator, count: int, side: int = 32) -> np.ndarray:
    """White pictures with one coloured disc each."""
    y, x = np.mgrid[:side, :side]
    centre = rng.uniform(0.3, 0.7, (2, count, 1, 1)) * side
    radius = rng.uniform(0.2, 0.4, (count, 1, 1)) * side
    inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
    colours = rng.integers(0, 200, (count, 1, 1, 3))
    return np.where(inside[..., None], colours, 255).astype(np.uint8)
