"""Which emoji are variants of one drawing, and so must stay on one side of the split.

About half of OpenMoji's pictures differ from another one only in skin tone, gender, hair or
direction; some are even the same picture under two names (the flags of France and Clipperton). On
both sides of the split they would void every held-out number.
"""

JOINER, PERSON, CHILD, FAMILY = "200D", "1F9D1", "1F9D2", "1F46A"
VARIANT = {"FE0F", "1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}  # emoji style and skin tones
# Female, male, facing right, and four kinds of hair follow a joiner.
JOINED_VARIANT = {"2640", "2642", "27A1", "1F9B0", "1F9B1", "1F9B2", "1F9B3"}
# Names of one drawing with another gender, face, hair, colour or nationality; the first one names
# the group. They were found among the pairs whose pictures differ least.
SAME_DRAWING = {
    name: names.split()[0]
    for names in (
        f"{PERSON} 1F468 1F469 1F471 1F64D 1F64E",  # man, woman, blond, frowning, pouting
        f"{CHILD} 1F466 1F467",  # boy, girl
        "1F9D3 1F474 1F475",  # old people
        "1FAC5 1F934 1F478",  # people with a crown
        "1F930 1FAC3 1FAC4",  # pregnant people
        f"{PERSON}-1F384 1F385 1F936",  # Father and Mother Christmas
        f"1F46B 1F46C 1F46D {PERSON}-1F91D-{PERSON}",  # holding hands
        f"1F46F {PERSON}-1F430-{PERSON}",  # with bunny ears
        f"1F93C {PERSON}-1FAEF-{PERSON}",  # wrestling
        f"1F48F {PERSON}-2764-1F48B-{PERSON}",  # kissing
        f"1F491 {PERSON}-2764-{PERSON}",  # with a heart
        "1F91D 1FAF1 1FAF2",  # a handshake and its two hands
        "1FAF7 1FAF8",  # pushing hands
        "1F608 1F47F",  # devils
        "2639 1F641",  # frowning faces
        "1F627 1F628",  # frightened faces
        "1F52F 2721",  # stars of David
        "2764 1F499 1F49A 1F49B 1F49C 1F5A4 1F90D 1F90E 1F9E1 1FA75 1FA76 1FA77",  # hearts
        "1F534 1F535 1F7E0 1F7E1 1F7E2 1F7E3 1F7E4 26AA 26AB 1F311 1F315",  # circles
        "2B1B 2B1C 1F7E5 1F7E6 1F7E7 1F7E8 1F7E9 1F7EA 1F7EB",  # squares
        "2B1B 1F3FB 1F3FC 1F3FD 1F3FE 1F3FF",  # squares of skin tones
        " ".join(f"{code:X}" for code in range(0x1F550, 0x1F568)),  # clocks
        "1F6B9 1F6BA",  # signs on doors
        "1F4D5 1F4D7 1F4D8 1F4D9",  # books
        "1F4B4 1F4B5 1F4B6 1F4B7",  # banknotes
        "1F3F3 1F3F4 25AD",  # flags of one colour
        "25E7 25E8",  # from here to the stars, mirror images of each other: half-black squares
        "23E9 23EA",  # double triangles
        "23ED 23EE",  # double triangles with a bar
        "25B6 25C0",  # triangles
        "25ED 25EE",  # half-black triangles
        "27A1 2B05",  # arrows
        "2198 2199",  # arrows down
        "2196 2197",  # arrows up
        "1FBC6 1FBC7 1FBC8",  # stick figures
        "00A9 1F12F",  # copyright, copyleft
        "1F31B 1F31C",  # moons with a face
        "1F313 1F317",  # half moons
        "2BEA 2BEB",  # half-black stars
        "1F1E6-1F1FA 1F1ED-1F1F2",  # Australia
        "1F1EA-1F1F8 1F1EA-1F1E6",  # Spain
        "1F1EB-1F1F7 1F1E8-1F1F5 1F1F2-1F1EB",  # France
        "1F1EE-1F1E9 1F1F2-1F1E8",  # Indonesia, Monaco
        "1F1F3-1F1F4 1F1E7-1F1FB 1F1F8-1F1EF",  # Norway
        "1F1F7-1F1F4 1F1F9-1F1E9",  # Romania, Chad
        "1F1FA-1F1F8 1F1FA-1F1F2",  # United States
        "1F1ED-1F1FA 1F1F9-1F1EF",  # Hungary, Tajikistan
        "E432 E433 E434 E435",  # pride flags that differ in a stripe
        "E2C9 E2CA",
    )
    for name in names.split()
}


def emoji_group(name: str) -> str:
    """Return the group of an emoji: one for all variants of a drawing.

    Skin tone, gender, hair and direction make no difference; couples and families are one group
    each. A person joined to a thing (a job's tool) is another group; anything else joined to a
    thing (a cat to a black square: a black cat) is not.

    Args:
        name: its code points in hexadecimal, joined by hyphens (``1F469-1F3FD-200D-1F680``).
    """
    parts: list[str] = []
    for joined in name.split(f"-{JOINER}-"):
        part = "-".join(c for c in joined.split("-") if c not in VARIANT) or joined
        if not parts or part not in JOINED_VARIANT:
            parts.append(SAME_DRAWING.get(part, part))
    if len(parts) > 1 and set(parts) <= {PERSON, CHILD}:
        return FAMILY
    group = "-".join(parts) if parts[0] == PERSON else parts[0]
    return SAME_DRAWING.get(group, group)
