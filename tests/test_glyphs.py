"""The evidence's pictures of characters: names and groups, what is drawn, what is left alone."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image, ImageFont

from benchmarks.evidence import glyphs
from benchmarks.evidence.glyphs import (
    BLOCK,
    EM,
    FACE,
    FONT,
    GROUP,
    NOWHERE,
    SIZE,
    draw,
    file_name,
    open_face,
    render,
)
from maskdm.data.sources.folder import file_group
from maskdm.runtime.errors import UserError
from tests.support.preparing import params, prepare, sides

LETTERS = range(ord("A"), ord("Z") + 1)
EXTREME = "一丨丶乛亠馨颇龰灬籭簔猇猻糹亻嶙麟噴馱龘"  # the most or least ink, or nearest to an edge

needs_noto = pytest.mark.skipif(not FONT.exists(), reason="needs Debian's fonts-noto-cjk")


@pytest.fixture
def letters() -> ImageFont.FreeTypeFont:
    """The font inside Pillow, which has letters but no ideographs."""
    font = ImageFont.load_default(EM)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@pytest.fixture(scope="module")
def noto() -> ImageFont.FreeTypeFont:
    return open_face(FONT)


def pixels(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "L"
    return np.asarray(picture)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Names and groups


def test_a_group_is_sixteen_neighbours() -> None:
    groups: dict[str, list[int]] = {}
    for code_point in BLOCK:
        groups.setdefault(file_group(file_name(code_point), GROUP), []).append(code_point)
    assert len(groups) == len(BLOCK) // 16
    for members in groups.values():
        assert members == list(range(members[0], members[0] + 16))


def test_names_are_in_the_order_of_code_points() -> None:
    names = [file_name(code_point) for code_point in BLOCK]
    assert names == sorted(set(names))
    assert names[0] == "U4E00.png"


def test_neighbours_are_on_one_side_of_the_split(
    letters: ImageFont.FreeTypeFont, tmp_path: Path
) -> None:
    draw(letters, tmp_path, range(0x20, 0x180))
    split = sides(params(path=str(tmp_path), group=GROUP, heldout=0.5))
    by_group: dict[str, set[bool]] = {}
    for name, heldout in split.items():
        by_group.setdefault(name[:-5], set()).add(heldout)
    assert {len(found) for found in by_group.values()} == {1}
    assert len(split) > 4 * len(by_group)


# What is drawn


def test_a_letter_is_black_on_white_and_antialiased(letters: ImageFont.FreeTypeFont) -> None:
    drawn = pixels(render(letters, ord("S"), SIZE))
    assert drawn.shape == (SIZE, SIZE)
    assert drawn.min() == 0
    assert np.median(drawn) == drawn.max() == 255
    assert len(np.unique(drawn)) > 10


def test_letters_stand_on_one_baseline(letters: ImageFont.FreeTypeFont) -> None:
    lowest = {np.nonzero(pixels(render(letters, ord(c), SIZE)).min(1) < 128)[0][-1] for c in "EFHx"}
    assert len(lowest) == 1


def test_prepared_images_are_the_pictures_as_drawn(
    letters: ImageFont.FreeTypeFont, tmp_path: Path
) -> None:
    draw(letters, tmp_path / "images", LETTERS)
    asked = params(path=str(tmp_path / "images"), resolution=SIZE, channels=1)
    found = prepare(tmp_path / "prepared", asked)
    images = {image.tobytes() for image in (*found.train, *found.heldout)}
    assert images == {render(letters, letter, SIZE).tobytes() for letter in LETTERS}


def test_what_the_font_lacks_is_left_out(letters: ImageFont.FreeTypeFont, tmp_path: Path) -> None:
    assert draw(letters, tmp_path, [*LETTERS, BLOCK[0], NOWHERE]) == len(LETTERS)
    assert contents(tmp_path).keys() == {file_name(letter) for letter in LETTERS}


# What is left alone


def test_a_second_run_adds_what_is_missing_and_touches_nothing_else(
    letters: ImageFont.FreeTypeFont, tmp_path: Path
) -> None:
    draw(letters, tmp_path, LETTERS)
    whole = contents(tmp_path)
    (tmp_path / file_name(LETTERS[3])).unlink()
    (tmp_path / file_name(LETTERS[5])).write_bytes(b"someone's own")
    assert draw(letters, tmp_path, LETTERS) == len(LETTERS)
    assert contents(tmp_path) == whole | {file_name(LETTERS[5]): b"someone's own"}


def test_an_image_that_was_being_written_is_drawn_again(
    letters: ImageFont.FreeTypeFont, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks_off(_: Image.Image, path: Path, kind: str) -> None:
        path.write_bytes(b"\x89PNG")
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Image.Image, "save", breaks_off)
        with pytest.raises(KeyboardInterrupt):
            draw(letters, tmp_path / "one", LETTERS)
    assert not list((tmp_path / "one").glob("*.png"))
    draw(letters, tmp_path / "one", LETTERS)
    draw(letters, tmp_path / "other", LETTERS)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_a_set_that_was_being_drawn_is_not_there_until_it_is_whole(
    letters: ImageFont.FreeTypeFont, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for the folder finds a whole set, or none."""
    monkeypatch.setattr(glyphs, "open_face", lambda _: letters)
    monkeypatch.setattr(glyphs, "BLOCK", LETTERS)
    folder = tmp_path / "glyphs"
    drawn = [render(letters, code_point, SIZE) for code_point in (NOWHERE, *LETTERS[:4])]
    with monkeypatch.context() as broken:
        broken.setattr(glyphs, "render", Mock(side_effect=[*drawn, KeyboardInterrupt]))
        with pytest.raises(KeyboardInterrupt):
            glyphs.main(folder)
    assert not folder.exists()
    glyphs.main(folder)
    assert len(contents(folder)) == len(LETTERS)
    (folder / file_name(LETTERS[3])).unlink()
    glyphs.main(folder)
    assert len(contents(folder)) == len(LETTERS)
    assert [path.name for path in tmp_path.iterdir()] == ["glyphs"]


# The font


def test_a_missing_font_is_told_with_its_place_and_package(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no font .*/absent\.ttc.*package fonts-noto-cjk.*--font"):
        open_face(tmp_path / "absent.ttc")


def test_a_file_that_is_no_font_is_told(tmp_path: Path) -> None:
    path = tmp_path / "text.ttc"
    path.write_text("no font")
    with pytest.raises(UserError, match=r"text\.ttc does not hold Noto Serif CJK SC"):
        open_face(path)


@needs_noto
def test_a_face_is_found_by_its_name() -> None:
    for region in ("JP", "KR", "SC", "TC", "HK"):
        face = (f"Noto Serif CJK {region}", "Regular")
        assert open_face(FONT, face).getname() == face
    with pytest.raises(UserError, match=r"does not hold Arial Regular, but Noto Serif CJK JP"):
        open_face(FONT, ("Arial", "Regular"))


@needs_noto
def test_nothing_is_clipped(noto: ImageFont.FreeTypeFont) -> None:
    margin = (SIZE - EM) // 2
    for character in [*map(ord, EXTREME), *BLOCK[::64]]:
        drawn = pixels(render(noto, character, SIZE)) < 255
        wider = pixels(render(noto, character, SIZE + 2 * EM)) < 255
        assert (wider[EM:-EM, EM:-EM] == drawn).all(), chr(character)
        assert drawn.sum() == drawn[margin:-margin, margin:-margin].sum() == wider.sum()


@needs_noto
def test_the_font_has_the_block_but_for_its_last_additions(
    noto: ImageFont.FreeTypeFont, tmp_path: Path
) -> None:
    assert draw(noto, tmp_path, [*BLOCK[:40], *BLOCK[-40:]]) == 80 - 21
    assert noto.getname() == FACE
