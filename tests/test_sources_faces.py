"""CelebA, CelebA-HQ and VGGFace2: parts, crops and people in their true formats."""

import io
from pathlib import Path
from typing import Any

import gdown
import numpy as np
import pytest
from PIL import Image

from maskdm.data.registry import open_source
from maskdm.runtime.errors import UserError
from tests.support.preparing import jpeg, params, prepare, sides, write, zip_files

# CelebA


def coordinates() -> bytes:
    """Return an aligned image whose red is its column and whose green is its row, as a PNG."""
    y, x = np.mgrid[:218, :178].astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1)).save(file, "PNG")
    return file.getvalue()


CELEBA_PARTS = [0, 0, 1, 0, 2, 0]
CELEBA_IMAGES = {f"{n:06}.jpg": jpeg(n, (178, 218)) for n in range(1, 7)}
CELEBA_TEXT = "".join(
    f"{name} {part}\n" for name, part in zip(CELEBA_IMAGES, CELEBA_PARTS, strict=True)
)


def celeba_files(folder: Path, form: str) -> Path:
    """Write CelebA as it is found, and return what data.path names."""
    images = {f"img_align_celeba/{name}": content for name, content in CELEBA_IMAGES.items()}
    kaggle = "image_id,partition\n" + CELEBA_TEXT.replace(" ", ",")
    folder.mkdir()
    if form == "all in one zip":
        partition = {"Eval/list_eval_partition.txt": CELEBA_TEXT.encode()}
        return zip_files(folder / "celeba.zip", images | partition)
    if form == "archive in its folder":
        zip_files(folder / "img_align_celeba.zip", images)
    elif form == "Kaggle":
        images = {f"img_align_celeba/{name}": content for name, content in images.items()}
    for name, content in images.items() if form != "archive in its folder" else ():
        write(folder / name, content)
    name = "list_eval_partition." + ("csv" if form == "Kaggle" else "txt")
    (folder / name).write_text(kaggle if form == "Kaggle" else CELEBA_TEXT)
    return folder / "img_align_celeba" if form == "images" else folder


CELEBA_FORMS = ["folder", "images", "archive in its folder", "Kaggle", "all in one zip"]


@pytest.mark.parametrize("form", CELEBA_FORMS)
def test_celeba_keeps_its_official_parts(tmp_path: Path, form: str) -> None:
    path = celeba_files(tmp_path / "in", form)
    write(path.parent / "in" / "img_celeba" / "000001.jpg", jpeg(9))  # of the set before alignment
    asked = params(source="celeba", path=str(path))
    heldout = sides(asked)
    assert heldout == {
        name: part > 0 for name, part in zip(CELEBA_IMAGES, CELEBA_PARTS, strict=True)
    }
    kept = prepare(tmp_path, asked)
    assert (len(kept.train), len(kept.heldout), kept.skipped) == (4, 2, 0)


def test_celeba_is_cropped_to_the_128_pixels_around_89_121(tmp_path: Path) -> None:
    path = celeba_files(tmp_path / "in", "folder")
    for name in CELEBA_IMAGES:
        (path / "img_align_celeba" / name).write_bytes(coordinates())
    kept = prepare(tmp_path, params(source="celeba", path=str(path), resolution=128))
    assert (kept.train[:, :, :, 0] == np.arange(25, 153)).all()  # columns
    assert (kept.train[:, :, :, 1] == np.arange(57, 185)[:, None]).all()  # rows
    half = prepare(tmp_path, params(source="celeba", path=str(path), resolution=64)).train.astype(
        int
    )
    middle = slice(4, -4)  # away from the borders, the mean of two neighbours
    error = half[:, :, middle, 0] - (25.5 + 2 * np.arange(64)[middle])
    assert abs(error).max() <= 0.5


def test_celeba_images_that_are_not_aligned_are_not_cropped(tmp_path: Path) -> None:
    path = celeba_files(tmp_path / "in", "folder")
    (path / "img_align_celeba" / "000001.jpg").write_bytes(jpeg(0, (200, 218)))
    with pytest.raises(
        UserError, match=r"000001\.jpg: 200 x 218 pixels, not the aligned 178 x 218"
    ):
        prepare(tmp_path, params(source="celeba", path=str(path)))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("no image", r"1 of the 6 images .*such as 000003\.jpg: data\.path must name"),
        ("no partition", r"There is no list_eval_partition\.txt in "),
        ("line", r"Line 2 of CelebA's list_eval_partition is '000002\.jpg 7'"),
        ("nothing", r"does not exist: it must name the folder that holds img_align_celeba/"),
    ],
)
def test_a_celeba_that_is_not_whole_is_refused(tmp_path: Path, damage: str, sentence: str) -> None:
    path = celeba_files(tmp_path / "in", "folder")
    partition = path / "list_eval_partition.txt"
    if damage == "no image":
        (path / "img_align_celeba" / "000003.jpg").unlink()
    elif damage == "no partition":
        partition.unlink()
    elif damage == "line":
        partition.write_text(CELEBA_TEXT.replace("000002.jpg 0", "000002.jpg 7"))
    else:
        path = path / "none"
    with pytest.raises(UserError, match=sentence):
        open_source(params(source="celeba", path=str(path)), tmp_path)


# CelebA-HQ


def test_celebahq_has_one_split_in_any_form(tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(40)]
    for name in names:
        write(tmp_path / "CelebAMask-HQ" / "CelebA-HQ-img" / name, jpeg(1))
        write(tmp_path / "flat" / name.replace("jpg", "png"), jpeg(1))
    write(tmp_path / "CelebAMask-HQ" / "CelebAMask-HQ-mask-anno" / "0" / "00000_nose.png", jpeg(2))
    archive = zip_files(tmp_path / "a.zip", {f"train/male/{name}": jpeg(1) for name in names})
    forms = (tmp_path / "CelebAMask-HQ", tmp_path / "flat", archive)
    splits = [
        {
            Path(name).stem
            for name, heldout in sides(params(source="celebahq", path=str(p))).items()
            if heldout
        }
        for p in forms
    ]
    assert splits[0] == splits[1] == splits[2]
    assert len(sides(params(source="celebahq", path=str(forms[0])))) == 40  # no mask among them


# VGGFace2


@pytest.fixture
def people(tmp_path: Path) -> Path:
    folder = tmp_path / "VGGFace2"
    for person in range(12):
        for image in range(4):
            name = f"n{person:06}/{image:04}_01.jpg"
            write(folder / "train" / name, jpeg(person, (20, 26)))
    write(folder / "test" / "n000099" / "0001_01.jpg", jpeg(0))
    return folder


@pytest.mark.parametrize("form", ["", "train"])
def test_no_person_of_vggface2_is_on_both_sides(people: Path, form: str) -> None:
    by_person: dict[str, set[bool]] = {}
    for name, heldout in sides(params(source="vggface2", path=str(people / form))).items():
        by_person.setdefault(name.split("/")[0], set()).add(heldout)
    assert len(by_person) == 12  # of the training part only
    assert all(len(side) == 1 for side in by_person.values())


def test_people_are_classes_and_then_on_both_sides(people: Path, tmp_path: Path) -> None:
    asked = params(source="vggface2", path=str(people), classes=True, heldout=0.5)
    kept = prepare(tmp_path / "out", asked)
    assert kept.classes == [f"n{person:06}" for person in range(12)]
    assert kept.train_labels is not None
    assert kept.heldout_labels is not None
    assert len({*kept.train_labels.tolist()} & {*kept.heldout_labels.tolist()}) > 6


def test_a_wrong_layout_of_vggface2_is_refused(people: Path) -> None:
    write(people / "train" / "stray.jpg", jpeg(0))
    with pytest.raises(UserError, match=r"'stray\.jpg' in .*train is not of the form person/image"):
        open_source(params(source="vggface2", path=str(people)), people)


# Downloads


def test_celeba_is_downloaded_once_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google Drive stands in for itself with the two files that are needed, and no others."""
    served = {
        path.name: path.read_bytes()
        for path in celeba_files(tmp_path / "in", "archive in its folder").iterdir()
    }
    asked_for: list[str] = []

    def serve(id: str, output: str, timeout: float) -> None:
        asked_for.append(Path(output).name)
        Path(output).write_bytes(served[Path(output).name])

    monkeypatch.setattr(gdown, "download", serve)
    monkeypatch.setattr("torchvision.datasets.utils.check_md5", lambda path, md5: True)
    for _ in range(2):
        assert len(sides_of(params(source="celeba"), tmp_path)) == 6
    assert sorted(asked_for) == ["img_align_celeba.zip", "list_eval_partition.txt"]


def test_what_came_of_celeba_must_be_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(id: str, output: str, timeout: float) -> None:
        Path(output).write_bytes(b"a page that says: too many users")

    monkeypatch.setattr(gdown, "download", serve)
    with pytest.raises(UserError, match=r"CelebA's .*\(what came is not the file\): let"):
        open_source(params(source="celeba"), tmp_path)


def sides_of(asked: Any, downloads: Path) -> dict[str, bool]:
    return {p.name: p.heldout for p in open_source(asked, downloads).pictures}


def test_google_drives_refusal_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(**asked: Any) -> None:
        raise gdown.exceptions.FileURLRetrievalError("too many users")

    monkeypatch.setattr(gdown, "download", refuse)
    with pytest.raises(UserError, match=r"CelebA's .*\(too many users\): let data\.path name"):
        open_source(params(source="celeba"), tmp_path)
