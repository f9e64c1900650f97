"""Bad and odd inputs, made by a script: what lies in the folders of strangers.

Every case is a file, or something that is none, together with what must become of it: the picture
that was put in, known as an array before any encoder saw it; a skip that is counted and listed; or
either, where damage may leave a whole picture.
"""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

HEIGHT, WIDTH = 16, 24  # of the picture in most cases
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF 2.32, 4.6.4.A, Orientation
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}
LOSSLESS = {"PNG": ".png", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif", "TGA": ".tga"}
LOSSY = {"JPEG": ".jpg", "WEBP": ".webp", "AVIF": ".avif", "JPEG2000": ".jp2"}
DAMAGED = {**LOSSLESS, **LOSSY, "PPM": ".ppm", "QOI": ".qoi"}
# Tags that cameras write with other types: resolution, date, maker, exposure and so on.
MISTYPED = (256, 270, 271, 272, 282, 283, 296, 305, 306, 315, 531, 532, 700, 33432, 33434, 34665)


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: its path below the folder, with slashes.
        content: of the file; None: ``make`` puts something there that is no file.
        picture: what must be read, uint8 (H, W, 3); None if it must be skipped.
        tolerance: of the mean absolute difference to ``picture``, in levels.
        either: a skip is as right as a picture.
        make: puts it at a path, instead of ``content``.
        taken: whether it counts as a picture at all; if not, nothing may be read.
    """

    name: str
    content: bytes | None = None
    picture: np.ndarray | None = None
    tolerance: float = 0.0
    either: bool = False
    make: Callable[[Path], None] | None = None
    taken: bool = True


def cases() -> Iterator[Case]:
    """Yield all inputs; their names are unique."""
    for part in (_turned, _cut, _flipped, _misnamed, _shapes, _bombs, _modes, _animated, _named):
        yield from part()
    for part in (_exif, _chunks, _special):
        yield from part()


def lay(folder: Path) -> list[Case]:
    """Put all inputs into a folder and return them."""
    made = list(cases())
    for case in made:
        path = folder / case.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if case.content is not None:
            path.write_bytes(case.content)
        elif case.make is not None:
            case.make(path)
    return made


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Return a smooth picture without symmetry, uint8 (H, W, 3)."""
    y, x = np.mgrid[:height, :width] / np.array([[[height]], [[width]]])
    red, green, blue = x * (1 - 0.5 * y), y, (x * y + seed * 0.1) % 1
    return (np.stack([red, green, blue], -1) * 255).round().astype(np.uint8)


def encode(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    """Return a file of a format that PIL writes."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if kind == "GIF":
        image = image.quantize(256)
    image.save(file, kind, **options)
    return file.getvalue()


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """Return a PNG written by hand (PNG specification, third edition).

    Args:
        size: (width, height).
        depth: bits a sample.
        colour: 0 grey, 2 colour, 3 palette, 4 grey and alpha, 6 colour and alpha.
        rows: filtered rows.
        chunks: between header and rows.
    """
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + rest


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    whole = kind + content
    return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))


def tiff(size: tuple[int, int], bits: int, rows: bytes, **tags: int) -> bytes:
    """Return an uncompressed grey TIFF written by hand (TIFF 6.0).

    Args:
        size: (width, height).
        bits: a sample.
        rows: the pixels, little-endian.
        tags: ``photometric`` (default 1: black is zero) and ``kind`` (sample format, default 1).
    """
    entries = [
        (256, 4, size[0]),
        (257, 4, size[1]),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, tags.get("photometric", 1)),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, size[1]),
        (279, 4, len(rows)),
        (339, 3, tags.get("kind", 1)),
    ]
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHII", tag, kind, 1, value)
    padded = rows + b"\0" * (len(rows) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + directory + bytes(4)


def exif(*entries: tuple[int, int, bytes]) -> bytes:
    """Return EXIF written by hand: tags in order, as (tag, type, at most four bytes)."""
    body = b"".join(
        struct.pack("<HHI", tag, kind, 1 if kind != 2 else 4) + value.ljust(4, b"\0")
        for tag, kind, value in sorted(entries)
    )
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def _turned() -> Iterator[Case]:
    """All orientations of EXIF, in every format that carries it."""
    for kind in ("PNG", "TIFF", "JPEG", "WEBP", "AVIF"):
        for turn, upright in TURNS.items():
            shown, options = picture(64, 96), {"quality": 95}
            tag = Image.Exif()
            tag[0x0112] = turn
            content = encode(shown, kind, exif=tag, **(options if kind in LOSSY else {}))
            yield Case(
                f"turned/{kind}-{turn}{DAMAGED[kind]}",
                content,
                upright(shown),
                tolerance=3.0 if kind in LOSSY else 0.0,
            )


def _cut() -> Iterator[Case]:
    """Files cut short at every eighth."""
    shown = picture(64, 96)
    for kind, ending in DAMAGED.items():
        whole = encode(shown, kind)
        # Whatever is missing, half of a picture is none; only trailing bytes may not matter.
        off = 6.0 if kind in LOSSY or kind == "GIF" else 0.0
        for eighth in range(1, 8):
            part = whole[: len(whole) * eighth // 8]
            yield Case(f"cut/{kind}-{eighth}{ending}", part, shown, off, either=True)


def _flipped() -> Iterator[Case]:
    """Files in which bits are wrong."""
    random = np.random.default_rng(1)
    for kind, ending in DAMAGED.items():
        whole = encode(picture(), kind)
        for number in range(6):
            damaged = bytearray(whole)
            for at in random.integers(0, len(damaged), 1 + number):
                damaged[at] ^= 1 << int(random.integers(8))
            yield Case(f"flipped/{kind}-{number}{ending}", bytes(damaged), either=True)


def _misnamed() -> Iterator[Case]:
    """Pictures with another format's ending, and files that are no pictures at all."""
    for kind, ending in (("PNG", ".jpg"), ("BMP", ".png"), ("TIFF", ".gif")):
        yield Case(f"misnamed/{kind}{ending}", encode(picture(), kind), picture())
    yield Case("misnamed/empty.png", b"")
    yield Case("misnamed/text.png", b"not a picture")
    yield Case("misnamed/page.jpg", b"<!DOCTYPE html><title>404</title>")
    yield Case(
        "misnamed/script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    )
    yield Case("misnamed/paper.png", b"%PDF-1.7\n%%EOF")
    yield Case("misnamed/header.png", b"\x89PNG\r\n\x1a\n")
    yield Case("misnamed/table.tif", b"SIMPLE  =                    T" + b" " * 2850)
    yield Case("misnamed/noise.png", np.random.default_rng(2).bytes(4096))
    for name in ("film.mpg", "data.h5", "photo.heic", "notes.txt", "no-ending", "set.zip"):
        yield Case(f"misnamed/{name}", b"whatever", taken=False)
    for name in (".hidden.png", "@eaDir/thumbnail.png", "__MACOSX/._a.png", ".thumbnails/a.png"):
        yield Case(f"misnamed/{name}", encode(picture(), "PNG"), taken=False)


def _shapes() -> Iterator[Case]:
    """Extreme shapes."""
    for height, width in ((1, 1), (1, 20000), (20000, 1), (2, 3), (7, 5), (1, 2), (1000, 3)):
        shown = picture(height, width)
        yield Case(f"shapes/{height}x{width}.png", encode(shown, "PNG"), shown)


def _bombs() -> Iterator[Case]:
    """Small files that claim to be huge pictures."""
    for side in (9_000, 20_000, 60_000, 2**31 - 1):
        yield Case(f"bombs/{side}.png", png((side, side), 8, 2, b""))
    for side in (9_000, 65_535):
        head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0)
        yield Case(f"bombs/{side}.gif", head + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0))
    for side in (30_000, 2**30):
        info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        yield Case(f"bombs/{side}.bmp", b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info)
        yield Case(f"bombs/{side}.tif", tiff((side, side), 8, b""))
        yield Case(f"bombs/{side}.ppm", b"P6 %d %d 255\n" % (side, side))
        yield Case(f"bombs/{side}.qoi", b"qoif" + struct.pack(">IIBB", side, side, 3, 0))
    zeros = zlib.compress(bytes(9000 * 9001), 9)
    yield Case(
        "bombs/zeros.png",
        png((9000, 9000), 8, 0, b"").replace(
            chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", zeros)
        ),
    )


def _modes() -> Iterator[Case]:
    """All the ways to store grey, colour and transparency."""
    grey = picture()[..., 0]
    in_grey = np.repeat(grey[..., None], 3, -1)
    for kind, ending in {**LOSSLESS, "PPM": ".ppm", "QOI": ".qoi"}.items():
        if kind != "GIF":  # which has a palette
            yield Case(f"modes/colour-{kind}{ending}", encode(picture(), kind), picture())
    for kind, ending in (("PNG", ".png"), ("TIFF", ".tif"), ("PPM", ".pgm"), ("JPEG2000", ".jp2")):
        deep = grey.astype(np.uint16) * 257
        yield Case(f"modes/16-{kind}{ending}", encode(deep, kind), in_grey)
    for ending, kind in ((".png", "PNG"), (".tif", "TIFF"), (".tga", "TGA"), (".webp", "WEBP")):
        alpha = np.where(np.arange(WIDTH) % 2, 255, 0).astype(np.uint8)
        clear = np.dstack([picture(), np.broadcast_to(alpha, (HEIGHT, WIDTH))])
        white = np.where(alpha[None, :, None] == 0, 255, picture()).astype(np.uint8)
        options = {"lossless": True} if kind == "WEBP" else {}
        yield Case(f"modes/alpha-{kind}{ending}", encode(clear, kind, **options), white)
    for bits in (1, 2, 4, 8):
        for key in (None, 1):
            yield _key(bits, key)
    row = b"\0" + struct.pack(">4H", 0, 1000, 1001, 65535)
    key16 = chunk(b"tRNS", struct.pack(">H", 1000))
    white = np.repeat(np.array([[[0], [255], [4], [255]]], np.uint8), 3, -1)
    yield Case("modes/key-16.png", png((4, 1), 16, 0, row, key16), white)
    row = b"\0" + struct.pack(">6H", 0, 1000, 1001, 65535, 3, 4)
    key48 = chunk(b"tRNS", struct.pack(">3H", 0, 1000, 1001))
    yield Case("modes/key-48.png", png((2, 1), 16, 2, row, key48))
    row = b"\0" + struct.pack(">8H", 65535, 0, 0, 65535, 0, 0, 0, 0)
    deep_clear = np.array([[[255, 0, 0], [255, 255, 255]]], np.uint8)
    yield Case("modes/alpha-64.png", png((2, 1), 16, 6, row), deep_clear)
    sixteen = struct.pack("<4H", 0, 257, 25700, 65535)
    levels = np.array([0, 1, 100, 255], np.uint8)
    for photometric, shown in ((1, levels), (0, 255 - levels)):
        yield Case(
            f"modes/16-{photometric}.tif",
            tiff((4, 1), 16, sixteen, photometric=photometric),
            np.repeat(shown[None, :, None], 3, -1),
        )
    twelve = bytes([0xFF, 0xF0, 0x00, 0x80, 0x10, 0x00])  # 4095, 0, 2049, 0
    shown = np.array([255, 0, 128, 0], np.uint8)
    yield Case("modes/12.tif", tiff((4, 1), 12, twelve), np.repeat(shown[None, :, None], 3, -1))
    yield Case("modes/signed-16.tif", tiff((4, 1), 16, struct.pack("<4h", -9, 0, 9, 99), kind=2))
    yield Case("modes/signed-32.tif", tiff((4, 1), 32, struct.pack("<4i", -9, 0, 9, 99), kind=2))
    yield Case("modes/32.tif", tiff((4, 1), 32, struct.pack("<4I", 0, 9, 99, 2**31)))
    yield Case("modes/float.tif", tiff((4, 1), 32, struct.pack("<4f", 0, 0.5, 1, 255), kind=3))
    yield Case("modes/float.pfm", b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0, 1))
    cmyk = Image.new("CMYK", (4, 2), (0, 255, 255, 0))
    for kind, ending, off in (("TIFF", ".tif", 0.0), ("JPEG", ".jpg", 3.0)):
        file = io.BytesIO()
        cmyk.save(file, kind)
        red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (2, 4, 3))
        yield Case(f"modes/cmyk-{kind}{ending}", file.getvalue(), red, tolerance=off)
    palette = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4), "P")
    colours = np.random.default_rng(3).integers(0, 256, (8, 3), np.uint8)
    palette.putpalette(colours.tobytes())
    shown = colours[np.arange(8).reshape(2, 4)]
    clear = np.where(np.arange(8).reshape(2, 4, 1) == 5, 255, shown).astype(np.uint8)
    for kind, ending in (("PNG", ".png"), ("GIF", ".gif"), ("BMP", ".bmp"), ("TIFF", ".tif")):
        for transparent in (None, 5) if kind in ("PNG", "GIF") else (None,):
            file = io.BytesIO()
            if transparent is None:
                palette.save(file, kind)
            else:
                palette.save(file, kind, transparency=transparent)
            yield Case(
                f"modes/palette-{transparent}-{kind}{ending}",
                file.getvalue(),
                shown if transparent is None else clear,
            )


def _key(bits: int, key: int | None) -> Case:
    """Return a grey PNG of few bits, one of its greys transparent."""
    values = np.arange(8) % 2**bits
    packed = np.zeros((8, bits), np.uint8)
    for bit in range(bits):
        packed[:, bits - 1 - bit] = values >> bit & 1
    row = b"\0" + np.packbits(packed).tobytes()
    shown = (values * (255 // (2**bits - 1))).astype(np.uint8)
    chunks = [] if key is None else [chunk(b"tRNS", struct.pack(">H", key))]
    if key is not None:
        shown = np.where(values == key, 255, shown).astype(np.uint8)
    content = png((8, 1), bits, 0, row, *chunks)
    return Case(f"modes/grey-{bits}-{key}.png", content, np.repeat(shown[None, :, None], 3, -1))


def _animated() -> Iterator[Case]:
    """Films: their first frame counts."""
    for kind, ending in (("GIF", ".gif"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif")):
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
        file = io.BytesIO()
        options = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], **options)
        red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (16, 16, 3))
        yield Case(f"films/{kind}{ending}", file.getvalue(), red)


def _named() -> Iterator[Case]:
    """Names that people and systems give."""
    names = ["SHOUTED.PNG", "with space.png", "naïve.png", "猫.png", "'quoted\".png", "-dash.png"]
    names += ["new\nline.png", "tab\t.png", "a" * 240 + ".png", "$(reboot).png", "%s{}.png"]
    names += ["two.dots.png", "back\\slash.png", "semi;colon.png", "star*.png", "e\u0301.png"]
    names += [os.fsdecode(b"latin-\xe9.png"), "deep/" * 40 + "a.png"]
    for number, name in enumerate(names):
        shown = picture(seed=number)
        yield Case(f"names/{name}", encode(shown, "PNG"), shown)


def _exif() -> Iterator[Case]:
    """Orientation beside tags of wrong types, and EXIF that is none."""
    shown = picture(64, 96)
    for tag in MISTYPED:
        for kind, value in ((2, b"abc"), (7, b"\xff\xff\xff\xff"), (5, b"\xff\xff\xff\x7f")):
            block = exif((0x0112, 3, struct.pack("<H", 6)), (tag, kind, value))
            content = encode(shown, "JPEG", quality=95, exif=block)
            yield Case(f"exif/{tag}-{kind}.jpg", content, np.rot90(shown, -1), tolerance=3.0)
    for name, block in {
        "empty": b"Exif\0\0",
        "short": b"Exif\0\0II*\0",
        "text": b"Exif\0\0hello",
        "loop": b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 34665, 4, 1, 8),
        "nine": exif((0x0112, 3, struct.pack("<H", 9))),
        "zero": exif((0x0112, 3, struct.pack("<H", 0))),
        "letters": exif((0x0112, 2, b"six")),
    }.items():
        content = encode(shown, "JPEG", quality=95, exif=block)
        yield Case(f"exif/{name}.jpg", content, shown, tolerance=3.0)


def _chunks() -> Iterator[Case]:
    """PNG with much beside the pixels."""
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 3_000_000, zip=True)
    yield Case("chunks/text.png", encode(picture(), "PNG", pnginfo=text), picture())
    profile = np.random.default_rng(4).bytes(2_000_000)
    yield Case("chunks/profile.png", encode(picture(), "PNG", icc_profile=profile), picture())
    zeros = chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(2**28), 9))
    rows = b"".join(b"\0" + row.tobytes() for row in picture())
    yield Case("chunks/bomb.png", png((WIDTH, HEIGHT), 8, 2, rows, zeros), picture(), either=True)
    many = [chunk(b"tEXt", b"k\0v")] * 20_000
    yield Case("chunks/many.png", png((WIDTH, HEIGHT), 8, 2, rows, *many), picture())


def _special() -> Iterator[Case]:
    """What is no file, and links."""
    shown = picture(seed=99)

    def target(path: Path) -> None:
        aside = path.parent.parent.parent / "aside"
        aside.mkdir(exist_ok=True)
        (aside / "other.png").write_bytes(encode(shown, "PNG"))

    def outwards(path: Path) -> None:
        target(path)
        path.symlink_to(path.parent.parent.parent / "aside" / "other.png")

    def listening(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as place:
            here = Path.cwd()
            os.chdir(path.parent)  # the names of sockets are short
            try:
                place.bind(path.name)
            finally:
                os.chdir(here)

    yield Case("special/outwards.png", picture=shown, make=outwards)
    yield Case("special/nowhere.png", make=lambda path: path.symlink_to("nothing"), taken=False)
    yield Case("special/itself.png", make=lambda path: path.symlink_to(path.name), taken=False)
    yield Case("special/circle", make=lambda path: path.symlink_to(".."), taken=False)
    yield Case("special/pipe.png", make=os.mkfifo, taken=False)
    yield Case("special/socket.png", make=listening, taken=False)
    for device in ("zero", "random", "null"):
        yield Case(
            f"special/{device}.png",
            make=lambda path, device=device: path.symlink_to(f"/dev/{device}"),  # type: ignore[misc]
            taken=False,
        )
    yield Case("special/folder.png/inside.png", encode(shown, "PNG"), shown)
