"""Kill storms over the whole pipeline: ``python -m benchmarks.robustness.pipeline``.

DVC runs the preset tiny in three ways: ``dvc repro``, ``dvc exp run``, and two experiments at once
by two workers of its queue. Again and again something is killed at a random moment: between stages,
within them, while DVC writes. No process may go on without DVC, the same command must go on, and
what is there in the end must be the bytes of an undisturbed run. The next command goes on from the
figures in reports/robustness.json; ``--anew`` forgets them.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from ruamel.yaml import YAML

from benchmarks.presets import read_preset
from benchmarks.robustness.interrupts import hear
from benchmarks.robustness.report import read_report, write_report
from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json

ROOT = Path(__file__).parent.parent.parent
# All but the Swiss roll, which no parameter makes shorter.
TARGETS = ("masks", "curves", "pictures", "fid", "neighbours")
EXPERIMENTS = {"first": "mask.rate=0.5", "second": "mask.rate=0.6"}
LONGEST = 30.0  # seconds before a kill, at most
PATIENCE = 120.0  # seconds in which what was left behind must have ended
ASIDE = "dvc.lock.damaged"
FIGURES = "kills_under_dvc"
FIRST_WORDS = 400  # of what a command said that failed
KINDS = {
    "SIGKILL to all": signal.SIGKILL,
    "SIGTERM to DVC alone": signal.SIGTERM,
    "SIGINT to all": signal.SIGINT,  # as a terminal sends it
}


def main(
    kills: Annotated[int, typer.Option(help="how many, in each way")] = 20,
    ways: Annotated[list[str] | None, typer.Option(help="repro, exp run, queue; else all")] = None,
    seed: Annotated[int | None, typer.Option(help="of the moments")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="forget what was found before")] = False,
) -> None:
    """Run the pipeline undisturbed and under kills, compare, and write what happened."""
    hear()
    chosen = ways or list(WAYS)
    if unknown := sorted(set(chosen) - WAYS.keys()):
        raise UserError(f"There is no way '{unknown[0]}'. There are: {', '.join(WAYS)}.")
    if anew:
        write_report(**{FIGURES: {}})
    for way in chosen:
        storm = Storm(read_report().get(FIGURES, {}).get(way, {}), partial(note, way))
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made).resolve()
            storm.blow(WAYS[way], folder, kills, random.Random(seed))
        print(way, storm.figures())
        if storm.lost or storm.wrong or storm.left_running or storm.failed:
            raise UserError(f"Not all is as in an undisturbed run: see {FIGURES}.")


def note(way: str, figures: dict[str, Any]) -> None:
    """Write the figures of a way so far into the report; those of the others stay."""
    write_report(**{FIGURES: read_report().get(FIGURES, {}) | {way: figures}})


class Storm:
    """Kills in one way of running the pipeline, and what came of them.

    Args:
        before: the figures to go on from.
        note: is called with the figures after each kill, comparison and failure.
    """

    def __init__(self, before: dict[str, Any], note: Callable[[dict[str, Any]], None]) -> None:
        self.note = note
        self.kills = Counter[str](before.get("kills", {}))
        self.counts = Counter[str](before.get("counts", {}))
        self.lost, self.wrong, self.left_running, self.failed = (
            set(before.get(name, ())) for name in ("lost", "wrong", "left_running", "failed")
        )

    def figures(self) -> dict[str, Any]:
        """Return what is written into the report."""
        names = ("lost", "wrong", "left_running", "failed")
        found = {name: sorted(getattr(self, name)) for name in names}
        return {"kills": dict(sorted(self.kills.items())), "counts": dict(self.counts), **found}

    def blow(
        self, way: "Callable[[Path], Way]", folder: Path, kills: int, draw: random.Random
    ) -> None:
        """Kill so many times, and compare with what nobody disturbs.

        Raises:
            UserError: if a command after a kill failed, which is noted as well.
        """
        calm, struck = (way(clone(folder / name)) for name in ("calm", "struck"))
        calm.start()
        calm.finish()
        try:
            self.kill_and_compare(struck, calm.results(), kills, draw)
        except UserError as error:
            self.failed.add(f"{error}"[:FIRST_WORDS])
            raise
        finally:
            self.note(self.figures())

    def kill_and_compare(
        self, struck: "Way", expected: dict[str, Any], kills: int, draw: random.Random
    ) -> None:
        """Kill so many times, let it finish, and compare."""
        hit = 0
        while hit < kills:
            struck.start()
            if struck.ended_within(draw.uniform(0, LONGEST)):
                self.counts["finished_in_between"] += 1
                self.compare(expected, struck.results())
                self.note(self.figures())
                struck.begin_anew()
                continue
            kind = draw.choice(struck.kinds)
            self.left_running |= strike(struck.folder, kind)
            self.kills[kind] += 1
            hit += 1
            self.counts["locks_damaged_and_mended"] += mended(struck.folder)
            self.note(self.figures())
        struck.start()
        struck.finish()
        self.compare(expected, struck.results())

    def compare(self, expected: dict[str, Any], found: dict[str, Any]) -> None:
        """Note what is not as in an undisturbed run."""
        self.counts["files_compared"] += len(expected)
        self.lost |= expected.keys() - found.keys()
        both = expected.keys() & found.keys()
        self.wrong |= {name for name in both if expected[name] != found[name]}


class Way:
    """A way of running the pipeline in a clone.

    Args:
        folder: the clone.
        words: of the command.
    """

    kinds: tuple[str, ...] = tuple(KINDS)

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, self.words, self.force = folder, words, False
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it."""
        force = ["--force"] if self.force else []
        self.process = begin(self.folder, "dvc", *self.words, *force, *TARGETS)
        self.force = False

    def ended_within(self, seconds: float) -> bool:
        """Wait at most so long; return whether it came to its end.

        Raises:
            UserError: if it failed.
        """
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if status:
            raise UserError(f"dvc {self.words[0]} ended with {status}:\n{said(self.folder)}")
        return True

    def finish(self) -> None:
        """Wait until it has come to its end."""
        while not self.ended_within(600):
            pass

    def begin_anew(self) -> None:
        """Let the next start compute everything again."""
        self.force = True
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def results(self) -> dict[str, Any]:
        """Return the results by their names."""
        return results(self.folder)


class Queue(Way):
    """Two experiments, by two workers of DVC's queue.

    A worker that is killed leaves its experiment behind as running; it is queued again. One that
    gets another signal finishes its experiment first: that is how DVC is meant to be stopped.
    """

    kinds = ("SIGKILL to all",)

    def start(self) -> None:
        """Queue what is neither done nor queued, and start the workers."""
        there = call(self.folder, "dvc", "queue", "status").splitlines()
        queued = {line.split()[1] for line in there if line.endswith("Queued")}
        for name in EXPERIMENTS.keys() - queued - self.done().keys():
            words = ("--queue", "--name", name, "--set-param", EXPERIMENTS[name], *TARGETS)
            call(self.folder, "dvc", "exp", "run", *words)
        # The workers inherit what it says: read by a pipe, it would end when they do.
        workers = ("--jobs", str(len(EXPERIMENTS)))
        self.process = begin(self.folder, "dvc", "queue", "start", *workers)
        super().ended_within(PATIENCE)

    def ended_within(self, seconds: float) -> bool:
        """Wait at most so long; return whether both experiments are done.

        Raises:
            UserError: if no worker is there any more, and an experiment is not done.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end and living(self.folder):
            time.sleep(0.2)
        if living(self.folder):
            return False
        if failed := EXPERIMENTS.keys() - self.done().keys():
            said = [call(self.folder, "dvc", "queue", "logs", name)[-4000:] for name in failed]
            raise UserError("\n".join(["The queue ended early:", *said]))
        return True

    def begin_anew(self) -> None:
        """Remove the experiments and what they have kept."""
        call(self.folder, "dvc", "exp", "remove", *EXPERIMENTS)
        for kept in ("checkpoints", ".dvc/cache/runs"):
            shutil.rmtree(self.folder / kept, ignore_errors=True)

    def done(self) -> dict[str, str]:
        """Return the git references of the experiments that are done, by their names."""
        words = ("git", "for-each-ref", "--format=%(refname)", "refs/exps")
        there = {name.rpartition("/")[2]: name for name in call(self.folder, *words).split()}
        return {name: there[name] for name in EXPERIMENTS if name in there}

    def results(self) -> dict[str, Any]:
        """Return the hash of every file and folder that a stage wrote, but for seconds."""
        found: dict[str, str] = {}
        for name, reference in self.done().items():
            lock = YAML(typ="safe").load(call(self.folder, "git", "show", f"{reference}:dvc.lock"))
            outs = (out for stage in lock["stages"].values() for out in stage.get("outs", ()))
            found |= {f"{name}: {out['path']}": out["md5"] for out in outs}
        return {name: md5 for name, md5 in found.items() if "timing" not in name}


WAYS: dict[str, Callable[[Path], Way]] = {
    "repro": lambda folder: Way(folder, "repro"),
    "exp run": lambda folder: Way(folder, "exp", "run"),
    "queue": Queue,
}


def clone(path: Path) -> Path:
    """Return a clone of this repository in which nothing has been run."""
    git = ("git", "-C", str(path))
    for words in (
        ("git", "clone", "--quiet", str(ROOT), str(path)),
        (*git, "config", "user.name", "storm"),
        (*git, "config", "user.email", "storm@localhost"),
        (*git, "rm", "--quiet", "-r", "dvc.lock", "reports"),
    ):
        subprocess.run(words, check=True)
    write_json(path / "params.yaml", read_preset("tiny"))
    subprocess.run((*git, "commit", "--quiet", "--all", "--message", "tiny"), check=True)
    return path


def begin(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start a command in a clone, in a process group of its own, with its cache."""
    with said_in(folder).open("wb") as file:
        return subprocess.Popen(
            words,
            cwd=folder,
            env=environment(folder),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def call(folder: Path, *words: str) -> str:
    """Run a command in a clone and return what it said.

    Raises:
        UserError: if it fails.
    """
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
    ended = subprocess.run(words, cwd=folder, env=environment(folder), **options)
    if ended.returncode:
        raise UserError(f"{' '.join(words)} ended with {ended.returncode}:\n{ended.stderr}")
    return str(ended.stdout)


def said_in(folder: Path) -> Path:
    """Return the file in which a clone's last command said what it had to say."""
    return folder.parent / f"{folder.name}.said"


def said(folder: Path) -> str:
    """Return the end of what a clone's last command said."""
    return said_in(folder).read_text(errors="replace")[-4000:]


def environment(folder: Path) -> dict[str, str]:
    """Return what a clone's commands see: nothing of the user's settings, one thread."""
    usual = {name: value for name, value in os.environ.items() if "MASKDM" not in name}
    own = {name: str(folder.parent / folder.name) + f"-{name.lower()}" for name in SITES}
    return usual | own | {"TQDM_DISABLE": "1", "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}


SITES = ("DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR", "DVC_SITE_CACHE_DIR")


def living(folder: Path) -> list[psutil.Process]:
    """Return the processes that run in a folder or below it, whoever their parents are."""
    there = psutil.process_iter(["cwd", "status"])
    return [
        process
        for process in there
        if Path(process.info["cwd"] or "/").is_relative_to(folder)
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def strike(folder: Path, kind: str) -> set[str]:
    """Send a signal to what runs in a folder; return what does not end, and kill it."""
    for process in living(folder):
        with suppress(psutil.NoSuchProcess):
            if KINDS[kind] != signal.SIGTERM or is_dvc(process):
                process.send_signal(KINDS[kind])
    end = time.monotonic() + PATIENCE
    while living(folder) and time.monotonic() < end:
        if KINDS[kind] == signal.SIGKILL:  # what was just being started, too
            kill(folder)
        time.sleep(0.1)
    return kill(folder)


def is_dvc(process: psutil.Process) -> bool:
    """Return whether a process is one of DVC's own, and not a stage."""
    return any(Path(word).name == "dvc" for word in process.cmdline())


def kill(folder: Path) -> set[str]:
    """Kill what runs in a folder; return their commands."""
    killed = set()
    for process in living(folder):
        with suppress(psutil.NoSuchProcess):
            killed.add(" ".join(process.cmdline()))
            process.kill()
    return killed


def mended(folder: Path) -> bool:
    """Put a damaged dvc.lock aside, as ``make demo`` does; return whether it was damaged."""
    (folder / ASIDE).unlink(missing_ok=True)
    call(folder, sys.executable, "-m", "tools.mend_lock")
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
