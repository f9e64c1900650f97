"""The prepared set: what is read, how it is split, and what is written."""

import gzip
import json
import os
import re
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskdm.data.emoji import emoji_group
from maskdm.data.images import fit, read_image, to_rgb
from maskdm.data.sources import (
    DataParams,
    Picture,
    Source,
    file_group,
    open_source,
    read_idx,
    read_samples,
)
from maskdm.data.store import PreparedSet, Sample, open_prepared, write_prepared
from maskdm.errors import UserError
from maskdm.params import validate

DEFAULTS = {
    "source": "folder",
    "path": None,
    "size": 16,
    "channels": 3,
    "background": "white",
    "heldout": 0.3,
    "group": "file",
    "classes": False,
    "limit": None,
    "max_unreadable": 0.0,
}


def params(**changes: Any) -> DataParams:
    return validate(DEFAULTS | changes, "data", DataParams)


def prepare(folder: Path, asked: DataParams) -> PreparedSet:
    source = open_source(asked, folder / "downloads")
    return write_prepared(
        folder,
        read_samples(source, asked),
        size=asked.size,
        channels=asked.channels,
        classes=source.classes,
        source=source.name,
        licence=source.licence,
    )


def sides(asked: DataParams) -> dict[str, bool]:
    """Return which pictures are held out, by name."""
    return {p.name: p.heldout for p in open_source(asked, Path("nowhere")).pictures}


def save_images(folder: Path, names: list[str], side: int = 20) -> None:
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of twenty images in two classes."""
    folder = tmp_path / "photos"
    save_images(folder, [f"{kind}/{n:02}.png" for kind in ("cat", "dog") for n in range(10)])
    return folder


# OpenMoji


@pytest.fixture(scope="module")
def emoji_sides() -> dict[str, bool]:
    return sides(params(source="openmoji", heldout=0.1))


def test_variants_of_one_emoji_never_cross_the_split(emoji_sides: dict[str, bool]) -> None:
    """The variant's name is rewritten by text alone, unlike in the code under test."""
    rewritings = [
        (r"-1F3F[B-F]", ""),  # skin tone
        (r"-200D-(2640|2642)-FE0F", ""),  # gender sign
        (r"1F46[89]", "1F9D1"),  # man or woman to person
        (r"-200D-1F9B[0-3]", ""),  # hair
        (r"-200D-27A1-FE0F", ""),  # direction
        (r"^1F3F3-FE0F-200D-1F7E.$", "1F3F3"),  # flags of one colour
    ]
    checked = 0
    for variant in emoji_sides:
        for pattern, replacement in rewritings:
            base = re.sub(pattern, replacement, variant)
            if base != variant and base in emoji_sides:
                assert emoji_group(base) == emoji_group(variant)
                assert emoji_sides[base] == emoji_sides[variant], (base, variant)
                checked += 1
    assert checked > 2000


@pytest.mark.parametrize(
    "names",
    [
        "1F46A 1F468-200D-1F469-200D-1F466 1F469-200D-1F467-200D-1F467",
        "1F491 1F469-1F3FB-200D-2764-FE0F-200D-1F468-1F3FE",
        "1F48F 1F9D1-1F3FB-200D-2764-FE0F-200D-1F48B-200D-1F9D1-1F3FC",
        "1F46B 1F46C 1F46D-1F3FF 1F9D1-1F3FD-200D-1F91D-200D-1F9D1",
        "1F91D 1FAF1-1F3FB-200D-1FAF2-1F3FC",
        "1F385 1F936 1F9D1-1F3FB-200D-1F384",
        "1F408 1F408-200D-2B1B",
        "1F1EB-1F1F7 1F1F2-1F1EB",
    ],
)
def test_pairs_families_and_recoloured_drawings_are_one_group(names: str) -> None:
    assert len({emoji_group(name) for name in names.split()}) == 1


def test_different_drawings_are_different_groups() -> None:
    names = "1F600 1F680 1F408 2640-FE0F 1F9B0 1F1E9-1F1EA 1F1EC-1F1E7 1F46A 1F9D1"
    names += " 1F9D1-200D-1F680 1F9D1-200D-1F33E 1F3F4-E0067-E0062-E0065-E006E-E0067-E007F"
    assert len({emoji_group(name) for name in names.split()}) == len(names.split())


def test_no_drawing_is_in_two_groups_mirrored_or_not() -> None:
    """Training may flip images, so a mirror image on the other side would be a copy too."""
    asked = params(source="openmoji", channels=1)
    source = open_source(asked, Path("nowhere"))
    samples = [sample for sample in read_samples(source, asked) if isinstance(sample, Sample)]
    drawings = np.stack([sample.pixels[..., 0] for sample in samples]).astype(np.float32)
    groups = np.array([emoji_group(picture.name) for picture in source.pictures])
    flat = drawings.reshape(len(drawings), -1)
    squares = (flat**2).mean(1)
    for other in (flat, drawings[:, :, ::-1].reshape(flat.shape)):
        distance = squares[:, None] + squares - 2 * flat @ other.T / flat.shape[1]
        pairs = np.argwhere((distance < 2**2) & (groups[:, None] != groups))  # levels, squared
        assert not [(groups[i], groups[j]) for i, j in pairs]


def test_emoji_are_drawn_on_the_background(tmp_path: Path) -> None:
    asked = params(source="openmoji", limit=20, background="#10a0f0")
    drawn = prepare(tmp_path, asked)
    assert (drawn.train[:, 0, 0] == (0x10, 0xA0, 0xF0)).all(axis=-1).mean() > 0.8
    assert all(image.std() > 5 for image in drawn.train)


# Folders


@given(st.sets(st.text("abc/", min_size=1, max_size=6), min_size=1), st.integers(0, 2))
def test_group_rules_name_groups(names: set[str], rule: int) -> None:
    """Whatever the rule, a group is a function of the name; 'file' separates all names."""
    text = ("file", "folder", "a+")[rule]
    groups = [file_group(name, text) for name in names]
    assert groups == [file_group(name, text) for name in names]
    if text == "file":
        assert len(set(groups)) == len(names)


def test_group_regex_takes_the_parenthesis_or_the_match_or_the_file() -> None:
    assert file_group("a/person12_3.png", r"person(\d+)") == "12"
    assert file_group("a/person12_3.png", r"person\d+") == "person12"
    assert file_group("a/other.png", r"person\d+") == "a/other.png"
    assert file_group("a/b/c.png", "folder") == "a/b"


def test_split_is_by_group(tmp_path: Path) -> None:
    save_images(tmp_path, [f"s{scene:02}_{shot}.png" for scene in range(12) for shot in range(3)])
    by_scene: dict[str, set[bool]] = {}
    for name, heldout in sides(params(path=str(tmp_path), group=r"^s\d+")).items():
        by_scene.setdefault(name[:3], set()).add(heldout)
    assert all(len(side) == 1 for side in by_scene.values())


def test_split_is_stable_when_files_are_added(photos: Path) -> None:
    asked = params(path=str(photos))
    before = sides(asked)
    save_images(photos, [f"ape/{n}.png" for n in range(10)])
    after = sides(asked)
    assert len(after) == len(before) + 10
    assert before.items() <= after.items()


def test_limit_is_stable_pseudo_random_and_keeps_the_share_held_out(tmp_path: Path) -> None:
    for n in range(200):
        (tmp_path / f"{n:03}.png").touch()
    few, more, everything = (
        sides(params(path=str(tmp_path), heldout=0.5, limit=limit)) for limit in (50, 100, None)
    )
    assert len(few) == 50
    assert few.items() < more.items() < everything.items()
    assert set(few) != set(sorted(everything)[:50])
    assert 30 < sum(more.values()) < 70


def test_sub_folders_become_classes(photos: Path, tmp_path: Path) -> None:
    kept = prepare(tmp_path, params(path=str(photos), classes=True))
    assert kept.classes == ["cat", "dog"]
    assert kept.train_labels is not None
    assert kept.heldout_labels is not None
    assert len(kept.train_labels) == len(kept.train)
    labels = np.concatenate([kept.train_labels, kept.heldout_labels])
    assert np.bincount(labels).tolist() == [10, 10]


def test_labels_belong_to_their_images(tmp_path: Path) -> None:
    for kind, level in (("black", 0), ("white", 255)):
        (tmp_path / "in" / kind).mkdir(parents=True)
        for n in range(9):
            Image.new("L", (9, 9), level).save(tmp_path / "in" / kind / f"{n}.png")
    kept = prepare(tmp_path, params(path=str(tmp_path / "in"), classes=True))
    assert kept.train_labels is not None
    assert (kept.train[:, 0, 0, 0] == 255 * kept.train_labels).all()


def test_an_image_outside_the_classes_is_refused(photos: Path) -> None:
    save_images(photos, ["stray.png"])
    with pytest.raises(UserError, match=r"'stray\.png' does not"):
        open_source(params(path=str(photos), classes=True), photos)


# Decoding

RED, GREEN, BLUE, CLEAR = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255), (9, 9, 9, 0)


def decoded(path: Path, background: str = "#0a141e") -> list[tuple[int, ...]]:
    """Return the pixels of a file, row by row."""
    pixels = np.asarray(read_image(path, 8, background)).reshape(-1, 3)
    return [tuple(pixel) for pixel in pixels.tolist()]


def of_pixels(mode: str, *pixels: Any) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def test_transparent_pixels_take_the_background(tmp_path: Path) -> None:
    of_pixels("RGBA", RED, CLEAR, (255, 255, 255, 51)).save(tmp_path / "rgba.png")
    half = tuple(round(0.2 * 255 + 0.8 * c) for c in (10, 20, 30))
    assert decoded(tmp_path / "rgba.png") == [(255, 0, 0), (10, 20, 30), half]

    of_pixels("LA", (200, 255), (200, 0)).save(tmp_path / "la.png")
    assert decoded(tmp_path / "la.png") == [(200, 200, 200), (10, 20, 30)]

    palette = of_pixels("P", 0, 1, 2)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=1)
    assert decoded(tmp_path / "p.png") == [(255, 0, 0), (10, 20, 30), (0, 0, 255)]

    palette.save(tmp_path / "steps.png", transparency=bytes([255, 0, 255]))
    assert decoded(tmp_path / "steps.png") == [(255, 0, 0), (10, 20, 30), (0, 0, 255)]

    of_pixels("RGB", RED[:3], GREEN[:3]).save(tmp_path / "key.png", transparency=GREEN[:3])
    assert decoded(tmp_path / "key.png") == [(255, 0, 0), (10, 20, 30)]

    alpha_palette = of_pixels("RGBA", BLUE, CLEAR).convert("PA")
    picture = np.asarray(to_rgb(alpha_palette, "#0a141e"))
    assert picture[0, 1].tolist() == [10, 20, 30]


def test_opaque_modes_keep_their_colours(tmp_path: Path) -> None:
    of_pixels("L", 0, 77, 255).save(tmp_path / "l.png")
    assert decoded(tmp_path / "l.png") == [(0,) * 3, (77,) * 3, (255,) * 3]

    of_pixels("1", 0, 255).save(tmp_path / "1.png")
    assert decoded(tmp_path / "1.png") == [(0,) * 3, (255,) * 3]

    of_pixels("CMYK", (0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)).save(tmp_path / "cmyk.tif")
    assert decoded(tmp_path / "cmyk.tif") == [(255,) * 3, (255, 0, 0), (0,) * 3]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_scale_to_eight(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 257, 128 * 257, 65535, 1000]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / f"deep.{suffix}")
    grey = [pixel[0] for pixel in decoded(tmp_path / f"deep.{suffix}")]
    assert grey == np.round(levels[0] / 257).astype(int).tolist()


def test_camera_orientation_is_applied(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (64, 32), "black")
    sideways.paste("white", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright: the left half is the top
    sideways.save(tmp_path / "camera.jpg", exif=exif, quality=95)
    upright = np.asarray(read_image(tmp_path / "camera.jpg", 64, "white"))
    assert upright.shape == (64, 32, 3)
    assert upright[:24].min() > 240
    assert upright[40:].max() < 15


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert set(decoded(tmp_path / "film.gif")) == {(255, 0, 0)}


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path: Path) -> None:
    y, x = np.mgrid[:1024, :1024] / 1024
    waves = np.stack([np.sin(9 * x), np.cos(7 * y), np.sin(5 * (x + y))], -1) * 120 + 128
    picture = Image.fromarray(waves.astype(np.uint8))
    picture.save(tmp_path / "large.jpg", quality=95)
    small = read_image(tmp_path / "large.jpg", 16, "white")
    assert small.size == (128, 128)
    error = fit(small, 16, 3).astype(int) - fit(picture, 16, 3)
    assert abs(error).max() <= 3


def test_the_centre_square_is_kept() -> None:
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("lime", (32, 0, 64, 32))
    assert (fit(wide, 16, 3) == (0, 255, 0)).all()
    assert (fit(wide.rotate(90, expand=True), 16, 3) == (0, 255, 0)).all()


@pytest.mark.parametrize(("before", "after"), [(100, 32), (47, 32), (32, 32), (20, 32), (333, 8)])
def test_resized_images_match_clean_fid(before: int, after: int) -> None:
    from cleanfid.resize import make_resizer

    noise = np.random.default_rng(0).integers(0, 256, (before, before, 3), dtype=np.uint8)
    expected = make_resizer("PIL", False, "bicubic", (after, after))(noise).clip(0, 255)
    assert abs(fit(Image.fromarray(noise), after, 3) - expected).max() <= 1


# Unreadable files


@pytest.fixture
def damaged(photos: Path) -> Path:
    """Twenty images and three that cannot be read: cut short, empty, not an image."""
    save_images(photos, ["cat/cut.jpg"], side=200)
    whole = (photos / "cat/cut.jpg").read_bytes()
    (photos / "cat/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "cat/empty.png").touch()
    (photos / "dog/text.png").write_text("not an image")
    (photos / "dog/notes.txt").write_text("not even called one")
    (photos / "dog/._hidden.png").write_text("left by another system")
    return photos


def test_unreadable_files_are_listed_and_skipped(damaged: Path, tmp_path: Path) -> None:
    kept = prepare(tmp_path, params(path=str(damaged), max_unreadable=0.2))
    assert len(kept.train) + len(kept.heldout) == 20
    assert kept.skipped == 3
    listed = json.loads((tmp_path / "dataset.json").read_text())["skipped"]["files"]
    assert [entry.split(":")[0] for entry in listed] == [
        "cat/cut.jpg",
        "cat/empty.png",
        "dog/text.png",
    ]
    assert str(tmp_path) not in str(listed)


def test_too_many_unreadable_files_stop_and_leave_the_old_set(
    damaged: Path, tmp_path: Path
) -> None:
    before = prepare(tmp_path, params(path=str(damaged), max_unreadable=0.2))
    with pytest.raises(UserError, match=r"(?s)of 23 images.*0\.1 allows.*dog/text\.png"):
        prepare(tmp_path, params(path=str(damaged), max_unreadable=0.1))
    assert open_prepared(tmp_path).hash == before.hash
    assert not list(tmp_path.glob("*.partial"))


# Fashion-MNIST


def save_idx(path: Path, content: np.ndarray) -> None:
    header = struct.pack(f">HBB{content.ndim}I", 0, 8, content.ndim, *content.shape)
    path.write_bytes(gzip.compress(header + content.tobytes()))


@pytest.fixture
def idx_files(tmp_path: Path) -> Path:
    folder = tmp_path / "idx"
    folder.mkdir()
    for prefix, count in (("train", 6), ("t10k", 4)):
        images = np.random.default_rng(count).integers(1, 256, (count, 28, 28), dtype=np.uint8)
        save_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        save_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return folder


def test_fashion_mnist_keeps_its_own_test_set_and_is_framed(
    idx_files: Path, tmp_path: Path
) -> None:
    asked = params(source="fashion-mnist", path=str(idx_files), size=32, channels=1, classes=True)
    kept = prepare(tmp_path, asked)
    original = read_idx(idx_files / "train-images-idx3-ubyte.gz")
    assert (kept.train[:, 2:30, 2:30, 0] == original).all()
    assert kept.train.sum() == original.sum()  # the frame is black
    assert kept.heldout.shape == (4, 32, 32, 1)
    assert kept.heldout_labels is not None
    assert kept.heldout_labels.tolist() == [0, 1, 2, 3]
    assert kept.classes is not None
    assert len(kept.classes) == 10


@pytest.mark.parametrize("damage", ["cut", "magic", "not gzip", "missing"])
def test_damaged_idx_files_are_refused(idx_files: Path, damage: str) -> None:
    path = idx_files / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    if damage == "cut":
        path.write_bytes(gzip.compress(whole[:-1]))
    elif damage == "magic":
        path.write_bytes(gzip.compress(b"\x00\x00\x0d" + whole[3:]))
    elif damage == "not gzip":
        path.write_bytes(whole)
    else:
        path.unlink()
    with pytest.raises(UserError, match="train-images"):
        open_source(params(source="fashion-mnist", path=str(idx_files)), idx_files)


def test_a_failed_download_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("maskdm.data.sources.DEBIAN_FASHION_MNIST", tmp_path / "none")
    with pytest.raises(UserError, match=r"could not be downloaded .*no route.*data\.path"):
        open_source(params(source="fashion-mnist"), tmp_path)


# The store


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


def test_what_is_written_is_what_is_opened(tmp_path: Path) -> None:
    kept = write_grey(tmp_path, 55)
    assert isinstance(kept.train, np.memmap)
    assert kept.train.shape == (49, 32, 32, 3)
    assert kept.heldout[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert kept.train[:3, 5, 5, 1].tolist() == [1, 2, 3]
    assert kept.train_labels is not None
    assert kept.train_labels[:3].tolist() == [1, 0, 1]


def test_preparing_again_gives_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        prepare(tmp_path / name, params(path=str(photos), classes=True))
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("first", "second")
    )
    assert len(first) == 5
    assert first == second


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


def test_reading_stays_a_bounded_number_of_images_ahead() -> None:
    read: list[str] = []

    def paint(name: str) -> Image.Image:
        read.append(name)
        return Image.new("RGB", (16, 16))

    pictures = [Picture(f"{n:05}", n % 2 == 0, None) for n in range(50 * (os.cpu_count() or 1))]
    samples = read_samples(Source("test", "none", None, pictures, paint), params(path="."))
    next(samples)
    time.sleep(0.2)  # long enough to read all of them
    assert len(read) <= 16 * (os.cpu_count() or 1)


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


@pytest.mark.parametrize(("heldout", "side"), [(0.001, "held-out"), (0.999, "training")])
def test_a_split_with_an_empty_side_is_refused(photos: Path, heldout: float, side: str) -> None:
    with pytest.raises(UserError, match=rf"left no {side} image out of 20.*data\.heldout"):
        open_source(params(path=str(photos), heldout=heldout), photos)


# Parameters


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"source": "imagenet"}, r"data\.source is 'imagenet'.*openmoji, fashion-mnist or folder"),
        ({"path": None}, r"data\.path is None: source 'folder' needs the folder"),
        ({"size": 4}, r"data\.size is 4.*8 to 1024"),
        ({"size": 32.0}, r"data\.size is 32\.0"),
        ({"channels": 2}, r"data\.channels is 2"),
        ({"background": "whitish"}, r"data\.background is 'whitish'.*a colour such as"),
        ({"heldout": 1.0}, r"data\.heldout is 1\.0"),
        ({"group": "("}, r"data\.group is '\(': not a regular expression"),
        ({"classes": True, "source": "openmoji"}, r"data\.classes is True"),
        ({"max_unreadable": 1.5}, r"data\.max_unreadable is 1\.5"),
        ({"sise": 32}, r"data\.sise is not a parameter.*'size'"),
    ],
)
def test_bad_parameters_are_named_with_what_is_allowed(
    change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        params(**({"path": "photos"} | change))


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path is .*not a folder"):
        open_source(params(path=str(tmp_path / "none")), tmp_path)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No image was found"):
        open_source(params(path=str(tmp_path)), tmp_path)
