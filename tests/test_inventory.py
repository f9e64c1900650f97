"""What the files of a source are: it changes when they do, and costs little."""

import os
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.presets import read_preset
from maskdm.data import inventory as module
from maskdm.data import prepared
from maskdm.data.inventory import inventory
from maskdm.data.prepared import open_prepared
from maskdm.data.registry import read_samples
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json
from maskdm.runtime.params import merge
from stages import prepare, source
from tests.support.preparing import jpeg, params, save_images, zip_files


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of six images."""
    save_images(tmp_path / "photos", [f"{kind}/{n}.png" for kind in "ab" for n in range(3)])
    # Each of a time of its own, on disks whose times are coarse, too.
    for number, path in enumerate(sorted((tmp_path / "photos").rglob("*.png"))):
        os.utime(path, (number, number))
    return tmp_path / "photos"


def of(path: Path, **changes: Any) -> dict[str, Any]:
    return inventory(params(path=str(path), **changes))


def change(photos: Path, how: str) -> None:
    first = photos / "a/0.png"
    if how == "removed":
        first.unlink()
    elif how == "added":
        (photos / "c.png").write_bytes(b"new")
    elif how == "renamed":
        first.rename(photos / "a/9.png")
    elif how == "other content":
        kept = first.stat()
        first.write_bytes(bytes(kept.st_size))
        os.utime(first, ns=(kept.st_atime_ns, kept.st_mtime_ns + 1000))
    elif how == "swapped":
        first.rename(photos / "aside")
        (photos / "b/0.png").rename(first)
        (photos / "aside").rename(photos / "b/0.png")


@pytest.mark.parametrize("how", ["removed", "added", "renamed", "other content", "swapped"])
def test_whatever_happens_to_the_files_of_a_folder_is_seen(photos: Path, how: str) -> None:
    before = of(photos)
    assert of(photos) == before
    change(photos, how)
    assert of(photos) != before


@pytest.fixture
def workspace(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a params.yaml for the photos and what source said of them."""
    monkeypatch.chdir(photos.parent)
    asked = {"source": "folder", "path": "photos", "limit": None, "resolution": 16}
    params = merge(read_preset("tiny"), {"data": asked | {"classes": False, "heldout": 0.3}})
    write_json(Path("params.yaml"), params)
    source.main()
    return photos.parent


def test_files_that_are_not_those_that_source_saw_are_refused(
    workspace: Path, photos: Path
) -> None:
    """Or the set would be recorded under what they were, and found again when they are that."""
    prepare.main()
    before = open_prepared(Path("data/prepared")).hash
    (photos / "a/0.png").rename(workspace / "aside.png")
    with pytest.raises(UserError, match=r"not those that data/source\.json tells of.*dvc repro"):
        prepare.main()
    assert open_prepared(Path("data/prepared")).hash == before
    source.main()
    prepare.main()
    assert open_prepared(Path("data/prepared")).hash != before


@pytest.mark.parametrize("content", ["", "[]", '{"files"', "\\xff"])
def test_a_damaged_note_of_what_source_saw_tells_of_nothing(workspace: Path, content: str) -> None:
    Path("data/source.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"not those that data/source\.json tells of.*dvc repro"):
        prepare.main()


def test_files_that_change_while_they_are_read_are_refused(
    workspace: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(*given: Any) -> Any:
        yield from read_samples(*given)
        (photos / "c.png").write_bytes(b"new")

    monkeypatch.setattr(prepare, "read_samples", changing)
    with pytest.raises(UserError, match="have changed while they were read"):
        prepare.main()
    assert not Path("data/prepared/dataset.json").exists()


def test_a_second_process_does_not_write_the_same_set(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "PATIENCE", 0.1)
    with (
        prepared.alone(Path("data/prepared")),
        ThreadPoolExecutor() as pool,  # a lock of a thread is one of another
        pytest.raises(UserError, match="Another process writes data/prepared"),
    ):
        pool.submit(prepare.main).result()
    prepare.main()


def test_hidden_files_and_what_is_read_from_a_folder_change_nothing(photos: Path) -> None:
    before = of(photos)
    (photos / ".DS_Store").write_bytes(b"x")
    (photos / "a/0.png").read_bytes()
    assert of(photos) == before


def test_an_archive_is_what_is_in_it(tmp_path: Path) -> None:
    images = {f"{n}.jpg": jpeg(n) for n in range(4)}
    here = of(zip_files(tmp_path / "a.zip", images), source="zip")
    again = of(zip_files(tmp_path / "b.zip", images), source="zip")
    assert here == again  # whenever it was packed
    other = of(zip_files(tmp_path / "b.zip", images | {"3.jpg": jpeg(9)}), source="zip")
    assert other != here


def test_what_comes_from_a_package_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_facts", lambda _: pytest.fail("it was looked at"))
    known = inventory(params(source="openmoji", path=None))
    assert known == inventory(params(source="openmoji", path=None))


@pytest.mark.parametrize("there", ["empty", "missing"])
def test_a_folder_of_nothing_is_refused_by_its_name(tmp_path: Path, there: str) -> None:
    if there == "empty":
        (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"data\.path is '.*{there}', which .*must name"):
        of(tmp_path / there)


def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        for n in range(count):
            (tmp_path / f"{n}.png").touch()
        tracemalloc.start()
        counted = of(tmp_path)["files"]
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert counted == count
        return most

    of_few = peak(100)
    assert peak(5000) < of_few + 100_000


def test_links_in_a_circle_end(photos: Path) -> None:
    (photos / "a/up").symlink_to("..")
    left_out: Counter[str] = Counter()
    assert len(list(module.walk(photos, left_out))) == 6


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_damaged_archive_is_one_sentence(tmp_path: Path, share: float) -> None:
    whole = zip_files(tmp_path / "a.zip", {f"{n}.jpg": jpeg(n) for n in range(4)}).read_bytes()
    tail = whole[-22:]  # what says that it is a zip archive
    (tmp_path / "a.zip").write_bytes(whole[: int(len(whole) * share)] + tail)
    with pytest.raises(UserError, match="is no whole zip file"):
        of(tmp_path / "a.zip", source="zip")


def test_a_home_that_nobody_has_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"data\.path is '~nobody-here/images', which cannot be"):
        of(Path("~nobody-here/images"))
