"""From a folder of images to a split: groups, classes, limits, unreadable files, parameters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskdm.data.prepared import open_prepared
from maskdm.data.registry import open_source
from maskdm.data.sources.folder import file_group
from maskdm.runtime.errors import UserError
from tests.support.preparing import params, prepare, save_images, sides


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of twenty images in two classes."""
    folder = tmp_path / "photos"
    save_images(folder, [f"{kind}/{n:02}.png" for kind in ("cat", "dog") for n in range(10)])
    return folder


# Groups and classes


@given(st.sets(st.text("abc/", min_size=1, max_size=6), min_size=1), st.integers(0, 2))
def test_group_rules_name_groups(names: set[str], rule: int) -> None:
    """Whatever the rule, a group is a function of the name; 'file' separates all names."""
    text = ("file", "folder", "a+")[rule]
    groups = [file_group(name, text) for name in names]
    assert groups == [file_group(name, text) for name in names]
    if text == "file":
        assert len(set(groups)) == len(names)


@pytest.mark.parametrize("rule", ["(", "a{99999999999999}", "(" * 5000 + ")" * 5000, "[z-a]"])
def test_what_is_no_regular_expression_is_refused(rule: str) -> None:
    with pytest.raises(UserError, match=r"data\.group is .*not a regular expression") as refused:
        params(group=rule)
    assert len(str(refused.value)) < 1000


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
    with pytest.raises(UserError, match=r"'stray\.png' .* in none of its sub-folders"):
        open_source(params(path=str(photos), classes=True), photos)


@pytest.mark.parametrize(("heldout", "side"), [(0.001, "held-out"), (0.999, "training")])
def test_a_split_with_an_empty_side_is_refused(photos: Path, heldout: float, side: str) -> None:
    with pytest.raises(UserError, match=rf"left no {side} image out of 20.*data\.heldout"):
        open_source(params(path=str(photos), heldout=heldout), photos)


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
    assert not list(tmp_path.glob(".*"))


# Parameters


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"source": "imagnet"}, r"data\.source is 'imagnet'.*openmoji, fashion-mnist, folder, zip"),
        ({"path": None}, r"data\.path is None: source 'folder' needs the folder"),
        ({"resolution": 4}, r"data\.resolution is 4.*8 to 1024"),
        ({"resolution": 32.0}, r"data\.resolution is 32\.0"),
        ({"size": 32}, r"data\.size is called data\.resolution now"),
        ({"channels": 2}, r"data\.channels is 2"),
        ({"background": "whitish"}, r"data\.background is 'whitish'.*a colour such as"),
        ({"heldout": 1.0}, r"data\.heldout is 1\.0"),
        ({"group": "("}, r"data\.group is '\(': not a regular expression"),
        ({"classes": True, "source": "celeba"}, r"'celeba' has no classes.*cifar10 \(ten things\)"),
        ({"source": "openmoji"}, r"data\.path is 'photos': source 'openmoji' .* takes no path"),
        (
            {"autoencoder": "vae", "window": 64, "shards": "/mnt/shards"},
            r"data\.shards is '/mnt/shards': networks learn the latents, which stay in",
        ),
        ({"max_unreadable": 1.5}, r"data\.max_unreadable is 1\.5"),
        ({"limits": 32}, r"data\.limits is not a parameter.*'limit'"),
    ],
)
def test_bad_parameters_are_named_with_what_is_allowed(
    change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        params(**({"path": "photos"} | change))


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path is .*does not exist.*must name the folder"):
        open_source(params(path=str(tmp_path / "none")), tmp_path)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No image was found"):
        open_source(params(path=str(tmp_path)), tmp_path)
