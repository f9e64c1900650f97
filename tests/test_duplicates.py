"""Copies of one image are on one side of the split, whatever their source says."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageOps
from ruamel.yaml import YAML

from maskdm.data.duplicates import Duplicates
from maskdm.data.prepared import Sample, Unreadable, open_prepared
from maskdm.runtime.errors import UserError
from tests.support.clones import ROOT


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


# Which picture, its label, and whether its source holds it out.
SAMPLES = [(1, 0, False), (2, 1, True), (1, 1, True), (3, 0, True), (2, 0, False), (4, 1, False)]


def samples(*images: tuple[int, int, bool]) -> list[Sample]:
    return [Sample(picture(number), label, heldout) for number, label, heldout in images]


def test_copies_follow_the_first_of_them() -> None:
    duplicates, damaged = Duplicates(), Unreadable("one.png", "it is damaged")
    given = samples(*SAMPLES)
    found = list(duplicates.together([damaged, *given]))
    assert found[0] is damaged
    sides = [sample.heldout for sample in found[1:] if isinstance(sample, Sample)]
    assert sides == [False, True, False, True, True, False]
    for one, other in zip(given, found[1:], strict=True):
        assert isinstance(other, Sample)
        assert other.pixels is one.pixels
        assert other.label == one.label
    assert (duplicates.copies, duplicates.moved) == (2, 2)


def test_without_copies_nothing_changes() -> None:
    """Nor with copies on one side, as the default's set has them."""
    duplicates, given = Duplicates(), samples((1, 0, False), (1, 1, False), (2, 0, True))
    found = list(duplicates.together(given))
    assert [s.heldout for s in found if isinstance(s, Sample)] == [False, False, True]
    assert (duplicates.copies, duplicates.moved) == (1, 0)


def test_images_that_differ_in_one_value_are_no_copies() -> None:
    duplicates, image = Duplicates(), picture(1)
    other = image.copy()
    other[-1, -1, -1] ^= 1
    list(duplicates.together([Sample(image, None, False), Sample(other, None, True)]))
    assert duplicates.copies == 0


def test_a_set_of_copies_says_what_put_all_on_one_side() -> None:
    given = samples((1, 0, False), (1, 0, True), (1, 0, False))
    with pytest.raises(UserError, match=r"All 3 images .*1 of them .*duplicates to keep, or"):
        list(Duplicates(near=True).together(given))
    first, second = (reduced(d, 32, "RGB") for d in (drawing(0), brighter(drawing(0))))
    alike = [Sample(first, None, False), Sample(second, None, True)]
    with pytest.raises(UserError, match=r"All 2 images .*duplicates to exact or keep, or"):
        list(Duplicates(near=True).together(alike))
    one_sided = samples((1, 0, False), (2, 0, False))  # by its source: another sentence's affair
    assert len(list(Duplicates(near=True).together(one_sided))) == 2


@pytest.mark.parametrize(("rule", "shared"), [("near", False), ("exact", False), ("keep", True)])
def test_prepare_does_as_the_parameter_says(rule: str, shared: bool, tmp_path: Path) -> None:
    """Every picture lies in two files, which are groups of their own."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(40):
        for copy in ("a", "b"):
            Image.fromarray(picture(number)).save(photos / f"{number}{copy}.png")
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    changes = {"source": "folder", "path": str(photos), "heldout": 0.3, "duplicates": rule}
    params["data"].update(changes)
    yaml.dump(params, tmp_path / "params.yaml")
    said = subprocess.run(
        [sys.executable, "-m", "stages.prepare"],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "DVC_ROOT": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    kept = open_prepared(tmp_path / "data/prepared")
    train, heldout = ({image.tobytes() for image in part} for part in (kept.train, kept.heldout))
    assert len(train | heldout) == 40
    assert bool(train & heldout) == shared
    assert ("40 images equal an earlier one" in said) == (rule != "keep")


def drawing(number: int, side: int = 256) -> Image.Image:
    """A few shapes of flat colour, as icons are."""
    random = np.random.default_rng(number)
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, w, h = random.uniform(0, side / 2, 4)
        colour = tuple(random.integers(0, 256, 3).tolist())
        kind = random.choice(["ellipse", "rectangle"])
        getattr(draw, kind)((x, y, x + w + 20, y + h + 20), fill=colour)
    return image


def saved_again(image: Image.Image) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file)


def scaled(image: Image.Image) -> Image.Image:
    return image.resize((201, 201), Image.Resampling.LANCZOS)


def brighter(image: Image.Image) -> Image.Image:
    return image.point(lambda level: min(level + 2, 255))


def mirrored(image: Image.Image) -> Image.Image:
    return ImageOps.mirror(image)


def moved(image: Image.Image) -> Image.Image:
    return ImageChops.offset(image, 24)


def recoloured(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return Image.merge("RGB", (blue, red, green))


def reduced(image: Image.Image, side: int, mode: str) -> np.ndarray:
    pixels = np.asarray(image.convert(mode).resize((side, side), Image.Resampling.LANCZOS))
    return pixels.reshape(side, side, -1)


@pytest.mark.parametrize("side", [8, 32, 64])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_near_images_follow_the_first_of_them(side: int, mode: str) -> None:
    originals = [drawing(number) for number in range(30)]
    given = [Sample(reduced(image, side, mode), None, False) for image in originals]
    again = [
        Sample(reduced(change(image), side, mode), None, True)
        for change in (saved_again, scaled, brighter)
        for image in originals
    ]
    another = Sample(reduced(drawing(99), side, mode), None, True)
    duplicates, samples = Duplicates(near=True), [*given, *again, another]
    *found, _ = (s.heldout for s in duplicates.together(samples) if isinstance(s, Sample))
    assert sum(found[:30]) == 0
    assert sum(found[30:]) <= 3, "at most these few are not found"
    assert duplicates.copies + duplicates.alike == duplicates.moved >= 87


def test_other_images_are_not_near() -> None:
    originals = [drawing(number) for number in range(30)]
    given = [Sample(reduced(image, 32, "RGB"), None, False) for image in originals]
    others = [
        Sample(reduced(change(image), 32, "RGB"), None, True)
        for change in (mirrored, moved, recoloured)
        for image in originals
    ]
    duplicates = Duplicates(near=True)
    found = [s.heldout for s in duplicates.together([*given, *others]) if isinstance(s, Sample)]
    assert (sum(found), duplicates.alike, duplicates.moved) == (90, 0, 0)


def test_an_image_between_two_follows_the_nearer() -> None:
    image = reduced(drawing(0), 32, "RGB").astype(np.int64)
    dark, between, light = (
        np.clip(image + shift, 0, 255).astype(np.uint8) for shift in (-20, -19, -15)
    )
    duplicates = Duplicates(near=True)
    given = [Sample(dark, None, False), Sample(light, None, True), Sample(between, None, True)]
    assert [s.heldout for s in duplicates.together(given)] == [False, True, False]
    assert duplicates.alike == 1
