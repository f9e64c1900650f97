"""A set of a million images, from files to the first steps: reports/large.json.

``python -m benchmarks.robustness.large`` writes it. A folder of small PNG files is prepared under
``dvc repro``, which is killed half-way and started again; then DVC is asked once more, and the
preset tiny trains for a few steps on what is there. Everything happens in a temporary folder
(``TMPDIR``), which needs about 12 kB an image.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.presets import read_preset
from benchmarks.robustness.preparing import SIDE, WENT_ON, save_pictures
from benchmarks.speed.commands import ROOT, workspace
from benchmarks.speed.machine import machine, versions
from maskdm.data.pieces import MOST, PIECE
from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import listed, write_json

REPORT = ROOT / "reports/large.json"
STEPS = 20  # of training
PREPARE = ("dvc", "repro", "prepare")
LOOK = 0.5  # seconds between two looks at memory and disk
# What grows with the images, and where: a path of the workspace → how it is called.
PLACES = {"checkpoints": "pieces", "data/prepared": "the set", ".dvc/cache": "DVC's cache of it"}
PSS = re.compile(r"^Pss: +(\d+)", re.MULTILINE)  # KiB of a process, shared pages in parts


@dataclass
class Watched:
    """A command that ran.

    Attributes:
        seconds: that it took.
        memory: bytes of it and all that it started, at most, what they share counted once.
        disk: bytes in each of ``PLACES``, at most.
        said: what it printed.
    """

    seconds: float = 0.0
    memory: int = 0
    disk: dict[str, int] = field(default_factory=dict)
    said: str = ""

    def row(self, what: str) -> dict[str, Any]:
        """Return it for the report."""
        places = {PLACES[place]: round(size / 2**30, 2) for place, size in self.disk.items()}
        memory = round(self.memory / 2**30, 2)
        return {"what": what, "seconds": round(self.seconds, 1), "GiB": memory, "disk_GiB": places}


def main(
    images: Annotated[int, typer.Option(help="how many")] = 10**6,
) -> None:
    """Prepare many images, killed once and gone on; train a few steps; write what it took."""
    with TemporaryDirectory() as name:
        started = time.perf_counter()
        size = save_pictures(Path(name) / "images", images)
        print(f"{images} files written in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        rows, went_on = measured(Path(name) / "images", images)
        report = {
            "machine": machine(),
            "versions": versions(),
            "images": images,
            "side": SIDE,
            "files_GiB": round(size / 2**30, 2),
            "went_on_behind": went_on,
            "rows": rows,
        }
        write_json(REPORT, report)
    for row in rows:
        print(row)


def measured(folder: Path, images: int) -> tuple[list[dict[str, Any]], int]:
    """Return a row a command, and how many images the second one did not have to read."""
    changes: dict[str, dict[str, Any]] = {
        "data": {"source": "folder", "path": str(folder), "limit": None, "resolution": SIDE},
        "pretrain": {"steps": STEPS, "warmup": 0},
    }
    with workspace(read_preset("tiny"), changes) as place:
        first = watched(place, *PREPARE, until=images // MOST // 2)
        second = watched(place, *PREPARE)
        found = WENT_ON.search(second.said)
        if not found:
            raise UserError(f"The second command went on behind nothing:\n{second.said[-2000:]}")
        rows = [
            first.row("dvc repro prepare, killed half-way"),
            second.row("dvc repro prepare, to the end"),
            watched(place, *PREPARE).row("dvc repro prepare, nothing to do"),
            watched(place, sys.executable, "-m", "stages.pretrain").row(f"{STEPS} training steps"),
        ]
    return rows, int(found[1])


def watched(folder: Path, *words: str, until: int | None = None) -> Watched:
    """Run a command and look at what it takes.

    Args:
        folder: the workspace.
        words: the command.
        until: kill it, with all that it has started, once there are so many pieces.

    Raises:
        UserError: if it fails, or ends before it is killed.
    """
    result, path = Watched(), f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    log, started = folder / "said", time.perf_counter()
    with log.open("wb") as said:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "TQDM_MININTERVAL": "10"},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    while process.poll() is None:
        result.memory = max(result.memory, memory(process.pid))
        for place in PLACES:
            result.disk[place] = max(result.disk.get(place, 0), size(folder / place))
        if until is not None and len(listed(folder, f"checkpoints/*/*{PIECE}")) >= until:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(LOOK)
    result.seconds = time.perf_counter() - started
    result.said = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode != (0 if until is None else -signal.SIGKILL):
        raise UserError(
            f"{' '.join(words)} ended with {process.returncode}:\n{result.said[-2000:]}"
        )
    return result


def size(folder: Path) -> int:
    """Return the bytes of the files in a folder, those that are being written too."""
    total = 0
    for path in listed(folder, "**"):
        with suppress(FileNotFoundError):  # it has its name by now
            total += path.stat().st_size
    return total


def memory(session: int) -> int:
    """Return the bytes of all processes of a session; pages that they share are counted once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                found = PSS.search((folder / "smaps_rollup").read_text())
                total += 1024 * int(found[1]) if found else 0
        except OSError:
            continue  # it has ended
    return total


if __name__ == "__main__":
    command.run(main)
