"""Stages as forks of one process that has imported what stages import: a start costs nothing.

So thousands of whole commands can be run in the time that hundreds would take.
"""

import importlib
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# In DVC's order; the Swiss roll takes a minute, which no parameter makes shorter.
STAGES = (
    *("check", "source", "prepare", "masks", "reference", "pretrain", "finetune", "curves"),
    *("sample", "pictures", "fid", "neighbours"),
)
TEMPORARY = "tmp"  # beside the workspaces: what commands leave behind for the time being
BEGUN = "MASKDM_BENCHMARK_BEGUN"

Hook = Callable[[str, tuple[Any, ...]], None]  # hears of what Python does (PEP 578)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: as Python has it; below zero: the signal.
        said: on both streams.
        told: what its hook had to tell; nothing if it was killed.
        handles: how many files were open at its end; 0 if it was killed.
        mib: of memory, at the most.
    """

    status: int
    said: str
    told: int
    handles: int
    mib: int


def begin_anew() -> None:
    """Start this very command again, with one thread, and import what stages import."""
    if BEGUN not in os.environ:
        usual = {name: value for name, value in os.environ.items() if "MASKDM" not in name}
        own = {BEGUN: "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        os.execve(sys.executable, sys.orig_argv, usual | own)
    del os.environ[BEGUN]
    from maskdm.training.checkpoints.fingerprint import code_hash
    from maskdm.training.setup import COMPUTES_STEPS

    for name in STAGES:
        importlib.import_module(f"stages.{name}")
    code_hash(*COMPUTES_STEPS)  # takes half of such a small training; it is kept


def run(name: str, folder: Path, hook: Hook | None = None, told: Callable[[], int] = int) -> Ended:
    """Run a stage in a fork of this process.

    Args:
        name: of the stage.
        folder: the workspace; temporary files go beside it.
        hook: hears of all that the stage does in Python.
        told: asked in the stage's process at its end.
    """
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as words:
        process = os.fork()
        if process == 0:
            os.close(reading)
            _be_stage(name, folder, hook, told, words.fileno(), writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as end:
            numbers = end.read().split()
        _, status, used = os.wait4(process, 0)
        words.seek(0)
        said = words.read().decode(errors="replace")
    answer, handles = map(int, numbers) if numbers else (0, 0)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, said, answer, handles, used.ru_maxrss // 1024)


def _be_stage(
    name: str, folder: Path, hook: Hook | None, told: Callable[[], int], words: int, writing: int
) -> None:
    """Become ``python -m stages.NAME``, and end."""
    status = 1
    try:
        os.setsid()
        os.dup2(words, 1)
        os.dup2(words, 2)
        os.chdir(folder)
        temporary = folder.parent / TEMPORARY
        temporary.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        sys.argv = [f"stages.{name}"]
        if hook is not None:
            sys.addaudithook(hook)
        runpy.run_module(f"stages.{name}", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(writing, b"%d %d" % (told(), handles()))
        os._exit(status)


def handles() -> int:
    """Return how many files this process has open; 0 where the system does not tell."""
    numbers = Path("/proc/self/fd")
    return sum(1 for _ in numbers.iterdir()) if numbers.exists() else 0
