"""Every source reads the files that its users have, made here in their true formats."""

import gzip
import io
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import gdown
import lmdb
import numpy as np
import pytest
from PIL import Image

from maskdm.data.prepared import PreparedSet
from maskdm.data.registry import SOURCES, open_source
from maskdm.data.sources.fashion_mnist import read_idx
from maskdm.runtime import downloads
from maskdm.runtime.errors import UserError
from tests.support.preparing import jpeg, params, prepare, sides, write, zip_files


def same(one: PreparedSet, other: PreparedSet) -> bool:
    return one.hash == other.hash and one.classes == other.classes


# Folders and zip archives


PHOTOS = {f"{kind}/day {n % 2}/{n:02}.jpg": jpeg(n) for kind in ("cat", "dog") for n in range(10)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, content in PHOTOS.items():
        write(tmp_path / "photos" / name, content)
    return tmp_path / "photos"


@pytest.mark.parametrize("top", ["", "photos/"])
@pytest.mark.parametrize("rule", ["file", "folder", r"(\d)\.jpg"])
def test_a_zip_is_the_same_set_as_the_folder_in_it(
    photos: Path, tmp_path: Path, top: str, rule: str
) -> None:
    """Classes, groups and split too, whether the folder itself was packed or what is in it."""
    archive = zip_files(tmp_path / "a.zip", {top + name: PHOTOS[name] for name in sorted(PHOTOS)})
    asked = {"classes": True, "group": rule, "heldout": 0.5}
    from_zip = prepare(tmp_path / "z", params(source="zip", path=str(archive), **asked))
    assert same(from_zip, prepare(tmp_path / "f", params(path=str(photos), **asked)))
    assert from_zip.classes == ["cat", "dog"]


def test_what_a_mac_or_windows_adds_to_a_zip_does_no_harm(photos: Path, tmp_path: Path) -> None:
    junk = {
        "photos/": b"",
        "photos/cat/": b"",
        "__MACOSX/photos/cat/._00.jpg": b"not an image",
        "photos/.DS_Store": b"",
        "photos/.thumbnails/00.jpg": jpeg(5),
        "photos/notes.txt": b"",
    }
    packed = {"photos\\" + name.replace("/", "\\"): PHOTOS[name] for name in PHOTOS}
    archive = zip_files(tmp_path / "a.zip", junk | packed)
    from_zip = prepare(tmp_path / "z", params(source="zip", path=str(archive), classes=True))
    assert same(from_zip, prepare(tmp_path / "f", params(path=str(photos), classes=True)))


def test_what_lies_beside_the_images_changes_neither_classes_nor_split(
    photos: Path, tmp_path: Path
) -> None:
    files = {f"photos/{name}": content for name, content in PHOTOS.items()}
    asked = {"classes": True, "heldout": 0.5}
    archive = zip_files(tmp_path / "a.zip", {"README.txt": b"mine", **files})
    from_zip = prepare(tmp_path / "z", params(source="zip", path=str(archive), **asked))
    assert same(from_zip, prepare(tmp_path / "f", params(path=str(photos), **asked)))


def test_the_only_class_in_a_zip_stays_one(tmp_path: Path) -> None:
    files = {f"cat/{n}.jpg": jpeg(n) for n in range(20)}
    archive = zip_files(tmp_path / "a.zip", files)
    kept = prepare(tmp_path, params(source="zip", path=str(archive), classes=True, heldout=0.5))
    assert kept.classes == ["cat"]


def test_nothing_is_unpacked_from_a_zip(tmp_path: Path) -> None:
    """So a name that leads out of the archive is only a name."""
    names = ["../out.png", "/abs.png", *(f"{n}.png" for n in range(9))]
    archive = zip_files(tmp_path / "a.zip", {name: jpeg(n) for n, name in enumerate(names)})
    before = set(tmp_path.rglob("*"))
    source = open_source(params(source="zip", path=str(archive)), tmp_path)
    assert {source.read(picture.name).size for picture in source.pictures} == {(24, 20)}
    assert set(tmp_path.rglob("*")) == before


def test_a_damaged_image_in_a_zip_is_listed_and_skipped(tmp_path: Path) -> None:
    archive = zip_files(tmp_path / "a.zip", {f"{n}.jpg": jpeg(n) for n in range(20)})
    content = bytearray(archive.read_bytes())
    content[content.index(b"7.jpg") + 200] ^= 0xFF  # its checksum is wrong from here on
    archive.write_bytes(content)
    kept = prepare(tmp_path, params(source="zip", path=str(archive), max_unreadable=0.1))
    assert (len(kept.train) + len(kept.heldout), kept.skipped) == (19, 1)


@pytest.mark.parametrize("damage", ["missing", "cut", "a folder", "not a zip"])
def test_a_zip_that_is_none_is_refused(tmp_path: Path, damage: str) -> None:
    archive = zip_files(tmp_path / "a.zip", PHOTOS)
    whole = archive.read_bytes()
    archive.unlink()
    if damage == "cut":
        archive.write_bytes(whole[: len(whole) // 2])
    elif damage == "a folder":
        archive.mkdir()
    elif damage == "not a zip":
        archive.write_text("not a zip")
    with pytest.raises(UserError, match=r"data\.path is '.*a\.zip', which"):
        open_source(params(source="zip", path=str(archive)), tmp_path)


def test_linked_folders_are_read_once(photos: Path) -> None:
    """A link to a folder around it would otherwise never end."""
    asked = params(path=str(photos / "cat"), heldout=0.5)
    before = sides(asked)
    (photos / "cat" / "loop").symlink_to(photos / "cat")
    assert sides(asked) == before
    (photos / "cat" / "link").symlink_to(photos / "dog")
    assert len(sides(asked)) == 2 * len(before)


# LSUN


@pytest.fixture
def church(tmp_path: Path) -> Path:
    """An LMDB as LSUN's: keys of 40 hexadecimal digits, values image files."""
    folder = tmp_path / "church_outdoor_train_lmdb"
    with lmdb.open(str(folder), map_size=2**24) as database, database.begin(write=True) as images:
        for n in range(30):
            file = io.BytesIO()
            Image.new("RGB", (30, 20), (8 * n, 0, 0)).save(file, "WEBP", lossless=True)
            images.put(f"{n * 7919 % 1000:040x}".encode(), file.getvalue())
    return folder


@pytest.mark.parametrize("form", ["the folder", "the folder around it"])
def test_lsun_is_read_from_its_database(church: Path, tmp_path: Path, form: str) -> None:
    path = church if form == "the folder" else church.parent
    kept = prepare(tmp_path / "out", params(source="lsun-church", path=str(path), heldout=0.3))
    reds = np.concatenate([kept.train, kept.heldout])[:, 0, 0, 0]
    assert sorted(reds.tolist()) == [8 * n for n in range(30)]
    assert 3 <= len(kept.heldout) <= 15


def test_lsun_can_lie_where_nothing_can_be_written(church: Path) -> None:
    (church / "lock.mdb").unlink()
    open_source(params(source="lsun-church", path=str(church)), church)
    assert [path.name for path in church.iterdir()] == ["data.mdb"]


@pytest.mark.parametrize("damage", ["no database", "damaged"])
def test_an_lsun_that_is_none_is_refused(church: Path, tmp_path: Path, damage: str) -> None:
    if damage == "damaged":
        (church / "data.mdb").write_bytes(b"not a database" * 999)
    path = church if damage == "damaged" else tmp_path / "none"
    with pytest.raises(
        UserError, match=r"is damaged|does not exist|There is no data\.mdb in .*data\.path must"
    ):
        open_source(params(source="lsun-church", path=str(path)), tmp_path)


# ImageNet


def imagenet_files(folder: Path, val: str) -> Path:
    for synset in ("n01440764", "n01443537", "n02119789"):
        for n in range(6):
            write(folder / "train" / synset / f"{synset}_{n}.JPEG", jpeg(n))
    for n, synset in enumerate(("n02119789", "n01440764")):
        name = f"ILSVRC2012_val_{n + 1:08}.JPEG"
        if val != "none":
            write(folder / "val" / (f"{synset}/{name}" if val == "sorted" else name), jpeg(n))
    return folder


def test_imagenet_keeps_its_validation_part_and_synsets(tmp_path: Path) -> None:
    path = imagenet_files(tmp_path / "in", "sorted")
    kept = prepare(tmp_path, params(source="imagenet", path=str(path), classes=True))
    assert kept.classes == ["n01440764", "n01443537", "n02119789"]
    assert kept.train_labels is not None
    assert kept.heldout_labels is not None
    assert kept.train_labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert kept.heldout_labels.tolist() == [0, 2]


def test_unsorted_validation_images_of_imagenet_have_no_class(tmp_path: Path) -> None:
    path = str(imagenet_files(tmp_path / "in", "as it comes"))
    assert sum(sides(params(source="imagenet", path=path)).values()) == 2
    with pytest.raises(UserError, match=r"val/ILSVRC2012_val_00000001\.JPEG .*sort val/ into"):
        open_source(params(source="imagenet", path=path, classes=True), tmp_path)


def test_a_loose_training_image_of_imagenet_has_no_class(tmp_path: Path) -> None:
    path = imagenet_files(tmp_path / "in", "sorted")
    write(path / "train/cover.JPEG", jpeg(0))
    assert len(sides(params(source="imagenet", path=str(path)))) == 21
    with pytest.raises(UserError, match=r"train/cover\.JPEG' .* in none of its synsets: move"):
        open_source(params(source="imagenet", path=str(path), classes=True), tmp_path)


def test_imagenet_without_a_validation_part_is_split_by_hash(tmp_path: Path) -> None:
    path = imagenet_files(tmp_path / "in", "none")
    heldout = sides(params(source="imagenet", path=str(path), heldout=0.5))
    assert len(heldout) == 18
    assert 3 <= sum(heldout.values()) <= 15


def test_a_linked_imagenet_is_found(tmp_path: Path) -> None:
    imagenet_files(tmp_path / "disk", "sorted")
    (tmp_path / "in").mkdir()
    for part in ("train", "val"):
        (tmp_path / "in" / part).symlink_to(tmp_path / "disk" / part)
    assert len(sides(params(source="imagenet", path=str(tmp_path / "in")))) == 20


def test_a_folder_that_is_no_imagenet_is_refused(photos: Path) -> None:
    with pytest.raises(UserError, match=r"no train/SYNSET/ in .*data\.path must name the folder"):
        open_source(params(source="imagenet", path=str(photos)), photos)


# What is missing


@pytest.mark.parametrize(("source", "package"), [("lsun-church", "lmdb"), ("celeba", "gdown")])
def test_a_missing_package_is_named_with_the_extra_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    path = None if source == "celeba" else str(tmp_path)
    with pytest.raises(UserError, match=rf"needs .* {package}, .*pip install {package} .*extra"):
        open_source(params(source=source, path=path), tmp_path)


@pytest.mark.parametrize("source", [name for name, kind in SOURCES.items() if not kind.fetch])
def test_a_source_without_files_says_which_and_from_where(source: str) -> None:
    kind = SOURCES[source]
    with pytest.raises(
        UserError, match=rf"data\.path is None: source '{source}' needs the "
    ) as said:
        params(source=source)
    assert str(kind.path) in str(said.value)
    assert source in ("folder", "zip") or str(kind.origin) in str(said.value)


@pytest.mark.parametrize("source", SOURCES)
def test_classes_are_refused_where_there_are_none(source: str) -> None:
    asked = {"path": None if SOURCES[source].path is None else "somewhere", "classes": True}
    if SOURCES[source].classes:
        assert params(source=source, **asked).classes
    else:
        with pytest.raises(UserError, match=f"'{source}' has no classes"):
            params(source=source, **asked)


@pytest.mark.parametrize("source", SOURCES)
def test_auto_takes_the_classes_of_labelled_sets_and_no_others(source: str) -> None:
    path = None if SOURCES[source].path is None else "somewhere"
    labelled = params(source=source, path=path, classes="auto").classes
    assert labelled is (source in ("openmoji", "fashion-mnist", "cifar10", "imagenet"))
    assert SOURCES[source].classes or not labelled


# Downloads


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/file"


def test_a_download_that_hangs_ends(
    silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", silent_server)
    with pytest.raises(
        UserError, match=r"CIFAR-10 could not be downloaded .*timed out.*data\.path"
    ):
        open_source(params(source="cifar10"), tmp_path)


def test_a_download_through_gdown_that_hangs_ends(
    silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = gdown.download

    def from_silent_server(id: str, **asked: Any) -> Any:
        return true(silent_server, **asked)

    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    monkeypatch.setattr(gdown, "download", from_silent_server)
    with pytest.raises(UserError, match=r"CelebA's .* could not be downloaded .*timed out.*data\."):
        open_source(params(source="celeba"), tmp_path)


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
    asked = params(
        source="fashion-mnist", path=str(idx_files), resolution=32, channels=1, classes=True
    )
    kept = prepare(tmp_path, asked)
    original = read_idx(idx_files / "train-images-idx3-ubyte.gz")
    assert (kept.train[:, 2:30, 2:30, 0] == original).all()
    assert kept.train.sum() == original.sum()  # the frame is black
    assert kept.heldout.shape == (4, 32, 32, 1)
    assert kept.heldout_labels is not None
    assert kept.heldout_labels.tolist() == [0, 1, 2, 3]
    assert kept.classes is not None
    assert len(kept.classes) == 10


def test_another_set_under_the_names_of_fashion_mnist_is_refused(idx_files: Path) -> None:
    """EMNIST has the same files, with up to 62 classes."""
    save_idx(idx_files / "train-labels-idx1-ubyte.gz", np.arange(5, 11, dtype=np.uint8))
    with pytest.raises(UserError, match=r"train labels .* go up to 10, .* 0 to 9"):
        open_source(params(source="fashion-mnist", path=str(idx_files)), idx_files)


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
    monkeypatch.setattr("maskdm.data.sources.fashion_mnist.DEBIAN", tmp_path / "none")
    with pytest.raises(UserError, match=r"could not be downloaded .*no route.*data\.path"):
        open_source(params(source="fashion-mnist"), tmp_path)


@pytest.mark.parametrize("name", [b"caf\xe9", b"\x1b[31mred", b"line\nbreak", b"x" * 1001])
def test_a_class_that_no_model_can_have_is_named_before_anything_is_read(tmp_path, name) -> None:
    """A model stores the names of its classes, and a terminal obeys what stands in one."""
    if len(name) > 255:  # such a folder is in archives alone
        files = {f"{name.decode()}/{n}.jpg": jpeg(n) for n in range(9)}
        asked = params(source="zip", path=str(zip_files(tmp_path / "a.zip", files)), classes=True)
    else:
        for n in range(9):
            write(tmp_path / "in" / os.fsdecode(name) / f"{n}.jpg", jpeg(n))
        asked = params(path=str(tmp_path / "in"), classes=True)
    with pytest.raises(UserError, match=r"^The class .* cannot be called that: it .* Rename it"):
        open_source(asked, tmp_path)
    open_source(asked.model_copy(update={"classes": False}), tmp_path)
