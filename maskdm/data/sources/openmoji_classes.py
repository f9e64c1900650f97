"""What an emoji shows: the groups of Unicode's emoji-test.txt, version 17, by first code point.

The first code point gives the group of every emoji but two: Unicode has the brown mushroom as food
and the eye in a speech bubble as a smiley. Skin tones, which Unicode calls components, count as
symbols, and hair as people. So do the drawings that OpenMoji adds to Unicode's emoji: letters and
signs are symbols, stick figures people, chess pieces a game. Its drawings in the private use area,
except for flags, are a class of their own: brands, buttons, tools and much else.
"""

import bisect

SYMBOLS, EXTRAS = "symbols", "extras"  # SYMBOLS holds the code points in no range
# Ranges of first code points are runs of one group among the code points in use, so a range also
# spans code points that begin no emoji.
RANGES = {
    "smileys-emotion": """
        2620 2639-263A 2763-2764 1F479-1F47B 1F47D-1F480 1F48B-1F48C 1F493-1F49F 1F4A2
        1F4A4-1F4A6 1F4A8-1F4A9 1F4AB-1F4AD 1F4AF 1F573 1F5A4 1F5E8-1F5EF 1F600-1F644
        1F648-1F64A 1F90D-1F90E 1F910-1F917 1F920-1F925 1F927-1F92F 1F970-1F976 1F978-1F97A
        1F9D0 1F9E1 1FA75-1FA77 1FAE0-1FAE5 1FAE8-1FAEF
    """,
    "people-body": """
        261D 26F7 26F9 270A-270D 1F385 1F3C2-1F3C4 1F3C7 1F3CA-1F3CC 1F440-1F450 1F463-1F478
        1F47C 1F481-1F483 1F485-1F487 1F48F 1F491 1F4AA 1F574-1F575 1F57A 1F590-1F596 1F5E3
        1F645-1F647 1F64B-1F64F 1F6A3 1F6B4-1F6B6 1F6C0 1F6CC 1F90C 1F90F 1F918-1F91F 1F926
        1F930-1F93E 1F977 1F9B0-1F9B9 1F9BB 1F9BE-1F9BF 1F9CC-1F9CF 1F9D1-1F9E0 1FAC0-1FAC8
        1FAE6 1FAF0-1FBC9
    """,
    "animals-nature": """
        2618 1F331-1F335 1F337-1F33C 1F33E-1F344 1F3F5 1F400-1F43F 1F490 1F4AE 1F54A
        1F577-1F578 1F940 1F980-1F9AE 1FAB0-1FAB4 1FAB6-1FABF 1FACD-1FACF
    """,
    "food-drink": """
        2615 1F32D-1F330 1F336 1F33D 1F345-1F37F 1F382 1F3FA 1F52A 1F942-1F944 1F950-1F96F
        1F9C0-1F9CB 1FAD0-1FADC
    """,
    "travel-places": """
        231A-231B 23F0-23F3 2600-2604 2614 2668 2693 26A1 26C4-26C8 26E9-26F2 26F4-26F5
        26FA-26FD 2708 2744 2B50 1F300-1F32C 1F3A0-1F3A2 1F3AA 1F3CD-1F3CE 1F3D4-1F3E6
        1F3E8-1F3ED 1F3EF-1F3F0 1F488 1F492 1F4A7 1F4BA 1F525 1F54B-1F54D 1F550-1F567 1F570
        1F5FA-1F5FE 1F680-1F6A2 1F6A4-1F6A8 1F6B2 1F6CE 1F6D1 1F6D5-1F6D6 1F6D8 1F6DD-1F6DF
        1F6E2-1F6F6 1F6F8-1F6FC 1F9BC-1F9BD 1F9ED 1F9F1 1F9F3 1FA82 1FA90 1FAA8 1FAB5
    """,
    "activities": """
        2654-2666 26BD-26BE 26F3 26F8 2728 1F004-1F0CF 1F380-1F381 1F383-1F384 1F386-1F38B
        1F38D-1F391 1F396-1F397 1F39F 1F3A3 1F3A8 1F3AB 1F3AD-1F3B4 1F3BD-1F3C0 1F3C5-1F3C6
        1F3C8-1F3C9 1F3CF-1F3D3 1F3F8 1F52B 1F52E 1F579 1F5BC 1F6F7 1F93F 1F945-1F94F
        1F9E7-1F9E9 1F9F5-1F9F6 1F9F8 1FA80-1FA81 1FA84-1FA86 1FAA1-1FAA2 1FAA9
    """,
    "objects": """
        2328 260E 2692 2694 2696-2699 26B0-26B1 26CF-26D3 2702 2709 270F-2712 1F392-1F393
        1F399-1F39E 1F3A4-1F3A5 1F3A7 1F3A9 1F3AC 1F3B5-1F3BC 1F3EE 1F3F7 1F3F9 1F451-1F462
        1F484 1F489-1F48A 1F48D-1F48E 1F4A1 1F4A3 1F4B0 1F4B3-1F4B9 1F4BB-1F4DA 1F4DC-1F4F2
        1F4F7-1F4FF 1F507-1F517 1F526-1F529 1F52C-1F52D 1F56F 1F576 1F587-1F58D 1F5A5-1F5B2
        1F5C2-1F5E1 1F5F3 1F5FF 1F6AA 1F6AC 1F6BD 1F6BF 1F6C1 1F6CB 1F6CD 1F6CF 1F6D2 1F6D7
        1F6E0-1F6E1 1F941 1F97B-1F97F 1F9AF 1F9BA 1F9E2-1F9E6 1F9EA-1F9EC 1F9EE-1F9F0 1F9F2
        1F9F4 1F9F7 1F9F9-1FA74 1FA78-1FA7C 1FA83 1FA87-1FA8F 1FA91-1FAA0 1FAA3-1FAA7
        1FAAA-1FAAE 1FAE7
    """,
    "flags": """
        E420-E435 1F1E6-1F1FF 1F38C 1F3C1 1F3F3-1F3F4 1F6A9
    """,
    EXTRAS: "E000-E419 E436-F8FF",
}
CLASSES = [*RANGES, SYMBOLS]
LETTERS = range(0x1F1E6, 0x1F200)  # two of them are a flag, one is a letter

_RUNS = sorted(
    (int(first, 16), int(last or first, 16), name)
    for name, runs in RANGES.items()
    for first, _, last in (run.partition("-") for run in runs.split())
)


def emoji_class(name: str) -> str:
    """Return the class of an emoji, one of ``CLASSES``.

    Args:
        name: its code points in hexadecimal, joined by hyphens (``1F469-1F3FD-200D-1F680``).
    """
    first, _, rest = name.partition("-")
    code = int(first, 16)
    if code in LETTERS and not rest:
        return SYMBOLS
    start, end, group = _RUNS[max(bisect.bisect(_RUNS, (code, 0x110000, "")) - 1, 0)]
    return group if start <= code <= end else SYMBOLS
