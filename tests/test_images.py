"""From image files of any kind to squares of 8-bit pixels."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskdm.data.images import fit, open_image, read_image, to_rgb
from maskdm.runtime.errors import UserError

RED, GREEN, BLUE, CLEAR = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255), (9, 9, 9, 0)


def decoded(path: Path, background: str = "#0a141e") -> list[tuple[int, ...]]:
    """Return the pixels of a file, row by row."""
    pixels = np.asarray(read_image(path.read_bytes(), 8, background)).reshape(-1, 3)
    return [tuple(pixel) for pixel in pixels.tolist()]


def of_pixels(mode: str, *pixels: Any) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def test_transparent_pixels_take_the_background(tmp_path: Path) -> None:
    of_pixels("RGBA", RED, CLEAR, (255, 255, 255, 51)).save(tmp_path / "rgba.png")
    half = tuple(round(0.2 * 255 + 0.8 * c) for c in (10, 20, 30))
    assert decoded(tmp_path / "rgba.png") == [(255, 0, 0), (10, 20, 30), half]

    of_pixels("LA", (200, 255), (200, 0)).save(tmp_path / "la.png")
    assert decoded(tmp_path / "la.png") == [(200, 200, 200), (10, 20, 30)]

    palette = of_pixels("P", 0, 1, 2)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=1)
    assert decoded(tmp_path / "p.png") == [(255, 0, 0), (10, 20, 30), (0, 0, 255)]

    palette.save(tmp_path / "steps.png", transparency=bytes([255, 0, 255]))
    assert decoded(tmp_path / "steps.png") == [(255, 0, 0), (10, 20, 30), (0, 0, 255)]

    of_pixels("RGB", RED[:3], GREEN[:3]).save(tmp_path / "key.png", transparency=GREEN[:3])
    assert decoded(tmp_path / "key.png") == [(255, 0, 0), (10, 20, 30)]

    alpha_palette = of_pixels("RGBA", BLUE, CLEAR).convert("PA")
    picture = np.asarray(to_rgb(alpha_palette, "#0a141e"))
    assert picture[0, 1].tolist() == [10, 20, 30]


def test_opaque_modes_keep_their_colours(tmp_path: Path) -> None:
    of_pixels("L", 0, 77, 255).save(tmp_path / "l.png")
    assert decoded(tmp_path / "l.png") == [(0,) * 3, (77,) * 3, (255,) * 3]

    of_pixels("1", 0, 255).save(tmp_path / "1.png")
    assert decoded(tmp_path / "1.png") == [(0,) * 3, (255,) * 3]

    of_pixels("CMYK", (0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)).save(tmp_path / "cmyk.tif")
    assert decoded(tmp_path / "cmyk.tif") == [(255,) * 3, (255, 0, 0), (0,) * 3]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_scale_to_eight(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 257, 128 * 257, 65535, 1000]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / f"deep.{suffix}")
    grey = [pixel[0] for pixel in decoded(tmp_path / f"deep.{suffix}")]
    assert grey == np.round(levels[0] / 257).astype(int).tolist()


@pytest.mark.parametrize("key", [(0, 0, 0), (0, 0, 200), (0, 0, 2000)])
def test_a_transparent_colour_of_sixteen_bits_is_not_guessed(key: Any, tmp_path: Path) -> None:
    """PIL cuts the pixels to 8 bits: near black would be taken for a key of black."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    pixels = np.array([[[5, 5, 5], [65535, 0, 0]]], ">u2")
    for name, more in (("plain", b""), ("keyed", chunk(b"tRNS", struct.pack(">3H", *key)))):
        (tmp_path / f"{name}.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
            + more
            + chunk(b"IDAT", zlib.compress(b"\0" + pixels.tobytes()))
            + chunk(b"IEND", b"")
        )
    assert decoded(tmp_path / "plain.png") == [(0,) * 3, (255, 0, 0)]
    with pytest.raises(ValueError, match="transparent colour has 16 bits"):
        decoded(tmp_path / "keyed.png")


def test_camera_orientation_is_applied(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (64, 32), "black")
    sideways.paste("white", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright: the left half is the top
    sideways.save(tmp_path / "camera.jpg", exif=exif, quality=95)
    upright = np.asarray(read_image((tmp_path / "camera.jpg").read_bytes(), 64, "white"))
    assert upright.shape == (64, 32, 3)
    assert upright[:24].min() > 240
    assert upright[40:].max() < 15


@pytest.mark.parametrize("kind", [1, 3, 4, 6, 8, 9])  # byte, short, long, and with a sign
@pytest.mark.parametrize("order", ["little", "big"])
def test_orientation_counts_as_whatever_whole_number_it_is_stored(kind: int, order: Any) -> None:
    value = (6).to_bytes({1: 1, 6: 1, 3: 2, 8: 2}.get(kind, 4), order).ljust(4, b"\0")
    entry = b"".join(n.to_bytes(length, order) for n, length in ((0x0112, 2), (kind, 2), (1, 4)))
    table = (1).to_bytes(2, order) + entry + value + bytes(4)
    start = {"little": b"II*\0", "big": b"MM\0*"}[order] + (8).to_bytes(4, order)
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG", exif=start + table)
    assert read_image(file.getvalue(), None, "white").size == (30, 40)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert set(decoded(tmp_path / "film.gif")) == {(255, 0, 0)}


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path: Path) -> None:
    y, x = np.mgrid[:1024, :1024] / 1024
    waves = np.stack([np.sin(9 * x), np.cos(7 * y), np.sin(5 * (x + y))], -1) * 120 + 128
    picture = Image.fromarray(waves.astype(np.uint8))
    picture.save(tmp_path / "large.jpg", quality=95)
    small = read_image((tmp_path / "large.jpg").read_bytes(), 16, "white")
    assert small.size == (128, 128)
    error = fit(small, 16, 3).astype(int) - fit(picture, 16, 3)
    assert abs(error).max() <= 3


def test_the_centre_square_is_kept() -> None:
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("lime", (32, 0, 64, 32))
    assert (fit(wide, 16, 3) == (0, 255, 0)).all()
    assert (fit(wide.rotate(90, expand=True), 16, 3) == (0, 255, 0)).all()


@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3]))
def test_an_image_of_the_wanted_size_keeps_its_pixels(seed: int, channels: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 12, channels), dtype=np.uint8)
    image = Image.fromarray(noise if channels == 3 else noise[..., 0])
    kept = fit(image, 8, channels)
    assert (kept == noise[:, 2:10]).all()
    assert kept.dtype == np.uint8


@pytest.mark.parametrize(("before", "after"), [(100, 32), (47, 32), (32, 32), (20, 32), (333, 8)])
def test_resized_images_match_clean_fid(before: int, after: int) -> None:
    from cleanfid.resize import make_resizer

    noise = np.random.default_rng(0).integers(0, 256, (before, before, 3), dtype=np.uint8)
    expected = make_resizer("PIL", False, "bicubic", (after, after))(noise).clip(0, 255)
    assert abs(fit(Image.fromarray(noise), after, 3) - expected).max() <= 1


def test_a_header_whose_numbers_are_text_is_damaged():
    """Found by fuzzing: a TIFF whose StripOffsets is of type ASCII."""
    content = bytes.fromhex(
        "49492a00080000000a000001040001000000040000000101040001000000020000000201c70001000000"
        "080000000301030001000000010000003a01030001000000030000801101020001000000860600000000"
        "000c1601040001000000020000006a502020"
    )
    with pytest.raises(ValueError, match="its header is damaged"):
        read_image(content, None, "white")


def test_a_file_that_is_opened_as_it_is_is_of_a_known_format_and_whole(tmp_path: Path) -> None:
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    palette = io.BytesIO()
    Image.new("P", (8, 8)).save(palette, "PNG")
    (tmp_path / "damaged.png").write_bytes(palette.getvalue().replace(b"PLTE", b"plTe"))
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("script", "damaged", "pipe", "none"):
        with pytest.raises(UserError, match=rf"{name}\.png is no image that can be read: \w"):
            open_image(tmp_path / f"{name}.png")
    (tmp_path / "whole.png").write_bytes(palette.getvalue())
    assert open_image(tmp_path / "whole.png").mode == "P"


def test_a_file_that_is_opened_as_it_is_has_no_more_pixels_than_there_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (8, 9)).save(tmp_path / "large.png")
    monkeypatch.setattr("maskdm.data.images.MOST_PIXELS", 72)
    assert open_image(tmp_path / "large.png").size == (8, 9)
    monkeypatch.setattr("maskdm.data.images.MOST_PIXELS", 71)
    with pytest.raises(UserError, match=r"8 x 9 pixels are more than there may be 71"):
        open_image(tmp_path / "large.png")
