"""prepare: from images as they are found to one uint8 array for training and one held out."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from maskdm.backbones.autoencoder import Encoder
from maskdm.data.duplicates import Duplicates
from maskdm.data.inventory import inventory, shaped_by
from maskdm.data.pieces import ChangedError, kept_pieces
from maskdm.data.prepared import Sample, Unreadable, alone, kinds, write_prepared
from maskdm.data.registry import DataParams, open_source, read_samples
from maskdm.runtime.command import ESCAPES, run
from maskdm.runtime.devices import choose_device
from maskdm.runtime.environment import checkpoints_folder
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import read_section

PARAMS = Path("params.yaml")
DOWNLOADS = Path("data/raw")
PREPARED = Path("data/prepared")
SOURCE = Path("data/source.json")
AGAIN = (
    "What is recorded would be another set than the one that is prepared: run dvc repro, or "
    "dvc repro prepare, which look at them first (without DVC, python -m stages.source does)."
)


def main() -> None:
    """Read params data and the images they name; write data/prepared, and shards to data.shards.

    It runs again when data/source.json says that their files have changed. The set that was there
    stays until the new one is whole. After a kill it goes on behind the last piece that was kept.
    Latents for data.autoencoder are made last, and after a kill from the first image on.
    """
    start = time.perf_counter()
    params = read_section(PARAMS, "data", DataParams)
    shape = (params.resolution, params.resolution, params.channels)
    files = inventory(params)  # first: files that change from here on make it another set
    if SOURCE.exists() and not _told_of(files):
        raise UserError(f"The files of data.source are not those that {SOURCE} tells of. {AGAIN}")
    key = shaped_by(params, files)
    source = open_source(params, DOWNLOADS)
    encoder = None
    if params.autoencoder is not None:
        encoder = Encoder(params.autoencoder, *shape[1:], choose_device())
    rule = params.duplicates
    duplicates = None if rule == "keep" else Duplicates(near=rule == "near")
    # Pieces are as large as the set, and what needs shards may have no disk for it.
    kept = nullcontext() if params.shards else kept_pieces(checkpoints_folder(), key, shape)
    with alone(PREPARED), kept as pieces:
        samples = tqdm(
            _as_it_was(files, params, _announce_unreadable(read_samples(source, params, pieces))),
            total=len(source.pictures),
            desc="prepare",
            unit=" images",
        )
        prepared = write_prepared(
            PREPARED,
            duplicates.together(samples) if duplicates else samples,
            size=params.resolution,
            channels=params.channels,
            classes=source.classes,
            source=source.name,
            licence=source.licence,
            left_out=source.left_out,
            window=params.window,
            shards=params.shards,
            encoder=encoder,
        )
    if pieces and pieces.reused:
        print(f"went on behind {pieces.reused} images that were prepared before it was stopped")
    classes = f"{len(prepared.classes)} classes" if prepared.classes else "no classes"
    print(
        f"{source.name}: {len(prepared.train)} training and {len(prepared.heldout)} held-out "
        f"images of {params.resolution}x{params.resolution}x{params.channels}, {classes}, "
        f"{prepared.skipped} unreadable skipped, {time.perf_counter() - start:.1f} s"
    )
    if prepared.latents is not None and prepared.train_latents is not None:
        height, width, depth = prepared.train_latents.shape[1:]
        print(f"latents of {height}x{width}x{depth} by the autoencoder {params.autoencoder}")
    if source.left_out:
        print(
            "not read, since their names are not those of images: "
            f"{kinds(source.left_out)} (docs/data.md)"
        )
    if duplicates is not None and (said := duplicates.said()):
        print(said)


def _told_of(files: Mapping[str, Any]) -> bool:
    """Return whether data/source.json says of the files what they are."""
    try:
        told = json.loads(SOURCE.read_text(encoding="utf-8"))
        return bool(files.items() <= told.items())
    except (ValueError, AttributeError):  # it is damaged
        return False


def _as_it_was(
    files: Mapping[str, Any], params: DataParams, samples: Iterator[Sample | Unreadable]
) -> Iterator[Sample | Unreadable]:
    """Check behind the last sample that the files are still what they were before the first."""
    yield from samples
    if inventory(params) != files:
        raise ChangedError(f"The files of data.source have changed while they were read. {AGAIN}")


def _announce_unreadable(samples: Iterator[Sample | Unreadable]) -> Iterator[Sample | Unreadable]:
    """Name each file that is skipped, above the progress bar."""
    for sample in samples:
        if isinstance(sample, Unreadable):
            said = f"skipped {sample.name}: {sample.reason}"
            tqdm.write(said.translate(ESCAPES), file=sys.stderr)
        yield sample


if __name__ == "__main__":
    run(main)
