"""A kill storm over the whole pipeline: ``python -m benchmarks.robustness.pipeline``.

``dvc repro`` runs the preset tiny and is killed with all that it has started, at random moments,
again and again: between stages, within them, while DVC writes. What is there in the end must be
the bytes of an undisturbed run. Writes its figures into reports/robustness.json.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.presets import read_preset
from benchmarks.robustness.inputs import REPORT
from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json

ROOT = Path(__file__).parent.parent.parent
# All but the Swiss roll, which no parameter makes shorter.
TARGETS = ("masks", "curves", "pictures", "fid", "neighbours")
LONGEST = 30.0  # seconds before a kill, at most
ASIDE = "dvc.lock.damaged"


def main(
    kills: Annotated[int, typer.Option(help="how many")] = 40,
    seed: Annotated[int, typer.Option(help="of the moments")] = 0,
) -> None:
    """Run the pipeline undisturbed and under kills, compare, and write what happened."""
    with tempfile.TemporaryDirectory() as folder:
        calm, struck = (clone(Path(folder) / name) for name in ("calm", "struck"))
        repro(calm).wait()
        moments, hit, damaged, rounds = random.Random(seed), 0, 0, 0
        force = False
        while hit < kills:
            damaged += mended(struck)
            process = repro(struck, force)
            force = False
            try:
                status = process.wait(moments.uniform(0, LONGEST))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                hit += 1
                continue
            if status:
                raise UserError(f"dvc repro ended with {status} after {hit} kills.")
            rounds, force = rounds + 1, True  # all is there: from the beginning again
        damaged += mended(struck)
        if status := repro(struck).wait():
            raise UserError(f"dvc repro ended with {status} after the last kill.")
        expected, found = results(calm), results(struck)
    wrong = sorted(name for name in expected if found.get(name, expected[name]) != expected[name])
    lost = sorted(expected.keys() - found.keys())
    report = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {}
    report["kills_under_dvc_repro"] = {
        "kills": kills,
        "finished_in_between": rounds,
        "locks_damaged_and_mended": damaged,
        "files_compared": len(expected),
        "lost": lost,
        "wrong": wrong,
    }
    write_json(REPORT, report)
    print(report["kills_under_dvc_repro"])
    if lost or wrong:
        raise UserError(f"Files differ from those of an undisturbed run: {lost + wrong}.")


def clone(path: Path) -> Path:
    """Return a clone of this repository in which nothing has been run."""
    for words in (
        ["git", "clone", "--quiet", str(ROOT), str(path)],
        ["git", "-C", str(path), "rm", "--quiet", "-r", "dvc.lock", "reports"],
    ):
        subprocess.run(words, check=True)
    write_json(path / "params.yaml", read_preset("tiny"))
    return path


def repro(folder: Path, force: bool = False) -> subprocess.Popen[bytes]:
    """Start ``dvc repro`` in a process group of its own, with its cache and its checkpoints."""
    words = ["dvc", "repro", "--quiet", *(["--force"] if force else []), *TARGETS]
    return subprocess.Popen(words, cwd=folder, env=environment(folder), start_new_session=True)


def environment(folder: Path) -> dict[str, str]:
    """Return what a clone's commands see: nothing of the user's settings, two threads at most."""
    usual = {name: value for name, value in os.environ.items() if "MASKDM" not in name}
    own = {name: str(folder.parent / folder.name) + f"-{name.lower()}" for name in SITES}
    return usual | own | {"TQDM_DISABLE": "1", "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}


SITES = ("DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR", "DVC_SITE_CACHE_DIR")


def mended(folder: Path) -> bool:
    """Put a damaged dvc.lock aside, as ``make demo`` does; return whether it was damaged."""
    (folder / ASIDE).unlink(missing_ok=True)
    words = [sys.executable, "-m", "tools.mend_lock"]
    subprocess.run(words, cwd=folder, env=environment(folder), check=True, capture_output=True)
    return (folder / ASIDE).exists()


def results(folder: Path) -> dict[str, bytes]:
    """Return the content of every file that a stage wrote, but for seconds."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for part in ("data", "models", "reports")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file() and "timing" not in path.parts and path.name != ".gitkeep"
    }


if __name__ == "__main__":
    command.run(main)
