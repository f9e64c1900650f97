"""What measuring samples costs: their features, and the Fréchet distance of two sets of features.

Features are limited by the network that computes them: what else is done with an image, from
reading it to resizing it, should hardly count. A Fréchet distance is limited by the least that
holds the root of a covariance: the eigendecomposition of one symmetric matrix.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.speed.measuring import interleaved, timer
from benchmarks.speed.results import Row
from maskdm.data.registry import DataParams
from maskdm.evaluation.distances import FidParams, frechet_distance
from maskdm.evaluation.features.extraction import FeatureNetwork, extract
from maskdm.evaluation.features.registry import load_network
from maskdm.evaluation.yardsticks import uniform_noise
from maskdm.runtime.devices import choose_device
from maskdm.runtime.environment import prefer_huge_pages
from maskdm.runtime.params import Params, read_section

IMAGES = {"cpu": 96, "cuda": 4096}  # whose features are extracted
BATCHES = {"cpu": (4, 8, 16, 32), "cuda": (64, 256, 1024)}  # of which the fastest is the limit
RATE = 0.8  # goal: of the bare network's
SAMPLES, COUNT = 1500, 1280  # the demo's, and the features of the embedded extractor
EIGENDECOMPOSITIONS = 3  # goal: that a distance costs at most


def features(preset: Params) -> list[Row]:
    """Time features of noise in the shape of the preset's images, and the bare network, in turns.

    The network gets images that are resized already, in batches of several sizes.
    """
    prefer_huge_pages()  # as the stages do
    device = choose_device()
    data = read_section(preset, "data", DataParams)
    network = load_network(read_section(preset, "fid", FidParams).features.extractor, device)
    count = IMAGES.get(device.type, IMAGES["cuda"])
    shape = (data.resolution, data.resolution, data.channels)
    images = uniform_noise(count, shape, np.random.default_rng(0))
    timers = {"extract": timer(partial(extract, images, network), device)}
    sizes = BATCHES.get(device.type, BATCHES["cuda"])
    timers |= {f"{size} at once": timer(bare_pass(network, size), device) for size in sizes}
    seconds = interleaved(timers, least=5, most=10)
    return [features_row(count, seconds["extract"], {n: seconds[f"{n} at once"] for n in sizes})]


def bare_pass(network: FeatureNetwork, size: int) -> Callable[[], Tensor]:
    """Return a forward pass of the network alone, of ``size`` images that are resized already."""
    side = network.extractor.side
    images = 255 * torch.rand(size, 3, side, side, device=network.device)
    images = images.contiguous(memory_format=torch.channels_last)
    return torch.inference_mode()(partial(network.network, images))


def features_row(count: int, seconds: float, bare: Mapping[int, float]) -> Row:
    """Return the row that follows from times.

    Args:
        count: images whose features were extracted.
        seconds: that it took.
        bare: seconds of one pass of the bare network, by the images in its batch.
    """
    best = max(size / passed for size, passed in bare.items())
    name = "extraction of features ÷ the bare network"
    return Row(name, count / seconds, "images/s", best, RATE, True)


def distance(_: Params) -> list[Row]:
    """Time a Fréchet distance and the symmetric eigendecompositions that are at hand, in turns."""
    rng = np.random.default_rng(0)
    a, b = correlated(rng), correlated(rng)
    covariance = np.cov(a, rowvar=False, dtype=np.float64)
    calls: dict[str, Callable[[], object]] = {
        "distance": partial(frechet_distance, a, b),
        "torch": partial(torch.linalg.eigh, torch.from_numpy(covariance)),
        "numpy": partial(np.linalg.eigh, covariance),
    }
    cpu = torch.device("cpu")
    timers = {name: timer(call, cpu) for name, call in calls.items()}
    seconds = interleaved(timers, least=5, most=15)
    return [distance_row(seconds.pop("distance"), seconds)]


def distance_row(seconds: float, eigendecompositions: Mapping[str, float]) -> Row:
    """Return the row that follows from times, of a distance and of each eigendecomposition."""
    name = f"Fréchet distance of {COUNT} features ÷ an eigendecomposition"
    limit = min(eigendecompositions.values())
    return Row(name, seconds, "s", limit, EIGENDECOMPOSITIONS, False)


def correlated(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return features whose principal variances fall off, ``(SAMPLES, COUNT)``."""
    spreads = np.arange(1, COUNT + 1) ** -0.5
    rows = rng.normal(size=(SAMPLES, COUNT)) * spreads
    mixed: NDArray[np.float64] = rows @ rng.normal(size=(COUNT, COUNT))
    return mixed.astype(np.float32)
