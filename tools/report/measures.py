"""A run's measures beside their yardsticks: a distance of 0.05 says nothing alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from tools.report.experiments import Experiment

# Yardsticks of reports/yardsticks.json, from the best to the worst.
YARDSTICKS = {
    "heldout": "held-out images",
    "shuffled_patches": "shuffled patches",
    "mean_image": "the mean image",
    "uniform_noise": "noise",
}
# Beginnings of names in reports/metrics.json: what is measured, and which way is better.
MEASURES = {
    "fid": ("Fréchet distance to the training images, in Inception features", "lower"),
    "fd_": ("Fréchet distance to the training images, in the features named", "lower"),
    "kid": ("kernel distance, in the features named; 0 for images of the same kind", "lower"),
    "manifold.precision": ("share of samples that lie among the real images", "higher"),
    "manifold.recall": ("share of real images that lie among the samples", "higher"),
    "manifold.density": ("how densely real images lie around a sample; 1 for real ones", "higher"),
    "manifold.coverage": ("share of real images with a sample near them", "higher"),
}
# Of reports/neighbours.json, with what each would be for new images; which way is better.
COPYING = {
    "ratio": (
        "how far samples are from their nearest training image, over how far held-out images are; "
        "about 0 for copies. In the place of held-out images: its values for new images, 95 %",
        "not lower",
    ),
    "close": (
        "share of samples as near to a training image as the nearest hundredth of the held-out "
        "images; the same",
        "not higher",
    ),
}
HELDOUT, SPREAD = "_heldout", "_std"
LIMIT, INTERVAL = "_infinity", "_interval"


def measures(runs: Sequence[Experiment]) -> dict[str, Any] | None:
    """Return the table of what was measured, None if no run has measured anything.

    Returns:
        ``head``, the runs and the yardsticks, and ``rows`` of ``name, about, better, cells``. The
        yardsticks are those of the first run; ``other`` names runs that were measured against
        other real images, and cannot be compared with it.
    """
    found = [one.metrics() for one in runs]
    names = dict.fromkeys(name for one in found for name in one)
    known = {name: told for name in names if (told := about(name))}
    if not known:
        return None
    scale = runs[0].yardsticks()
    there = [key for key in YARDSTICKS if key in scale]
    rows = []
    for name, (what, better) in known.items():
        if name.endswith(HELDOUT):
            what = "the same to the held-out images, which training never saw"
        if name.endswith(LIMIT):
            what = "what infinitely many samples of the model would have, with its 95 % interval"
        marks = [value(scale[key], name) for key in there]
        rows.append((name, what, better, [value(one, name) for one in found] + marks))
    rows += _copying(runs, there)
    hashes = [one.get("reference.hash") for one in found]
    return {
        "head": [one.name for one in runs] + [YARDSTICKS[key] for key in there],
        "runs": len(runs),
        "rows": rows,
        "other": [
            one.name for one, own in zip(runs, hashes, strict=True) if own != hashes[0] and own
        ],
    }


def _copying(runs: Sequence[Experiment], yardsticks: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the rows that say whether the runs copy; new images stand in as the yardstick."""
    found = [one.json("reports/neighbours.json") for one in runs]
    rows = []
    for name, (what, better) in COPYING.items():
        if any(one.get(name) is not None for one in found):
            cells = [None if one.get(name) is None else f"{one[name]:.3g}" for one in found]
            null = found[0].get(f"{name}_null")
            chance = f"{null[0]:.3g} … {null[1]:.3g}" if null else None
            marks = [chance if key == "heldout" else None for key in yardsticks]
            rows.append((f"neighbours.{name}", what, better, cells + marks))
    return rows


def about(name: str) -> tuple[str, str] | None:
    """Return what a metric measures and which way is better; None if it is no measure."""
    if SPREAD in name or name.endswith(INTERVAL):
        return None
    return next((found for start, found in MEASURES.items() if name.startswith(start)), None)


def value(found: Mapping[str, Any], name: str) -> str | None:
    """Return a measure with its spread or interval, if any; None if it was not measured."""
    number = found.get(name)
    if number is None:
        return None
    if interval := found.get(name + INTERVAL):
        return f"{number:.3g} ({interval[0]:.3g} … {interval[1]:.3g})"
    base = name.removesuffix(HELDOUT)
    spread = found.get(base + SPREAD + name.removeprefix(base))
    return f"{number:.3g}" + (f" ± {spread:.1g}" if spread is not None else "")
