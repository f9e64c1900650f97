"""Chinese characters as 64-pixel images: ``python -m benchmarks.evidence.glyphs FOLDER``.

The matrix needs a second kind of pictures that are drawn natively at 64 pixels, on any machine and
offline. A CJK font has twenty thousand drawings in one hand, made of a few hundred parts: much to
learn from few visible patches, and nothing like OpenMoji. The serif has more to learn than the
sans, in its tapered strokes and hairlines.

Source: the face *Noto Serif CJK SC*, Regular (Adobe and Google), from Debian's package
fonts-noto-cjk. Licence: SIL Open Font License 1.1 (/usr/share/doc/fonts-noto-cjk/copyright), which
asks nothing of pictures made with the font.

Every CJK Unified Ideograph (U+4E00 to U+9FFF) that the font has becomes a PNG, black on white,
named by its code point: U4E00.png. What is there is left alone, so a command that was stopped goes
on. The pixels depend only on the font's version and on the FreeType inside Pillow.
"""

from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from maskdm.runtime.command import run
from maskdm.runtime.errors import UserError

PACKAGE = "fonts-noto-cjk"
FONT = Path("/usr/share/fonts/opentype/noto/NotoSerifCJK-Regular.ttc")
FACE = ("Noto Serif CJK SC", "Regular")  # one of the five in the file, a script variant each
BLOCK = range(0x4E00, 0xA000)  # CJK Unified Ideographs
NOWHERE = 0x10FFFF  # a noncharacter, so no font has it: drawn as the font draws what it lacks
SIZE = 64  # side of the images in pixels
EM = 60  # side of the square around every character; all ink then stays 2 pixels off the edges
ASCENT = 0.88  # of the em that is above the baseline, in CJK fonts
# data.group: "U4E0" of U4E00.png to U4E0F.png. The block is ordered by radical and strokes, so that
# neighbours resemble each other and should be on one side of the split.
GROUP = "^U..."


def main(
    folder: Annotated[Path, typer.Argument(help="where the images go", file_okay=False)],
    font: Annotated[Path, typer.Option(help=f"the file {FONT.name}")] = FONT,
) -> None:
    """Draw every CJK Unified Ideograph of a font that is not in a folder yet."""
    face = open_face(font)
    # A folder that is there is a whole set, whenever this was stopped.
    begun = folder if folder.is_dir() else folder.with_name(f"{folder.name}.begun")
    there = draw(face, begun, tqdm(BLOCK, desc="glyphs", unit=" characters"))
    begun.replace(folder)
    print(f"{' '.join(FACE)}: {there} images of {SIZE}x{SIZE} in {folder}")


def open_face(path: Path, face: tuple[str, str] = FACE, em: int = EM) -> ImageFont.FreeTypeFont:
    """Open a face of a file of fonts by its name.

    Args:
        path: an OpenType font or collection.
        face: the names of family and style.
        em: the side of the em square in pixels.

    Raises:
        UserError: if there is no such file, or no such face in it.
    """
    advice = f"Install Debian's package {PACKAGE}, or name its file {FONT.name} with --font."
    if not path.is_file():
        raise UserError(f"There is no font {path}. {advice}")
    found: list[str] = []
    for index in count():
        try:  # without Raqm, whose version would change what is drawn
            font = ImageFont.truetype(path, em, index, layout_engine=ImageFont.Layout.BASIC)
        except OSError:  # no font, or no further one
            break
        if font.getname() == face:
            return font
        found.append(" ".join(filter(None, font.getname())))
    faces = ", ".join(found) or "no font that FreeType can read"
    raise UserError(f"{path} does not hold {' '.join(face)}, but {faces}. {advice}")


def draw(font: ImageFont.FreeTypeFont, folder: Path, code_points: Iterable[int]) -> int:
    """Draw those characters of a font that are not in a folder yet, which is made if missing.

    Args:
        font: the font; what it lacks is left out.
        folder: where the PNGs go.
        code_points: the characters.

    Returns:
        How many of them are there now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lacking = render(font, NOWHERE, SIZE).tobytes()
    there = 0
    for code_point in code_points:
        path = folder / file_name(code_point)
        if not path.exists():
            picture = render(font, code_point, SIZE)
            if picture.tobytes() == lacking:
                continue
            partial = path.with_suffix(".partial")  # so that no half-written file is taken for one
            picture.save(partial, "PNG")
            partial.replace(path)
        there += 1
    return there


def render(font: ImageFont.FreeTypeFont, code_point: int, size: int) -> Image.Image:
    """Draw a character, black on white and antialiased, its em square in the middle.

    Args:
        font: the font, at the size of its em square in pixels.
        code_point: the character.
        size: the side of the image in pixels.

    Returns:
        An image of mode L.
    """
    margin = (size - round(font.size)) // 2
    picture = Image.new("L", (size, size), "white")
    baseline = margin + round(ASCENT * font.size)  # whole: hinting puts strokes on rows of pixels
    ImageDraw.Draw(picture).text((margin, baseline), chr(code_point), "black", font, anchor="ls")
    return picture


def file_name(code_point: int) -> str:
    """Return the name of a character's file."""
    return f"U{code_point:04X}.png"


if __name__ == "__main__":
    run(main)
