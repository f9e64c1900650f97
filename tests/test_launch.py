"""How a stage starts: handed to a launcher, or refused, before it reads or computes anything."""

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskdm.runtime import launch
from maskdm.runtime.distributed import NAMES
from maskdm.runtime.errors import UserError
from maskdm.runtime.parent import SECONDS
from tests.support.clones import ROOT

SEVERAL = ("pretrain", "finetune", "sample", "reference", "fid")  # stages that use processes


@pytest.mark.parametrize(
    ("gpus", "device", "asked", "count"),
    [
        (4, None, None, 4),
        (0, None, None, 1),
        (4, "cuda", None, 4),
        (4, "cuda:1", None, 1),
        (4, "cpu", None, 1),
        (4, None, "2", 2),
        (0, "cpu", "3", 3),
    ],
)
def test_one_process_a_visible_gpu_starts_by_itself(gpus, device, asked, count, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    for name, value in {"MASKDM_DEVICE": device, "MASKDM_PROCESSES": asked}.items():
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    assert launch.processes_here() == count


@pytest.mark.parametrize(("cores", "count", "threads"), [(8, 2, "4"), (9, 2, "4"), (2, 4, "1")])
def test_processes_share_the_cores(cores, count, threads, monkeypatch):
    told = {}

    def configured(**_):
        told["threads"] = os.environ["OMP_NUM_THREADS"]
        raise InterruptedError

    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr("torch.distributed.launcher.api.LaunchConfig", configured)
    with pytest.raises(InterruptedError):
        launch.start_here(count)
    assert told == {"threads": threads}


def lines(said):
    return [line for line in said.splitlines() if line.strip()]


@pytest.fixture
def main(tmp_path, monkeypatch, capfd):
    """Return a stage's status and words, where its command runs in this very process."""
    for name in {*sum(NAMES, ()), "MASKDM_WORKER", "MASKDM_PROCESSES", "MASKDM_LAUNCHER"}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage"])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)

    def main(stage):
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
        return end.value.code, "".join(capfd.readouterr())

    return main


@pytest.mark.parametrize("stage", SEVERAL)
def test_a_stage_hands_its_own_command_to_the_launcher(stage, main, monkeypatch):
    monkeypatch.setenv("MASKDM_LAUNCHER", "echo -n '4 workers:'")
    status, said = main(stage)
    assert status == 1  # echo runs nothing
    assert said.startswith(f"4 workers: {sys.executable} -m stages.{stage}\n")


LAUNCHERS = {
    "that runs nothing": ("true", 0, False),
    "that does not wait": ("sh -c 'sleep 0 &'", 0, False),
    "whose workers fail in silence": ("sh -c '\"$@\" >&- 2>&-; true' sh false", 0, False),
    "that fails": ("sh -c 'exit 7'", 7, False),
    "that is stopped": ("sh -c 'kill -TERM $$'", 143, False),
    "whose first worker came to its end": (f"{sys.executable} -c '{{worker}}'", 0, True),
    "whose second worker did so": (f"env RANK=1 {sys.executable} -c '{{worker}}'", 0, False),
}
# What a worker's process is, in short: the same command, which computes nothing here.
WORKER = """
import importlib.machinery, sys
from maskdm.runtime import launch, numerics
numerics.choose_kernels = lambda: None
sys.modules["__main__"].__spec__ = importlib.machinery.ModuleSpec("stages.pretrain", None)
launch.on_all_processes(lambda: None)()
"""


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_ends_well_without_the_stage_is_a_failure(
    launcher, main, monkeypatch, tmp_path
):
    command, status, came_to_its_end = LAUNCHERS[launcher]
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    command = command.replace("{worker}", f'exec(open("{worker}").read())')
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MASKDM_LAUNCHER", command)
    for name, value in zip(NAMES[0], ("0", "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "worker", lambda: None)  # this process is none of them
    (tmp_path / ".stages.pretrain.launched").write_text("of a process that was killed")
    found, said = main("pretrain")
    assert found == (1 if status == 0 and not came_to_its_end else status)
    assert ("did not run to its end" in said) == (status == 0 and not came_to_its_end), said
    assert list(tmp_path.iterdir()) == [worker]


def test_a_launcher_that_does_not_exist_is_named_in_one_sentence(main, monkeypatch):
    monkeypatch.setenv("MASKDM_LAUNCHER", "no-such-launcher -n 2")
    status, said = main("pretrain")
    assert status == 1
    assert lines(said) == [
        "error: MASKDM_LAUNCHER is 'no-such-launcher -n 2', which cannot be run: "
        "No such file or directory."
    ]


def test_a_number_of_processes_that_is_none_is_named_in_one_sentence(main, monkeypatch):
    monkeypatch.setenv("MASKDM_PROCESSES", "abc")
    status, said = main("pretrain")
    assert status == 1
    assert lines(said) == [
        "error: MASKDM_PROCESSES is 'abc', but must be a whole number from 1 to 64."
    ]


def test_an_unclosed_quotation_mark_is_one_sentence(main, monkeypatch):
    monkeypatch.setenv("MASKDM_LAUNCHER", "srun 'n")
    status, said = main("pretrain")
    assert status == 1
    sentence = "error: MASKDM_LAUNCHER is 'srun 'n', which is no command: No closing quotation."
    assert lines(said) == [sentence]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_more_processes_than_images_in_a_batch_are_refused_before_one_starts(
    stage, main, monkeypatch, tmp_path
):
    monkeypatch.setattr(launch, "start_here", lambda count: pytest.fail("they were started"))
    monkeypatch.setenv("MASKDM_PROCESSES", "50")
    (tmp_path / "params.yaml").write_text((ROOT / "presets/laptop.yaml").read_text())
    status, said = main(stage)
    assert status == 1
    assert f"{stage}.batch_size is" in said
    assert "fewer images than the 50 processes" in said


def test_numbers_of_a_launcher_that_are_none_are_one_sentence(main, monkeypatch):
    for name, value in zip(NAMES[0], ("²", "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    status, said = main("pretrain")
    assert status == 1
    [line] = lines(said)
    assert "RANK=²" in line


def test_processes_meet_at_a_port_that_nobody_has(monkeypatch):
    assert launch._free_port() in launch.PORTS
    with socket.socket() as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(launch, "PORTS", range(port, port + 1))
        with pytest.raises(UserError, match=f"There is no free port from {port} to {port}"):
            launch._free_port()


PARENT = """
import os, subprocess, sys
environment = {"MASKDM_PARENT": str(os.getpid())} | os.environ
subprocess.run([sys.executable, "-c", sys.argv[1]], env=environment)
"""
COMMAND = """
import os, time
from maskdm.runtime.command import run
def main():
    assert "MASKDM_PARENT" not in os.environ  # of its own children it is the parent
    print(os.getpid(), flush=True)
    time.sleep(60)
run(main)
"""
CHILDREN = {
    "worker of a stage": """
import os, time
from maskdm.runtime import launch, numerics
numerics.choose_kernels = lambda: None
launch.on_all_processes(lambda: (print(os.getpid(), flush=True), time.sleep(60)))()
""",
    "stage of dvc": COMMAND,
    "command of a command": COMMAND,
}
ABOUT = {
    "worker of a stage": {"MASKDM_WORKER": "1"},
    "stage of dvc": {"DVC_ROOT": "/", "MASKDM_PARENT": "1"},
    "command of a command": {},
}


@pytest.mark.parametrize("child", CHILDREN)
def test_a_process_ends_soon_after_a_parent_that_was_killed(child):
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ABOUT[child]
    command = [sys.executable, "-c", PARENT, CHILDREN[child]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        pid = int(parent.stdout.readline())  # the child's, the only one that writes
        time.sleep(2 * SECONDS)
        assert alive(pid)
        parent.kill()
        end = time.monotonic() + 10
        while alive(pid) and time.monotonic() < end:
            time.sleep(0.1)
    assert not alive(pid)


def alive(pid):
    """Return whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
