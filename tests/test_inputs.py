"""Bad and odd inputs: each ends in the right picture, a listed skip, or one sentence."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.robustness import corpus, inputs
from maskdm.data import files
from maskdm.data.contract import Picture, Source
from maskdm.data.registry import SOURCES, open_source
from maskdm.runtime.errors import UserError
from tests.support.clones import ROOT
from tests.support.preparing import jpeg, params, prepare, save_images, sides, zip_files


def test_every_input_of_the_corpus_ends_as_it_should(tmp_path: Path) -> None:
    """In a process with bounded memory, which no input may exceed, hang or bring down."""
    command = [sys.executable, "-m", "benchmarks.robustness.inputs"]
    command += ["--seconds", "2", "--names", "2000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert not ended.stderr
    found = json.loads((tmp_path / "reports/robustness.json").read_text())
    assert found["inputs"]["cases"] >= 200
    assert found["inputs"]["picture"] >= 150
    assert found["left_out"] == {
        **{".h5": 1, ".heic": 1, ".mpg": 1, ".txt": 1, ".zip": 1, "no ending": 1},
        **{"broken link": 2, "device": 3, "pipe": 1, "socket": 1},
    }


def test_the_corpus_tells_a_wrong_picture_from_a_right_one() -> None:
    shown = corpus.picture()
    whole, skipped = (corpus.Case("a.png", b"", shown), corpus.Case("a.png", b""))

    def source(pixels: np.ndarray) -> Source:
        return Source(
            "", "", None, [Picture("a.png", False, None)], lambda _: Image.fromarray(pixels)
        )

    assert inputs.outcome(source(shown), whole) == "picture"
    assert "off by" in inputs.outcome(source(shown[::-1].copy()), whole)
    assert "has shape" in inputs.outcome(source(np.rot90(shown).copy()), whole)
    assert "is read" in inputs.outcome(source(shown), skipped)
    cut = corpus.Case("a.png", b"", shown, either=True)
    assert "off by" in inputs.outcome(source(np.zeros_like(shown)), cut)


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as a folder, without what no archive holds."""
    folder = tmp_path_factory.mktemp("corpus") / "images"
    corpus.lay(folder)
    return folder


@pytest.mark.parametrize("form", ["{}", "./{}", "/{}", "top/{}", "./top//{}"])
def test_a_folder_and_any_archive_of_it_are_the_same_set(
    laid: Path, tmp_path: Path, form: str
) -> None:
    names = [
        name
        for name in sides(params(path=str(laid)))
        if "\\" not in name and name.isascii() and not name.startswith("special")
    ]
    assert len(names) > 200
    packed = zip_files(
        tmp_path / "a.zip", {form.format(name): (laid / name).read_bytes() for name in names}
    )
    of_folder = sides(params(path=str(laid)))
    of_zip = sides(params(path=str(packed), source="zip"))
    assert of_zip == {name: of_folder[name] for name in names}


def test_what_is_left_out_is_counted_and_written_down(tmp_path: Path) -> None:
    save_images(tmp_path / "in", [f"{n}.png" for n in range(9)])
    for n in range(30):
        (tmp_path / f"in/{n}.HEIC").write_bytes(b"whatever")
    (tmp_path / "in/README").write_text("about")
    kept = prepare(tmp_path / "out", params(path=str(tmp_path / "in")))
    about = json.loads((tmp_path / "out/dataset.json").read_text())
    assert about["left_out"] == {".heic": 30, "no ending": 1}
    assert kept.skipped == 0


def test_a_closed_folder_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(tmp_path, [f"{kind}/{n}.png" for kind in "ab" for n in range(9)])
    scan = os.scandir

    def closed(path):  # root may open all
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"folder '.*b' cannot be listed \(Permission denied\)"):
        open_source(params(path=str(tmp_path)), tmp_path)


@pytest.mark.parametrize("error", [13, 5, 116])  # rights, a disk, a file server
def test_files_that_cannot_be_looked_at_are_no_broken_links(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that may be listed and not entered says so of every file in it."""
    save_images(tmp_path, [f"{kind}/{n}.png" for kind in "ab" for n in range(9)])
    scan = os.scandir

    class Entry:
        def __init__(self, name: str) -> None:
            self.name = name

        def stat(self) -> os.stat_result:
            raise OSError(error, os.strerror(error))

    class Closed(list[Entry]):
        def __enter__(self) -> list[Entry]:
            return self

        def __exit__(self, *_: object) -> None: ...

    def closed(path):
        return Closed([Entry("0.png")]) if Path(path).name == "b" else scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=rf"folder '.*b' cannot be listed \({os.strerror(error)}"):
        open_source(params(path=str(tmp_path)), tmp_path)


def test_links_to_nothing_are_counted(tmp_path: Path) -> None:
    save_images(tmp_path, [f"{n}.png" for n in range(9)])
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    (tmp_path / "through.png").symlink_to(tmp_path / "0.png/more.png")
    (tmp_path / "long.png").symlink_to("a" * 300)
    left_out = open_source(params(path=str(tmp_path)), tmp_path).left_out
    assert left_out == {"broken link": 4}


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["top/cat/a.png", "top/dog/b.png"], ["cat", "dog"]),
        (["cat/a.png", "dog/b.png"], ["cat", "dog"]),
        (["cat/a.png", "cat/b.png"], ["cat"]),
        (["top/cat/a.png", "top/dog/b.png", "top/cover.png"], None),
        (["cat/a.png", "cover.png"], None),
    ],
)
def test_an_archive_has_the_classes_of_the_folder_in_it(
    names: list[str], classes: list[str] | None, tmp_path: Path
) -> None:
    packed = zip_files(tmp_path / "a.zip", {n: jpeg(i) for i, n in enumerate(names)})
    asked = params(source="zip", path=str(packed), classes=True, heldout=0.5)
    if classes is None:
        with pytest.raises(UserError, match=r"'cover\.png' .* in none of its sub-folders: move"):
            open_source(asked, tmp_path)
    else:
        assert SOURCES["zip"].listing(asked, packed).classes == classes


def test_numbers_after_a_dot_are_no_kind_of_file(tmp_path: Path) -> None:
    """As DICOM and numbered series name their files."""
    for number in range(300):
        (tmp_path / f"1.2.840.{number}").write_bytes(b"whatever")
        (tmp_path / f"x.k{number}").write_bytes(b"whatever")
    (tmp_path / "a.\x1b[2J").write_bytes(b"whatever")
    (tmp_path / "a.\u202etxt").write_bytes(b"whatever")
    with pytest.raises(UserError, match="602 other files are there") as said:
        open_source(params(path=str(tmp_path)), tmp_path)
    assert "583 other endings" in str(said.value)
    assert len(str(said.value)) < 800
    assert str(said.value).isascii()
    assert "\x1b" not in str(said.value)


def test_a_folder_whose_name_is_no_text_has_a_source_that_is(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"f\xfcr")
    save_images(folder, [f"{n}.png" for n in range(9)])
    (tmp_path / "photos").symlink_to(folder)
    source = open_source(params(path=str(tmp_path / "photos")), tmp_path)
    assert source.name == r"folder f\udcfcr"


def test_a_file_of_a_folder_has_no_more_bytes_than_an_image_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 5000)
    save_images(tmp_path / "in", [f"{n}.png" for n in range(9)])
    (tmp_path / "in/large.png").write_bytes((tmp_path / "in/0.png").read_bytes() + bytes(5000))
    prepare(tmp_path / "out", params(path=str(tmp_path / "in"), max_unreadable=0.2))
    skipped = json.loads((tmp_path / "out/dataset.json").read_text())["skipped"]
    assert skipped["count"] == 1


def test_an_archive_cannot_unpack_to_more_than_an_image_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 5000)
    images = {f"{n}.jpg": jpeg(n) for n in range(9)}
    packed = tmp_path / "bomb.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**images, "bomb.png": bytes(10**7)}.items():
            archive.writestr(name, content)
    prepare(tmp_path / "out", params(source="zip", path=str(packed), max_unreadable=0.2))
    skipped = json.loads((tmp_path / "out/dataset.json").read_text())["skipped"]
    assert skipped["count"] == 1
    assert "more than the 1 GiB" in skipped["files"][0]


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    packed = zip_files(tmp_path / "a.zip", {f"{n}.jpg": jpeg(n) for n in range(9)})
    with zipfile.ZipFile(packed, "a") as archive:
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("../outside.jpg", jpeg(1))
    prepare(tmp_path / "out", params(source="zip", path=str(packed)))
    about = json.loads((tmp_path / "out/dataset.json").read_text())
    assert about["left_out"] == {"link": 1, "outside the archive": 1}
    assert about["train"]["count"] + about["heldout"]["count"] == 9
    assert not (tmp_path / "outside.jpg").exists()


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_where_no_file_is_an_image_the_kinds_are_named(tmp_path: Path, kind: str) -> None:
    files = {"a/1.HEIC": b"x", "a/2.heic": b"x", "notes.txt": b"x"}
    path = zip_files(tmp_path / "a.zip", files)
    if kind == "folder":
        path = tmp_path / "in"
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"No image was found.*3 other files.*2 \.heic, 1 \.txt"):
        open_source(params(source=kind, path=str(path)), tmp_path)


@pytest.mark.parametrize("kind", ["folder", "zip", "celebahq"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"data\.path is '.*pipe'"):
        open_source(params(source=kind, path=str(tmp_path / "pipe")), tmp_path)


def test_images_of_too_many_pixels_are_listed_with_the_parameter(tmp_path: Path) -> None:
    save_images(tmp_path / "in", [f"{n}.png" for n in range(9)])
    save_images(tmp_path / "in", ["large.png"], side=50)
    asked = params(path=str(tmp_path / "in"), max_pixels=400, max_unreadable=0.2)
    prepare(tmp_path / "out", asked)
    skipped = json.loads((tmp_path / "out/dataset.json").read_text())["skipped"]["files"]
    assert skipped == ["large.png: 50 x 50 pixels are more than data.max_pixels = 400"]
    kept = prepare(tmp_path / "out", asked.model_copy(update={"max_pixels": 2500}))
    assert len(kept.train) + len(kept.heldout) == 10


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "empty path would be the current folder"),
        (" ", "empty path would be the current folder"),
        ("a\0b", "no file has this name"),
    ],
)
def test_paths_that_name_nothing_are_refused(path: str, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"data\.path is .*{sentence}.*Allowed"):
        params(path=path)


def test_a_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(tmp_path / "images", [f"{n}.png" for n in range(9)])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(sides(params(path="~/images"))) == 9


def test_a_relative_path_that_is_not_there_says_from_where_it_counts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'photos', which does not exist.*absolute path"):
        open_source(params(path="photos"), tmp_path)
