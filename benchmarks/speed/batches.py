"""How many batches the threads of one process make: ``python -m benchmarks.speed.batches``.

While a GPU computes, the next batches are made beside it (``maskdm.training.prefetch``); its steps
are no faster than those. What takes longest should be what nothing can spare: the noise, whose
numbers are drawn one after the other from a stream for each sample. So one limit is the time of as
much noise from a single stream; the other is the plain way, sample by sample, to the same bits.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import Executor
from functools import lru_cache, partial

import numpy as np
import torch

from benchmarks.presets import read_preset
from benchmarks.speed.measuring import interleaved, timer
from benchmarks.speed.results import Row, table
from benchmarks.speed.training import RATES, SMALL, noise_batches
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import MaskParams, make_mask, nothing_masked
from maskdm.diffusion.tokens import all_positions, in_range
from maskdm.runtime.command import run
from maskdm.runtime.params import Params, read_section
from maskdm.runtime.threads import background_threads
from maskdm.training.batches import Batch, Batches
from maskdm.training.phases import FinetuneParams
from maskdm.training.prefetch import PREFETCHED
from maskdm.training.schedule import Schedule

CPU = torch.device("cpu")
MADE = 2 * PREFETCHED  # batches at once
LIMITS = {"plain": "the plain way", "noise": "the noise alone"}
FASTER, NOISE = 1.0, 0.5  # goals: no slower than the plain way; of the rate of the noise alone


def batches(preset: Params) -> list[Row]:
    """Time batches with as many tokens each at every mask rate, of the demo and MaskDM-small."""
    with background_threads(PREFETCHED, "batches") as threads:
        return [
            *of_size("demo", preset, threads),
            *of_size("MaskDM-small, 64 px", read_preset(SMALL), threads),
        ]


def of_size(size: str, preset: Params, threads: Executor) -> list[Row]:
    """Return two rows a mask rate.

    Args:
        size: what the network is called.
        preset: all sections.
        threads: make the batches.
    """
    params = read_section(preset, "finetune", FinetuneParams)
    data = read_section(preset, "data", DataParams)
    grid = data.resolution // preset["model"]["patch"]
    masks = {"whole images": nothing_masked(grid)}
    for rate in RATES:
        asked = MaskParams(strategy="patch", rate=rate, block_size=1)
        masks[f"{rate:.0%} masked"] = make_mask(asked, grid)
    calls: dict[str, Callable[[int], object]] = {}
    for name, mask in masks.items():
        images = round(params.batch_size * grid**2 / mask.visible)
        made = noise_batches(preset, mask, params.model_copy(update={"batch_size": images}))
        calls[name] = made.at
        calls[f"plain, {name}"] = partial(sample_by_sample, made)
        calls[f"noise, {name}"] = partial(noise_alone, made.at(0).noise.shape)
    timers = {name: timer(partial(several, threads, call), CPU) for name, call in calls.items()}
    seconds = interleaved(timers, least=7, most=15)
    rates = {name: MADE / taken for name, taken in seconds.items()}
    rows = []
    for name in masks:
        about, own = f"batches/s, {size}, {name}", rates[name]
        for limit, goal in (("plain", FASTER), ("noise", NOISE)):
            label = f"{about} ÷ {LIMITS[limit]}"
            rows.append(Row(label, own, "1/s", rates[f"{limit}, {name}"], goal, True))
    return rows


def several(threads: Executor, make: Callable[[int], object]) -> None:
    """Make the batches of some steps in threads."""
    for _ in threads.map(make, range(MADE)):
        pass


def noise_alone(shape: tuple[int, ...], step: int) -> np.ndarray:
    """Return standard normal numbers from one stream."""
    random = np.random.Generator(np.random.Philox(key=step))
    return random.standard_normal(shape, dtype=np.float32)


def sample_by_sample(batches: Batches, step: int, part: slice = slice(None)) -> Batch:
    """Return what ``batches.at(step, part)`` returns, made plainly: the reference of its bits.

    A generator of its own is made for every sample, patches are chosen by sorting, and pixels are
    copied one by one.
    """
    images, patch, mask = batches.images, batches.patch, batches.schedule.mask(step)
    everything = [image_of(batches, index) for index in seen(batches.schedule, step)]
    samples = range(len(everything))[part]
    indices = np.array(everything[part], int)
    flipped = np.empty(len(samples), bool)
    scores = np.empty((len(samples), mask.units), np.float32)
    noise = np.empty((len(samples), mask.shown, patch**2 * images.shape[3]), np.float32)
    labels = None if batches.labels is None else np.array(batches.labels[indices])
    for row, sample in enumerate(samples):
        random = generator(batches.seed, batches.phase, step, sample)
        flipped[row] = random.random() < batches.hflip
        random.random(out=scores[row], dtype=np.float32)
        random.standard_normal(out=noise[row], dtype=np.float32)
        if labels is not None and random.random() < batches.label_dropout:
            labels[row] = batches.classes
    shift = generator(batches.seed, f"{batches.phase}/times", step).random()
    uniform = ((np.array(samples) / len(everything) + shift) % 1).astype(np.float32)
    drawn = torch.from_numpy(scores)
    if mask.strategy == "patch":
        positions = drawn.argsort(dim=1)[:, : mask.visible].sort(dim=1).values
    else:
        positions = mask.draw(drawn)
    middle = None
    if mask.scope == "middle":
        positions, middle = all_positions(len(samples), mask.shown, CPU), positions
    return Batch(
        patches(np.asanyarray(images), patch, indices, positions.numpy(), flipped),
        positions,
        torch.from_numpy(noise),
        torch.from_numpy(uniform),
        None if labels is None else torch.from_numpy(labels),
        middle,
    )


def seen(schedule: Schedule, step: int) -> range:
    """Return which images a step sees, counted over all epochs."""
    return range(schedule.images_before(step), schedule.images_before(step + 1))


def image_of(batches: Batches, index: int) -> int:
    """Return which image is the one of this number, counted over all epochs."""
    epoch, place = divmod(index, len(batches.images))
    return int(order(len(batches.images), batches.seed, batches.phase, epoch)[place])


@lru_cache(maxsize=2)
def order(count: int, seed: int, phase: str, epoch: int) -> np.ndarray:
    """Return the order of the images in an epoch."""
    return generator(seed, f"{phase}/order", epoch).permutation(count)


def generator(seed: int, purpose: str, step: int = 0, sample: int = 0) -> np.random.Generator:
    """Return what ``maskdm.diffusion.randomness.stream`` returns, made for this alone."""
    digest = hashlib.sha256(purpose.encode()).digest()
    key = np.array([seed, int.from_bytes(digest[:8], "little")], dtype=np.uint64)
    counter = np.array([0, 0, step, sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def patches(
    images: np.ndarray, patch: int, indices: np.ndarray, positions: np.ndarray, flipped: np.ndarray
) -> torch.Tensor:
    """Return what ``maskdm.diffusion.tokens.visible_tokens`` returns."""
    count, height, width, channels = images.shape
    grid = images.reshape(count, height // patch, patch, width // patch, patch, channels)
    rows, columns = np.divmod(positions, width // patch)
    columns = np.where(flipped[:, None], width // patch - 1 - columns, columns)
    taken = np.asarray(grid[indices[:, None], rows, :, columns])
    taken[flipped] = taken[flipped, :, :, ::-1]
    return in_range(torch.from_numpy(taken).flatten(2))


def main() -> None:
    """Print the rows of the preset laptop and of MaskDM-small."""
    print(table(batches(read_preset("laptop"))))


if __name__ == "__main__":
    run(main)
