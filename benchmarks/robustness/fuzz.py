"""Coverage-guided fuzzing of every reader: ``python -m benchmarks.robustness.fuzz`` (an hour).

The readers of strangers' bytes (``targets.py``) take turns under atheris, which wraps libFuzzer
(``pip install atheris``; Linux). What is found, and the files that reached new code, stay in
.dvc/tmp/fuzz. The figures are in reports/robustness.json after every turn, and the next command
goes on from them: a stop loses nothing. ``--anew`` forgets them.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.robustness.inputs import REPORT
from benchmarks.robustness.targets import TARGETS
from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json

KEPT = Path(".dvc/tmp/fuzz")
# What is a defect in one file; the slow ones that are none need not be kept.
LIMITS = ("-timeout=120", "-report_slow_units=120", "-rss_limit_mb=4096", "-malloc_limit_mb=2048")
COVERED = re.compile(r"cov: (\d+)")
STATS = re.compile(r"stat::(\w+): +(\d+)")
WORD = re.compile(rb"[A-Za-z_]{3,}")
FIGURES = "fuzzed_by_coverage"


def main(
    minutes: Annotated[float, typer.Option(help="for all of them together")] = 60.0,
    turn: Annotated[int, typer.Option(help="seconds of one turn")] = 120,
    runs: Annotated[int, typer.Option(help="files in one turn, at most; -1: any number")] = -1,
    only: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(TARGETS)}")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="forget what was found before")] = False,
) -> None:
    """Fuzz the readers in turns and write how often, how far, and what was found."""
    if importlib.util.find_spec("atheris") is None:
        raise UserError("Fuzzing needs the package atheris: pip install atheris (Linux, macOS).")
    chosen = only or list(TARGETS)
    if unknown := sorted(set(chosen) - TARGETS.keys()):
        raise UserError(f"There is no target '{unknown[0]}'. There are: {', '.join(TARGETS)}.")
    if anew:
        shutil.rmtree(KEPT, ignore_errors=True)
    figures: dict[str, Any] = _report().get(FIGURES, {}) if KEPT.exists() else {}
    started, turns = time.monotonic(), 0
    for name in chosen:
        _lay_seeds(name)
    while (left := 60 * minutes - (time.monotonic() - started)) > 0:
        name = min(chosen, key=lambda name: figures.get(name, {}).get("seconds", 0))
        figures[name] = _added(figures.get(name, {}), *_turn(name, round(min(turn, left)), runs))
        figures[name] |= {"kept": _count(name, "kept/*"), "defects": _count(name, "*-*")}
        write_json(REPORT, _report() | {FIGURES: figures})
        turns += 1
        if runs >= 0 and turns == len(chosen):
            break
    if any(_count(name, "*-*") for name in chosen):
        raise UserError(f"Some files are not read as they should be: look at {KEPT}/*/*-*.")


def _report() -> dict[str, Any]:
    """Return what the report holds so far."""
    return dict(json.loads(REPORT.read_text(encoding="utf-8"))) if REPORT.exists() else {}


def _count(name: str, pattern: str) -> int:
    """Return how many files of a target there are."""
    return sum(1 for _ in (KEPT / name).glob(pattern))


def _lay_seeds(name: str) -> None:
    """Put whole files into the folder of a target's files, and the words in them into a list."""
    kept, words = KEPT / name / "kept", set[bytes]()
    kept.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(TARGETS[name].seeds()):
        (kept / f"seed-{number}").write_bytes(content)
        words.update(WORD.findall(content))
    (KEPT / name / "words").write_bytes(b"".join(b'"%s"\n' % word for word in sorted(words)))


def _turn(name: str, seconds: int, runs: int) -> tuple[float, str]:
    """Fuzz a target for a time; return the seconds that passed and what libFuzzer said.

    Raises:
        UserError: if it ended without a file that shows why.
    """
    folder, before = KEPT / name, _count(name, "*-*")
    limits = [*LIMITS, f"-max_total_time={max(1, seconds)}", f"-runs={runs}"]
    places = [f"-artifact_prefix={folder}/", f"-dict={folder}/words", str(folder / "kept")]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        module = [sys.executable, "-m", "benchmarks.robustness.guided", name, scratch]
        words = [*module, *limits, "-print_final_stats=1", *places]
        ended = subprocess.run(words, capture_output=True, check=False)
    said = ended.stdout.decode(errors="replace") + ended.stderr.decode(errors="replace")
    if ended.returncode and _count(name, "*-*") == before:
        raise UserError(f"The target {name} ended with {ended.returncode}:\n{said[-3000:]}")
    if ended.returncode:
        (folder / "said.txt").write_text(said, encoding="utf-8")
    return time.monotonic() - started, said


def _added(figures: dict[str, Any], seconds: float, said: str) -> dict[str, Any]:
    """Return a target's figures after one more turn."""
    stats = {key: int(value) for key, value in STATS.findall(said)}
    covered = [int(count) for count in COVERED.findall(said)]
    return {
        "seconds": round(figures.get("seconds", 0) + seconds),
        "files": figures.get("files", 0) + stats.get("number_of_executed_units", 0),
        "edges": max([figures.get("edges", 0), *covered]),
        "most_mib": max(figures.get("most_mib", 0), stats.get("peak_rss_mb", 0)),
    }


if __name__ == "__main__":
    command.run(main)
