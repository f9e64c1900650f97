"""The prepared set: what is read, how it is split, and what is written."""

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from preparing import params, prepare, save_images, sides

from maskdm.data.images import fit, read_image, to_rgb
from maskdm.data.prepared import PreparedSet, Sample, open_prepared, write_prepared
from maskdm.data.registry import open_source
from maskdm.data.sources.folder import file_group
from maskdm.runtime.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of twenty images in two classes."""
    folder = tmp_path / "photos"
    save_images(folder, [f"{kind}/{n:02}.png" for kind in ("cat", "dog") for n in range(10)])
    return folder


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
    pixels = np.asarray(read_image(path.read_bytes(), 8, background)).reshape(-1, 3)
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
    upright = np.asarray(read_image((tmp_path / "camera.jpg").read_bytes(), 64, "white"))
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
    small = read_image((tmp_path / "large.jpg").read_bytes(), 16, "white")
    assert small.size == (128, 128)
    error = fit(small, 16, 3).astype(int) - fit(picture, 16, 3)
    assert abs(error).max() <= 3


def test_the_centre_square_is_kept() -> None:
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("lime", (32, 0, 64, 32))
    assert (fit(wide, 16, 3) == (0, 255, 0)).all()
    assert (fit(wide.rotate(90, expand=True), 16, 3) == (0, 255, 0)).all()


@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3]))
def test_an_image_of_the_wanted_size_keeps_its_pixels(seed: int, channels: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 12, channels), dtype=np.uint8)
    image = Image.fromarray(noise if channels == 3 else noise[..., 0])
    kept = fit(image, 8, channels)
    assert (kept == noise[:, 2:10]).all()
    assert kept.dtype == np.uint8


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
        ({"source": "imagnet"}, r"data\.source is 'imagnet'.*openmoji, fashion-mnist, folder, zip"),
        ({"path": None}, r"data\.path is None: source 'folder' needs the folder"),
        ({"size": 4}, r"data\.size is 4.*8 to 1024"),
        ({"size": 32.0}, r"data\.size is 32\.0"),
        ({"channels": 2}, r"data\.channels is 2"),
        ({"background": "whitish"}, r"data\.background is 'whitish'.*a colour such as"),
        ({"heldout": 1.0}, r"data\.heldout is 1\.0"),
        ({"group": "("}, r"data\.group is '\(': not a regular expression"),
        ({"classes": True, "source": "celeba"}, r"'celeba' has no classes.*cifar10 \(ten things\)"),
        ({"source": "openmoji"}, r"data\.path is 'photos': source 'openmoji' .* takes no path"),
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
