"""OpenMoji: which pictures are variants of one drawing, and what each shows."""

import re
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from maskdm.data.prepared import Sample
from maskdm.data.registry import open_source, read_samples
from maskdm.data.sources.openmoji_classes import CLASSES, RANGES, emoji_class
from maskdm.data.sources.openmoji_groups import emoji_group
from tests.support.preparing import params, prepare, sides


@pytest.fixture(scope="module")
def emoji_sides() -> dict[str, bool]:
    return sides(params(source="openmoji", heldout=0.1))


def test_variants_of_one_emoji_never_cross_the_split(emoji_sides: dict[str, bool]) -> None:
    """The variant's name is rewritten by text alone, unlike in the code under test."""
    rewritings = [
        (r"-1F3F[B-F]", ""),  # skin tone
        (r"-200D-(2640|2642)-FE0F", ""),  # gender sign
        (r"1F46[89]", "1F9D1"),  # man or woman to person
        (r"-200D-1F9B[0-3]", ""),  # hair
        (r"-200D-27A1-FE0F", ""),  # direction
        (r"^1F3F3-FE0F-200D-1F7E.$", "1F3F3"),  # flags of one colour
    ]
    checked = 0
    for variant in emoji_sides:
        for pattern, replacement in rewritings:
            base = re.sub(pattern, replacement, variant)
            if base != variant and base in emoji_sides:
                assert emoji_group(base) == emoji_group(variant)
                assert emoji_sides[base] == emoji_sides[variant], (base, variant)
                checked += 1
    assert checked > 2000


@pytest.mark.parametrize(
    "names",
    [
        "1F46A 1F468-200D-1F469-200D-1F466 1F469-200D-1F467-200D-1F467",
        "1F491 1F469-1F3FB-200D-2764-FE0F-200D-1F468-1F3FE",
        "1F48F 1F9D1-1F3FB-200D-2764-FE0F-200D-1F48B-200D-1F9D1-1F3FC",
        "1F46B 1F46C 1F46D-1F3FF 1F9D1-1F3FD-200D-1F91D-200D-1F9D1",
        "1F91D 1FAF1-1F3FB-200D-1FAF2-1F3FC",
        "1F385 1F936 1F9D1-1F3FB-200D-1F384",
        "1F408 1F408-200D-2B1B",
        "1F1EB-1F1F7 1F1F2-1F1EB",
    ],
)
def test_pairs_families_and_recoloured_drawings_are_one_group(names: str) -> None:
    assert len({emoji_group(name) for name in names.split()}) == 1


def test_different_drawings_are_different_groups() -> None:
    names = "1F600 1F680 1F408 2640-FE0F 1F9B0 1F1E9-1F1EA 1F1EC-1F1E7 1F46A 1F9D1"
    names += " 1F9D1-200D-1F680 1F9D1-200D-1F33E 1F3F4-E0067-E0062-E0065-E006E-E0067-E007F"
    assert len({emoji_group(name) for name in names.split()}) == len(names.split())


@pytest.mark.slow
def test_no_drawing_is_in_two_groups_mirrored_or_not() -> None:
    """Training may flip images, so a mirror image on the other side would be a copy too."""
    asked = params(source="openmoji", channels=1)
    source = open_source(asked, Path("nowhere"))
    samples = [sample for sample in read_samples(source, asked) if isinstance(sample, Sample)]
    drawings = np.stack([sample.pixels[..., 0] for sample in samples]).astype(np.float32)
    groups = np.array([emoji_group(picture.name) for picture in source.pictures])
    flat = drawings.reshape(len(drawings), -1)
    squares = (flat**2).mean(1)
    for other in (flat, drawings[:, :, ::-1].reshape(flat.shape)):
        distance = squares[:, None] + squares - 2 * flat @ other.T / flat.shape[1]
        pairs = np.argwhere((distance < 2**2) & (groups[:, None] != groups))  # levels, squared
        assert not [(groups[i], groups[j]) for i, j in pairs]


def test_emoji_are_drawn_on_the_background(tmp_path: Path) -> None:
    asked = params(source="openmoji", limit=20, background="#10a0f0")
    drawn = prepare(tmp_path, asked)
    assert (drawn.train[:, 0, 0] == (0x10, 0xA0, 0xF0)).all(axis=-1).mean() > 0.8
    assert all(image.std() > 5 for image in drawn.train)


# What an emoji shows

UNICODE = Path("/usr/share/unicode/emoji/emoji-test.txt")  # of Debian's package unicode-data


def test_every_emoji_has_a_class_and_every_class_has_emoji(tmp_path: Path) -> None:
    source = open_source(params(source="openmoji", classes=True), tmp_path)
    assert source.classes == CLASSES
    counts = Counter(picture.label for picture in source.pictures)
    assert set(counts) == set(range(len(CLASSES)))
    assert min(counts.values()) > 90
    heldout = {picture.label for picture in source.pictures if picture.heldout}
    assert heldout == set(counts)  # no class is learnt that is never checked


def test_ranges_do_not_overlap() -> None:
    ends = sorted(
        (int(first, 16), int(last or first, 16))
        for runs in RANGES.values()
        for first, _, last in (run.partition("-") for run in runs.split())
    )
    assert all(first <= last for first, last in ends)
    assert all(end[1] < following[0] for end, following in pairwise(ends))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("CAT FACE WITH|GRINNING FACE|(BLUE|YELLOW|BROKEN) HEART", "smileys-emotion"),
        ("(WO)?MAN$|HAND SIGN|POLICE OFFICER|EMOJI COMPONENT .* HAIR", "people-body"),
        ("(DOG|CAT|HORSE|BEETLE|CACTUS|TULIP|WHALE|T-REX)$", "animals-nature"),
        ("(BANANA|HAMBURGER|SUSHI|AVOCADO|BEANS|HOT BEVERAGE)$", "food-drink"),
        ("CLOCK FACE|AUTOMOBILE|AIRPLANE$|ROCKET$|HOSPITAL$|FULL MOON", "travel-places"),
        ("(WHITE|BLACK) CHESS|SOCCER BALL$|SPORTS MEDAL|VIDEO GAME", "activities"),
        ("(HAMMER|GUITAR|KEY|LEDGER|SCREWDRIVER|JEANS)$|(RED|BLUE) BOOK", "objects"),
        ("REGIONAL INDICATOR SYMBOL|WAVING (WHITE|BLACK) FLAG", "flags"),
        ("(LEFT|UP)WARDS BLACK ARROW|SQUARED|(ARIES|LEO|PISCES)$|.*FITZPATRICK", "symbols"),
    ],
)
def test_emoji_are_classed_as_the_names_of_their_characters_say(words: str, name: str) -> None:
    """The names come from Python, which knows nothing of groups."""
    checked = 0
    for picture in open_source(params(source="openmoji"), Path("nowhere")).pictures:
        first, _, rest = picture.name.partition("-")
        said = unicodedata.name(chr(int(first, 16)), "")
        if re.match(words, said) and (rest or "REGIONAL" not in said):
            assert emoji_class(picture.name) == name, said
            checked += 1
    assert checked > 2


def test_what_unicode_does_not_know_is_classed_by_what_it_shows() -> None:
    shown = {
        "flags": "E420 E435 1F3F4-E0075-E0073-E0074-E0078-E007F 1F3F3-FE0F-200D-1F7E9",
        "people-body": "1FBC5 1FBC6-200D-1F457 1F9D1-200D-1FAA9",
        "symbols": "1F1E6 1F16D 2B21-FE0F-200D-1F308 25C9 002D 1F3FB",
        "extras": "E000 E419 E436 F8FF",
    }
    assert {name: {emoji_class(e) for e in shown[name].split()} for name in shown} == {
        name: {name} for name in shown
    }


@pytest.mark.skipif(not UNICODE.exists(), reason="needs Debian's unicode-data")
def test_classes_are_unicodes_groups() -> None:
    groups, group = dict[str, str](), ""
    for line in UNICODE.read_text().splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").lower().replace(" & ", "-")
        elif line and not line.startswith("#"):
            groups["-".join(line.split(";")[0].split())] = group
    groups = {emoji: group for emoji, group in groups.items() if group != "component"}
    assert len(groups) > 4000
    differ = {emoji for emoji in groups if emoji_class(emoji) != groups[emoji]}
    by_first = {"1F441-200D-1F5E8", "1F344-200D-1F7EB"}  # eye in a speech bubble, brown mushroom
    seafood = {"1F980", "1F990", "1F991", "1F99E", "1F9AA"}  # food before Unicode 16, then animals
    assert {emoji.replace("-FE0F", "") for emoji in differ} <= by_first | seafood
