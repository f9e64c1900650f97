"""How fast images are prepared, against what all cores could do if none ever waited.

The value is what the prepare stage does once its files are listed: read, decode, resize, hash and
write, in order, on all cores, with whatever processes it starts. The limit is the rate of decoding
and resizing alone, in a plain loop in one thread, times the number of cores.
"""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.speed.measuring import interleaved
from benchmarks.speed.results import Row
from maskdm.data.contract import Source
from maskdm.data.images import fit
from maskdm.data.pieces import kept_pieces
from maskdm.data.prepared import PreparedSet, Sample, write_prepared
from maskdm.data.registry import DataParams, open_source, read_samples
from maskdm.runtime.params import Params, read_section

GOAL = 0.8  # of the limit
JPEGS, WIDTH, HEIGHT = 2000, 512, 384  # a folder of photographs as they are found
LOOPED = 1000  # pictures that the plain loop reads at most
NOISE_SIDE = 8  # pixels, of the images that are written by the million


def prepare(preset: Params) -> list[Row]:
    """Time the preparing of the preset's OpenMoji, then of a folder of JPEGs at the same size.

    In a process as small as the stage's: the larger a process, the longer it takes to fork.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        return fresh.submit(both, preset).result()


def both(preset: Params) -> list[Row]:
    """Time them in this process."""
    params = read_section(preset, "data", DataParams)
    assert params.source == "openmoji"
    with TemporaryDirectory() as name:
        folder = Path(name)
        save_jpegs(folder)
        photos = params.model_copy(update={"source": "folder", "path": name, "limit": None})
        return [
            row("prepare OpenMoji", params),
            row(f"prepare JPEGs of {WIDTH}×{HEIGHT}", photos),
        ]


def row(name: str, params: DataParams) -> Row:
    """Measure one source, under the name that the row is to have."""
    source = listed(params)
    pictures = source.pictures
    looped = pictures[:: -(-len(pictures) // LOOPED)]

    def everything() -> float:
        """Prepare all pictures and return seconds each."""
        with TemporaryDirectory() as folder:
            started = time.perf_counter()
            write(Path(folder), source, params)
            return (time.perf_counter() - started) / len(pictures)

    def loop() -> float:
        """Decode and resize some pictures one after the other and return seconds each."""
        started = time.perf_counter()
        for picture in looped:
            fit(source.read(picture.name), params.resolution, params.channels)
        return (time.perf_counter() - started) / len(looped)

    for warm_up in (everything, loop):
        warm_up()
    seconds = interleaved({"everything": everything, "loop": loop}, least=3, most=5)
    cores = os.cpu_count() or 1
    return Row(name, 1 / seconds["everything"], "images/s", cores / seconds["loop"], GOAL, True)


def listed(params: DataParams) -> Source:
    """Return a source, its pictures listed and not read."""
    return open_source(params, Path("data/raw"))


def write(folder: Path, source: Source, params: DataParams) -> PreparedSet:
    """Prepare a source as the prepare stage does, pieces for a restart included."""
    shape = (params.resolution, params.resolution, params.channels)
    with kept_pieces(folder / "checkpoints", "benchmark", shape) as pieces:
        return write_prepared(
            folder,
            read_samples(source, params, pieces),
            size=params.resolution,
            channels=params.channels,
            classes=source.classes,
            source=source.name,
            licence=source.licence,
        )


def write_noise(folder: Path, count: int) -> PreparedSet:
    """Write a set of ``count`` grey images of ``NOISE_SIDE`` pixels, nine in ten for training."""
    pixels = np.random.default_rng(0).integers(
        0, 256, (1000, NOISE_SIDE, NOISE_SIDE, 1), dtype=np.uint8
    )
    return write_prepared(
        folder,
        (Sample(pixels[n % 1000], n % 7, heldout=n % 10 == 0) for n in range(count)),
        size=NOISE_SIDE,
        channels=1,
        classes=[str(label) for label in range(7)],
        source="noise",
        licence="none",
    )


def save_jpegs(folder: Path) -> None:
    """Write ``JPEGS`` pictures of soft noise, about 40 kB each."""
    random = np.random.default_rng(0)
    for number in range(JPEGS):
        coarse = random.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:04}.jpg", quality=90)
