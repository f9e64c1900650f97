"""A kill storm over ``prepare``: ``python -m benchmarks.robustness.preparing``.

The stage prepares a folder of small images and is killed with all that it has started, at random
moments, again and again; once it has finished, it begins anew. What it leaves must be the bytes of
an undisturbed run. Writes its figures into reports/robustness.json.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.presets import read_preset
from benchmarks.robustness.interrupts import hear
from benchmarks.robustness.report import write_report
from benchmarks.robustness.torture import ROOT, SIGNALS
from maskdm.data.pieces import MOST, PIECE
from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import listed, write_json
from maskdm.runtime.params import merge

SIDE = 32  # pixels
DISTINCT = 1000  # pictures; their files have all of them in turn
STARTING, START = 0.2, 2.0  # the share of kills that come in the stage's first seconds
SHOWN = re.compile(r"(\d+)/\d+ \[")  # how far the progress bar says that it is
WENT_ON = re.compile(r"went on behind (\d+) images")


def main(
    images: Annotated[int, typer.Option(help="in the folder")] = 20_000,
    kills: Annotated[int, typer.Option(help="how many")] = 100,
    seed: Annotated[int, typer.Option(help="of the moments and the signals")] = 0,
) -> None:
    """Kill prepare at random moments, compare with an undisturbed run, and write what happened."""
    hear()
    with tempfile.TemporaryDirectory() as folder:
        result = storm(Path(folder), images, kills, seed)
    write_report(kills_of_prepare=result)
    print(result)
    if result["differing"] or result["left_over"]:
        raise UserError("It did not leave what an undisturbed run leaves.")


def storm(folder: Path, images: int, kills: int, seed: int) -> dict[str, Any]:
    """Prepare a folder of images undisturbed, and under ``kills`` signals; compare the files.

    Args:
        folder: an empty one.
        images: how many.
        kills: signals that must hit.
        seed: of the moments and the signals.
    """
    save_pictures(folder / "images", images)
    calm, struck = (workspace(folder / name, folder / "images") for name in ("calm", "struck"))
    finish(calm)
    expected, draw = contents(calm), random.Random(seed)
    signals, went_on, lost, differing = Counter[str](), list[str](), list[int](), set[str]()
    rounds, with_pieces = 0, 0
    while signals.total() < kills:
        before, said = kept(struck), struck / "said"
        process = start(struck)
        with_pieces += before > 0
        if draw.random() < STARTING:
            wait(process, struck, time.monotonic() + draw.uniform(0, START), images)
        else:
            wait(process, struck, time.monotonic() + 600, before + draw.randint(0, 3 * MOST))
            time.sleep(draw.uniform(0, 0.2))
        number = draw.choice(SIGNALS)
        if process.poll() is None:
            os.killpg(process.pid, number)
            signals[signal.Signals(number).name] += 1
        if process.wait() == 0:
            rounds += 1
            went_on += WENT_ON.findall(said.read_text(errors="replace"))
            differing |= different(expected, contents(struck))
            shutil.rmtree(struck / "data")
        elif shown := SHOWN.findall(said.read_text(errors="replace")):
            lost.append(max(0, int(shown[-1]) - kept(struck)))
    finish(struck)
    return {
        "images": images,
        "signals": dict(sorted(signals.items())),
        "finished_in_between": rounds,
        "started_with_pieces": with_pieces,
        "finished_with_pieces": len(went_on),
        "images_read_again_a_kill": {"mean": round(mean(lost or [0])), "most": max(lost or [0])},
        "files_compared": len(expected),
        "differing": sorted(differing | different(expected, contents(struck))),
        "left_over": sorted(path.name for path in (struck / "checkpoints").rglob("*")),
    }


def workspace(folder: Path, images: Path) -> Path:
    """Make a folder in which the stage prepares the images of another."""
    folder.mkdir()
    data = {"source": "folder", "path": str(images), "limit": None, "resolution": SIDE}
    write_json(folder / "params.yaml", merge(read_preset("tiny"), {"data": data}))
    return folder


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the stage in a process group of its own; what it says goes into the file ``said``."""
    usual = {name: value for name, value in os.environ.items() if "MASKDM" not in name}
    alone = {"PYTHONPATH": str(ROOT), "DVC_ROOT": "", "TQDM_MININTERVAL": "0"}
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "stages.prepare"],
            cwd=folder,
            env=usual | alone,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def finish(folder: Path) -> None:
    """Run the stage to its end.

    Raises:
        UserError: if it fails.
    """
    if status := start(folder).wait():
        raise UserError(f"prepare ended with {status}:\n{(folder / 'said').read_text()[-2000:]}")


def wait(process: subprocess.Popen[bytes], folder: Path, moment: float, images: int) -> None:
    """Wait until a process has ended, a moment has come, or so many images are kept."""
    while process.poll() is None and time.monotonic() < moment and kept(folder) < images:
        time.sleep(0.005)


def kept(folder: Path) -> int:
    """Return how many images are in pieces, if all are full."""
    return MOST * len(listed(folder, f"checkpoints/*/[0-9]*{PIECE}"))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of the prepared set, and of what is beside it by mistake."""
    return {path.name: path.read_bytes() for path in (folder / "data/prepared").iterdir()}


def different(expected: dict[str, bytes], found: dict[str, bytes]) -> set[str]:
    """Return the names of the files that are not the same."""
    return {name for name in expected | found if expected.get(name) != found.get(name)}


def save_pictures(folder: Path, count: int) -> int:
    """Write so many small PNG files, 1 000 to a sub-folder; return their bytes."""
    random = np.random.default_rng(0)
    encoded, total = list[bytes](), 0
    for _ in range(min(count, DISTINCT)):
        coarse = random.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        file = BytesIO()
        picture.save(file, "PNG", compress_level=1)
        encoded.append(file.getvalue())
    for number in range(count):
        path = folder / f"{number // 1000:06}" / f"{number:09}.png"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        total += path.write_bytes(encoded[number % len(encoded)])
    return total


if __name__ == "__main__":
    command.run(main)
