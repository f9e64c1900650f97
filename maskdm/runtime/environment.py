"""Every variable of the environment that maskdm reads: its name, values, default and meaning.

What stands here belongs to a machine, not to an experiment: a device, a thread count or a
micro-batch in ``params.yaml`` would make the same experiment another one on each machine. The table
in docs/running.md is made from ``VARIABLES``.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from maskdm.runtime.errors import UserError
from maskdm.runtime.location import fault_of_place

MOST_PROCESSES = 64  # on one machine; several hosts have a launcher
MOST_GIB = 1_000_000
SPINS = "2000"  # rounds that a waiting OpenMP thread looks before it sleeps

Value = TypeVar("Value")


@dataclass(frozen=True)
class Variable(Generic[Value]):
    """One variable.

    Attributes:
        name: as in the environment.
        parse: text → value; raises ValueError with what is allowed.
        default: the value where the variable is unset or empty.
        meaning: what it does, for the documentation.
        otherwise: what the default amounts to, for the documentation.
    """

    name: str
    parse: Callable[[str], Value]
    default: Value
    meaning: str
    otherwise: str

    def get(self) -> Value:
        """Return its value.

        Raises:
            UserError: if it is set to something that is not allowed.
        """
        text = os.environ.get(self.name, "")
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError as allowed:
            raise UserError(f"{self.name} is '{text}', but must be {allowed}.") from None


def _whole_number(text: str, most: int = 999_999_999) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise ValueError(f"a whole number from 1 to {most}")
    return int(text)


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def device_name(text: str) -> str:
    """Return the name of a device that can compute; torch knows others, such as meta.

    Raises:
        ValueError: with what is allowed.
    """
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", text):
        raise ValueError("'cpu', 'cuda', 'cuda:N' or 'mps'")
    return text


def _place(text: str) -> str:
    if fault := fault_of_place(text):
        raise ValueError(f"an address such as s3://bucket/folder, or an absolute path ({fault})")
    return text


def _tracker(text: str) -> str:
    if text not in ("dvclive", "wandb", "mlflow"):
        raise ValueError("dvclive, wandb or mlflow")
    return text


CHECKPOINTS = Variable(
    "MASKDM_CHECKPOINTS", str, "checkpoints",
    "folder of the checkpoints of training, and of what `prepare` has read until it is finished",
    "`checkpoints/` in the repository",
)  # fmt: skip
CHECKPOINTS_REMOTE = Variable[str | None](
    "MASKDM_CHECKPOINTS_REMOTE", _place, None,
    "a second place for them, any [fsspec](https://filesystem-spec.readthedocs.io) location",
    "none",
)  # fmt: skip
CHECKPOINT_SECONDS = Variable(
    "MASKDM_CHECKPOINT_SECONDS", _whole_number, 60, "seconds between checkpoints",
    "60, or longer if saving would take more than 2 % of the time",
)  # fmt: skip
CHECKPOINT_STEPS = Variable[int | None](
    "MASKDM_CHECKPOINT_STEPS", _whole_number, None,
    "save every so many steps, too", "none",
)  # fmt: skip
SHARDS_CACHE = Variable(
    "MASKDM_SHARDS_CACHE", str, "shards",
    "folder of the shards of `data.shards` that were used last; processes share it",
    "`shards/` in the repository",
)  # fmt: skip
SHARDS_CACHE_GIB = Variable(
    "MASKDM_SHARDS_CACHE_GIB", partial(_whole_number, most=MOST_GIB), 16,
    "GiB of them at most", "16",
)  # fmt: skip
DEVICE = Variable(
    "MASKDM_DEVICE", device_name, "", "`cpu`, `cuda`, `cuda:1`, `mps`", "CUDA if torch sees it"
)
PROCESSES = Variable[int | None](
    "MASKDM_PROCESSES", partial(_whole_number, most=MOST_PROCESSES), None,
    f"processes on this machine, at most {MOST_PROCESSES}",
    "one a visible GPU; one without a GPU",
)  # fmt: skip
LAUNCHER = Variable(
    "MASKDM_LAUNCHER", str, "",
    "the command that starts the processes instead, on several hosts", "none",
)  # fmt: skip
SHARD = Variable(
    "MASKDM_SHARD", _switch, False,
    "1: spread weights, gradients and moments over the processes (FSDP2)", "0: each has all (DDP)",
)  # fmt: skip
MICRO_BATCH = Variable[int | None](
    "MASKDM_MICRO_BATCH", _whole_number, None,
    "images in one forward pass of a process, to bound memory", "all",
)  # fmt: skip
COMPILE = Variable(
    "MASKDM_COMPILE", _switch, True, "0: training on CUDA does not compile the network", "1"
)
REPLAY = Variable(
    "MASKDM_REPLAY", _switch, True,
    "0: training on CUDA launches kernel by kernel, without CUDA graphs", "1",
)  # fmt: skip
SAMPLE_BATCH = Variable("MASKDM_SAMPLE_BATCH", _whole_number, 64, "images sampled at once", "64")
LIVE = Variable[str | None](
    "MASKDM_LIVE", _tracker, None,
    "`dvclive`, `wandb` or `mlflow`: shows curves and previews while it trains (below)", "none",
)  # fmt: skip
EXACT = Variable("MASKDM_EXACT", _switch, False, "1: bit for bit or not at all (below)", "0")
# Set by the launcher for the processes that it starts, never by people.
PARENT = Variable[int | None](
    "MASKDM_PARENT", _whole_number, None, "the number of the process that started it", "none"
)
WORKER = Variable("MASKDM_WORKER", _switch, False, "1 in a process that a launcher started", "0")

VARIABLES: tuple[Variable[Any], ...] = (
    CHECKPOINTS, CHECKPOINTS_REMOTE, CHECKPOINT_SECONDS, CHECKPOINT_STEPS, SHARDS_CACHE,
    SHARDS_CACHE_GIB, DEVICE, PROCESSES, LAUNCHER, SHARD, MICRO_BATCH, COMPILE, REPLAY,
    SAMPLE_BATCH, LIVE, EXACT, PARENT, WORKER,
)  # fmt: skip

# Names of former versions → what they are called now.
RENAMED = {
    "MASKDM_STATES": CHECKPOINTS.name,
    "MASKDM_STATES_MIRROR": CHECKPOINTS_REMOTE.name,
    "MASKDM_SAVE_SECONDS": CHECKPOINT_SECONDS.name,
    "MASKDM_SAVE_STEPS": CHECKPOINT_STEPS.name,
}


def refuse_former_names() -> None:
    """Refuse variables that have another name now: ignored, they would silently do nothing.

    Raises:
        UserError: naming the old and the new one.
    """
    for old, new in RENAMED.items():
        if os.environ.get(old):
            raise UserError(f"{old} is called {new} now: set that instead, and unset {old}.")


def repository() -> Path:
    """Return where what outlives a run is kept.

    DVC names the repository in ``DVC_ROOT``, even in the temporary folder of an experiment, which
    is thrown away.
    """
    return Path(os.environ.get("DVC_ROOT") or ".")


def checkpoints_folder() -> Path:
    """Return the folder of all checkpoints."""
    return repository() / CHECKPOINTS.get()


def shards_folder() -> Path:
    """Return the folder of the cache of shards."""
    return repository() / SHARDS_CACHE.get()


def bound_spinning() -> None:
    """Let OpenMP's threads wait awake for microseconds only; to be called before torch is loaded.

    By default they spin much longer. If another program takes one of the cores, they then spin
    for a thread that is not running, on the core that it needs. A masked step of the demo beside
    one busy process, on two cores, took 2 times as long with 1 000 rounds, 2.5 times with 2 000,
    6 times with 10 000, 25 times with 100 000; alone, 1 000 cost a tenth, and from 2 000 on no
    difference showed (``python -m benchmarks.speed.neighbour``). Whoever sets one of these
    variables decides instead.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def prefer_huge_pages() -> None:
    """Let torch use huge pages; to be called before torch allocates anything.

    Without them page faults take a third of the CPU time of extracting features.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
