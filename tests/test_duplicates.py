"""Copies of one image are on one side of the split, whatever their source says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from maskdm.data.duplicates import Duplicates
from maskdm.data.prepared import Sample, Unreadable, open_prepared
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


@pytest.mark.parametrize(("rule", "shared"), [("exact", False), ("keep", True)])
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
    assert ("40 images equal an earlier one" in said) == (rule == "exact")
