"""Coverage-guided fuzzing of every reader: ``python -m benchmarks.robustness.fuzz`` (an hour).

The readers of strangers' bytes (``targets.py``) take turns under atheris, which wraps libFuzzer
(``pip install atheris``; Linux). The files that reached new code, those that were not read as they
should be, and the figures stay in .dvc/tmp/fuzz; the figures are in reports/robustness.json after
every turn, too. The next command goes on from them: a stop loses nothing. ``--anew`` forgets them.
It begins by reading again what was found before: what is mended since is no defect any more.
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

from benchmarks.robustness.report import write_report
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
    for name in chosen:
        _lay_seeds(name)
    kept = KEPT / "figures.json"
    figures = dict[str, Any](json.loads(kept.read_text()) if kept.exists() else {})
    defects = {name: {path for path in _found(name) if _still(name, path)} for name in chosen}
    for name in figures.keys() & defects.keys():
        _note(figures, name, defects[name])
    started, turns = time.monotonic(), 0
    while (left := 60 * minutes - (time.monotonic() - started)) > 0:
        name = min(chosen, key=lambda name: figures.get(name, {}).get("seconds", 0))
        before = _found(name)
        figures[name] = _added(figures.get(name, {}), *_turn(name, round(min(turn, left)), runs))
        defects[name] |= _found(name) - before
        _note(figures, name, defects[name])
        turns += 1
        if runs >= 0 and turns == len(chosen):
            break
    if unread := sorted(str(path) for paths in defects.values() for path in paths):
        raise UserError(f"Some files are not read as they should be: {', '.join(unread)}.")


def _found(name: str) -> set[Path]:
    """Return the files of a target that were not read as they should be, when they were found."""
    return set((KEPT / name).glob("*-*"))


def _still(name: str, found: Path) -> bool:
    """Return whether such a file is not read as it should be by today's code either."""
    return _guided(name, *LIMITS, str(found)).returncode != 0


def _note(figures: dict[str, Any], name: str, defects: set[Path]) -> None:
    """Count what was found for a target, and write all figures."""
    kept = sum(1 for _ in (KEPT / name / "kept").iterdir())
    figures[name] |= {"kept": kept, "found": len(_found(name)), "defects": len(defects)}
    write_json(KEPT / "figures.json", figures)
    write_report(**{FIGURES: figures})


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
    folder, before = KEPT / name, _found(name)
    limits = [*LIMITS, f"-max_total_time={max(1, seconds)}", f"-runs={runs}"]
    places = [f"-artifact_prefix={folder}/", f"-dict={folder}/words", str(folder / "kept")]
    started = time.monotonic()
    ended = _guided(name, *limits, "-print_final_stats=1", *places)
    said = ended.stdout.decode(errors="replace") + ended.stderr.decode(errors="replace")
    if ended.returncode and _found(name) == before:
        raise UserError(f"The target {name} ended with {ended.returncode}:\n{said[-3000:]}")
    if ended.returncode:
        (folder / "said.txt").write_text(said, encoding="utf-8")
    return time.monotonic() - started, said


def _guided(name: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a target under atheris to its end, with arguments of libFuzzer."""
    with tempfile.TemporaryDirectory() as scratch:
        module = [sys.executable, "-m", "benchmarks.robustness.guided", name, scratch]
        return subprocess.run([*module, *arguments], capture_output=True, check=False)


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
