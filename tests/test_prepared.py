"""The prepared set on disk: its bytes, its hash, and what damages it."""

import errno
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskdm.data import prepared
from maskdm.data.prepared import PreparedSet, Sample, open_prepared, write_prepared
from maskdm.runtime.errors import UserError
from tests.support.preparing import params, prepare, save_images


def grey_samples(count: int, size: int = 32) -> Iterator[Sample]:
    for index in range(count):
        pixels = np.full((size, size, 3), index % 256, dtype=np.uint8)
        yield Sample(pixels, label=index % 2, heldout=index % 10 == 0)


def write_grey(folder: Path, count: int) -> PreparedSet:
    return write_prepared(
        folder,
        grey_samples(count),
        size=32,
        channels=3,
        classes=["even", "odd"],
        source="test",
        licence="none",
    )


@pytest.mark.parametrize("file", [1, 2])  # of the training images, of those held out
def test_a_disk_that_is_full_in_the_end_leaves_the_set_that_was_there(
    file: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may say so only when what was written has to be on it."""
    before, left = write_grey(tmp_path, 20).hash, [None] * file

    def full(_: int) -> None:
        left.pop()
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_grey(tmp_path, 40)
    assert open_prepared(tmp_path).hash == before
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", *[".npy"] * 4]


def test_what_is_written_is_what_is_opened(tmp_path: Path) -> None:
    kept = write_grey(tmp_path, 55)
    assert isinstance(kept.train, np.memmap)
    assert kept.train.shape == (49, 32, 32, 3)
    assert kept.heldout[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert kept.train[:3, 5, 5, 1].tolist() == [1, 2, 3]
    assert kept.train_labels is not None
    assert kept.train_labels[:3].tolist() == [1, 0, 1]


def test_preparing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    save_images(photos, [f"{kind}/{n:02}.png" for kind in ("cat", "dog") for n in range(10)])
    for name in ("first", "second"):
        prepare(tmp_path / name, params(path=str(photos), classes=True))
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("first", "second")
    )
    assert len(first) == 5
    assert first == second


@pytest.mark.parametrize("classes", [["even", "odd"], None])
def test_labels_belong_to_images_or_nothing_is_replaced(
    classes: list[str] | None, tmp_path: Path
) -> None:
    """One image without a label would give all that follow the label of another."""
    hash_before = write_grey(tmp_path, 30).hash
    samples = list(grey_samples(40))
    if classes:
        samples[17] = replace(samples[17], label=None)
    about: dict[str, Any] = {"size": 32, "channels": 3, "source": "test", "licence": "none"}
    with pytest.raises(ValueError, match=r"a label is (None|0) where the classes are"):
        write_prepared(tmp_path, samples, classes=classes, **about)
    assert open_prepared(tmp_path).hash == hash_before


@pytest.mark.parametrize("changed", ["pixel", "label"])
def test_the_hash_depends_on_every_pixel_and_label(tmp_path: Path, changed: str) -> None:
    hashes = set()
    for case in ("as it is", "changed"):
        samples = list(grey_samples(30))
        if case == "changed" and changed == "pixel":
            samples[17].pixels[31, 31, 2] ^= 1
        if case == "changed" and changed == "label":
            samples[17] = Sample(samples[17].pixels, 0, samples[17].heldout)
        kept = write_prepared(
            tmp_path,
            samples,
            size=32,
            channels=3,
            classes=["even", "odd"],
            source="test",
            licence="none",
        )
        hashes.add(kept.hash)
    assert len(hashes) == 2


def test_writing_memory_is_flat_in_the_number_of_images(tmp_path: Path) -> None:
    peaks = []
    for count in (200, 2000):
        tracemalloc.start()
        write_grey(tmp_path, count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 100 * 32 * 32 * 3  # of 1 800 more images, less than 100


def test_a_missing_set_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no .*dataset\.json\. Run the prepare stage"):
        open_prepared(tmp_path)


@pytest.mark.parametrize("damage", ["other count", "cut", "empty", "not json"])
def test_a_damaged_set_is_refused(tmp_path: Path, damage: str) -> None:
    write_grey(tmp_path, 30)
    about = tmp_path / "dataset.json"
    if damage == "other count":
        about.write_text(about.read_text().replace('"count": 27', '"count": 26'))
    elif damage == "not json":
        about.write_text("{")
    else:
        os.truncate(tmp_path / "train.npy", 0 if damage == "empty" else 1000)
    with pytest.raises(UserError, match="is damaged"):
        open_prepared(tmp_path)


def test_a_set_whose_writing_was_cut_off_between_two_files_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_grey(tmp_path, 55)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_grey(tmp_path, 55)
    with pytest.raises(UserError, match="Run the prepare stage again"):
        open_prepared(tmp_path)
