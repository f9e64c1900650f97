"""Copies of one image are on one side of the split, whatever their source says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from maskdm.data.duplicates import Duplicates
from maskdm.data.prepared import PreparedSet, Sample, open_prepared, write_prepared
from maskdm.runtime.errors import UserError
from tests.support.clones import ROOT


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


# Which picture, its label, and whether its source holds it out.
SAMPLES = [(1, 0, False), (2, 1, True), (1, 1, True), (3, 0, True), (2, 0, False), (4, 1, False)]


def written(folder: Path, samples: list[tuple[int, int, bool]], **how: Duplicates) -> PreparedSet:
    return write_prepared(
        folder,
        (Sample(picture(n), label, heldout) for n, label, heldout in samples),
        size=8,
        channels=3,
        classes=["a", "b"],
        source="a test",
        licence="none",
        **how,
    )


def test_copies_follow_the_first_of_them(tmp_path: Path) -> None:
    duplicates = Duplicates()
    kept = written(tmp_path, SAMPLES, duplicates=duplicates)
    assert np.array_equal(kept.train, [picture(n) for n in (1, 1, 4)])
    assert np.array_equal(kept.heldout, [picture(n) for n in (2, 3, 2)])
    assert kept.train_labels is not None
    assert kept.train_labels.tolist() == [0, 1, 1]
    assert (duplicates.copies, duplicates.moved) == (2, 2)
    assert '"copies": {\n    "count": 2,\n    "moved": 2' in (tmp_path / "dataset.json").read_text()


def test_without_a_rule_each_stays_where_its_source_puts_it(tmp_path: Path) -> None:
    kept = written(tmp_path, SAMPLES)
    assert np.array_equal(kept.train, [picture(n) for n in (1, 2, 4)])
    assert "copies" not in (tmp_path / "dataset.json").read_text()


def test_a_set_in_which_no_copy_moves_is_the_same_to_the_byte(tmp_path: Path) -> None:
    """Copies within one side, as the default's set has them, change nothing that was recorded."""
    samples = [(1, 0, False), (1, 1, False), (2, 0, True), (3, 1, False)]
    sets = (tmp_path / "kept", {}), (tmp_path / "looked at", {"duplicates": Duplicates()})
    one, other = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder, how in sets
        if written(folder, samples, **how)
    )
    assert one == other


def test_images_that_differ_in_one_value_are_no_copies() -> None:
    duplicates, image = Duplicates(), picture(1)
    duplicates.side(image, False)
    image[-1, -1, -1] ^= 1
    assert duplicates.side(image, True)
    assert duplicates.copies == 0


def test_if_copies_leave_one_side_empty_a_sentence_says_so(tmp_path: Path) -> None:
    written(tmp_path, SAMPLES)
    with pytest.raises(UserError, match=r"only one side is left.*data.duplicates to keep"):
        written(tmp_path, [(1, 0, False), (1, 0, True), (2, 0, False)], duplicates=Duplicates())
    assert len(open_prepared(tmp_path).train) == 3  # what was there stays


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
