"""How a stage becomes several processes: one a visible GPU, or as many as are asked for.

Nothing of it is in ``dvc.yaml`` or ``params.yaml``: DVC runs ``python -m stages.NAME`` once, and
that process starts the others (docs/running.md).

MASKDM_PROCESSES says how many on this machine. MASKDM_LAUNCHER names the command that starts them
instead, on several hosts, such as ``srun`` or ``torchrun --nnodes 2 …``; the stage's own command is
put behind it. What a launcher ends with says little: ``true`` runs nothing and ends well. So the
process whose rank is 0 notes in the working folder, which all hosts see, that it came to its end.
"""

import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import wraps
from io import StringIO
from pathlib import Path
from random import SystemRandom
from tempfile import TemporaryDirectory
from typing import NoReturn, ParamSpec
from uuid import uuid4

from maskdm.runtime.distributed import ENDED, leave, rank, worker
from maskdm.runtime.environment import DEVICE, LAUNCHER, PARENT, PROCESSES, WORKER
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_text
from maskdm.runtime.parent import leave_with

Arguments = ParamSpec("Arguments")

# DDP warns on each rank that all parameters are used; it does so from C++.
OF_WORKERS = {WORKER.name: "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
PORTS = range(20_000, 32_768)  # below those that Linux lends to clients
CAME_TO_ITS_END = "came to its end"
GRACE = 120  # seconds for workers to save, between a signal and their end


def on_all_processes(
    stage: Callable[Arguments, None], check: Callable[[int], None] | None = None
) -> Callable[Arguments, None]:
    """Return the stage's command, which starts workers that run it too, or is one of them.

    Args:
        stage: what all of them run.
        check: is given how many are to be started on this machine, and raises a UserError if they
            are too many; before the first one is.
    """

    def compute(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        from maskdm.runtime.numerics import choose_kernels  # imports torch

        choose_kernels()
        stage(*arguments, **options)

    @wraps(stage)
    def command(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        if WORKER.get() or worker():
            if parent := PARENT.get():  # a launcher's own processes may come and go
                leave_with(parent)
            with redirect_stdout(sys.stdout if rank() == 0 else StringIO()):
                compute(*arguments, **options)
            leave()
            if rank() == 0:
                note_end()
        elif launcher := LAUNCHER.get():
            launch(words_of(launcher))
        elif (count := processes_here()) > 1:
            if check is not None:
                check(count)
            start_here(count)
        else:
            compute(*arguments, **options)

    return command


def words_of(launcher: str) -> list[str]:
    """Return the words of the launcher's command.

    Raises:
        UserError: if a quotation mark is not closed.
    """
    try:
        return shlex.split(launcher)
    except ValueError as error:
        raise UserError(f"{LAUNCHER.name} is '{launcher}', which is no command: {error}.") from None


def processes_here() -> int:
    """Return how many processes are to run on this machine."""
    asked = PROCESSES.get()
    if asked is not None:
        return asked
    if DEVICE.get() not in ("", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def this_command() -> list[str]:
    """Return how this process was started: ``python -m stages.NAME …``."""
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        raise UserError("Several processes need the stage to be run as python -m stages.NAME.")
    return [sys.executable, "-m", spec.name, *sys.argv[1:]]


def notes() -> Path | None:
    """Return where a stage's workers note that it came to its end; None for what is no module.

    It has one name, and no variable tells it: not every launcher passes the environment on.
    """
    spec = sys.modules["__main__"].__spec__
    return Path(f".{spec.name}.launched") if spec else None


def note_end() -> None:
    """Note that the stage came to its end, if a launching process asks for it in this folder."""
    path = notes()
    if path and path.exists():
        write_text(path, f"{path.read_text(encoding='utf-8')} {CAME_TO_ITS_END}")


def launch(launcher: list[str]) -> NoReturn:
    """Run this command through a launcher, hand SIGTERM on to it, and end as it ends.

    Raises:
        UserError: if there is no such launcher, or it ended well, but the stage did not run to its
            end.
    """
    command, path = this_command(), notes()
    assert path is not None  # or this_command would have raised
    # A name of this run alone: what one that was killed has left is another's.
    asked = uuid4().hex
    write_text(path, asked)
    try:
        status = _launched(launcher, command)
        came_to_its_end = path.read_text(encoding="utf-8") == f"{asked} {CAME_TO_ITS_END}"
    finally:
        path.unlink(missing_ok=True)
    if status == 0 and not came_to_its_end:
        raise UserError(
            f"{LAUNCHER.name} is '{shlex.join(launcher)}', which ended well, but the stage did not "
            "run to its end: it must run what is put behind it, in this folder, and wait for it, "
            "as srun and torchrun do (docs/running.md)."
        )
    sys.exit(status)


def _free_port() -> int:
    """Return a port that nobody has, and that the system lends to no client meanwhile.

    The first task binds it seconds later.
    """
    for port in SystemRandom().sample(PORTS, k=len(PORTS)):
        with suppress(OSError), socket.socket() as free:
            free.bind(("", port))
            return port
    raise UserError(f"There is no free port from {PORTS[0]} to {PORTS[-1]} for processes to meet.")


def _launched(launcher: list[str], command: list[str]) -> int:
    """Run a command through a launcher and return the status of its end, as in a shell."""
    if "torchrun" in (Path(word).name for word in launcher) and "--no-python" not in launcher:
        launcher = [*launcher, "--no-python"]
    # torchrun sets these itself; srun passes them on, and its first task is on this host.
    meeting = {"MASTER_ADDR": socket.gethostname(), "MASTER_PORT": str(_free_port())}
    environment = meeting | os.environ | OF_WORKERS
    try:
        child = subprocess.Popen([*launcher, *command], env=environment)
    except OSError as error:
        raise UserError(
            f"{LAUNCHER.name} is '{shlex.join(launcher)}', which cannot be run: {error.strerror}."
        ) from None
    signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to the child as well
    status = child.wait()
    return status if status >= 0 else 128 - status


def start_here(count: int) -> NoReturn:
    """Run this command in ``count`` processes on this machine, and end as they end."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ |= OF_WORKERS | {PARENT.name: str(os.getpid())}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // count)))
    stopped_by = ["SIGTERM", "SIGINT", "SIGQUIT"]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored under nohup: to stay so
        stopped_by.append("SIGHUP")
    config = LaunchConfig(
        run_id=f"maskdm-{os.getpid()}",
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        shutdown_timeout=GRACE,
        signals_to_handle=",".join(stopped_by),
    )
    program, *arguments = this_command()
    logging.disable(logging.CRITICAL)  # the workers say themselves what went wrong
    with TemporaryDirectory() as logs:
        config.logs_specs = DefaultLogsSpecs(log_dir=logs)
        try:
            elastic_launch(config, program)(*arguments)
        except SignalException as stopped:
            sys.exit(128 + stopped.sigval)
        except ChildFailedError as failed:
            # Who was killed is the cause; others may have ended of it before anybody looked.
            killed = ((n, each) for n, each in failed.failures.items() if each.exitcode < 0)
            number, failure = next(killed, failed.get_first_failure())
            status = failure.exitcode
            if status < 0:
                name = failure.signal_name()
                print(
                    f"\nProcess {number} was killed by {name}, and the others ended. {ENDED}\n",
                    file=sys.stderr,
                )
            sys.exit(status if status > 0 else 128 - status)
    sys.exit(0)
