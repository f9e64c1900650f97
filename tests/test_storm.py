"""Whole stages under attack: killed, out of room, two at once; `make torture` is the long storm."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.robustness.torture import MODELS_AND_CURVES, ROOT, Workspace, differing, storm
from maskdm.runtime.files import listed
from maskdm.training.checkpoints.store import BEGUN, KEEP, METADATA, TENSORS
from tests.support.workspaces import go_on, half_way, like

pytestmark = pytest.mark.slow

KILLS = 20
STEPS = 200
LONG = {"steps": STEPS, "preview_every": 50}  # previews are part of every checkpoint


@pytest.fixture
def workspace(prepared, tmp_path):
    """A workspace with prepared images, in which pretraining takes seconds."""
    return like(prepared, tmp_path / "w", pretrain=LONG)


@pytest.fixture(scope="module")
def calm(prepared, tmp_path_factory):
    """Another one like it, which nobody disturbs."""
    return like(prepared, tmp_path_factory.mktemp("storm") / "calm", pretrain=LONG)


def running(workspace, **environment):
    """Start pretraining and return it where it has stopped, half-way."""
    workspace.environment |= environment
    return half_way(workspace)


def ended(process):
    said, _ = process.communicate(timeout=600)
    return process.returncode, said


def test_twenty_kills_at_random_moments_leave_the_bytes_of_an_untouched_run(calm, workspace):
    workspace.environment["MASKDM_CHECKPOINT_STEPS"] = "5"
    result = storm(calm, workspace, "pretrain", KILLS, seed=4)
    assert result.differing == []
    assert sum(result.signals.values()) == KILLS
    assert len(result.signals) == 3
    assert len(set(result.resumed)) >= 8
    left = {path.suffix for path in workspace.checkpoints.rglob("*-*.*")}
    assert left == {METADATA, TENSORS, KEEP}


def test_the_storm_names_what_differs(tmp_path):
    calm, struck = Workspace(tmp_path / "calm"), Workspace(tmp_path / "struck")
    for workspace, content in ((calm, b"a"), (struck, b"b")):
        for name in ("models/pretrain/same", "models/pretrain/other", "reports/pretrain/curve"):
            path = workspace.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if name.endswith("other") else b"")
    (calm.folder / "reports/pretrain/curve").unlink()
    assert differing(calm, struck) == ["models/pretrain/other", "reports/pretrain/curve"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_before_it_stops_the_run(number, status, workspace):
    process = running(workspace, MASKDM_CHECKPOINT_STEPS="40")
    os.kill(process.pid, number)
    go_on(process)
    code, said = ended(process)
    assert code == status, said
    assert "Traceback" not in said
    stopped = re.search(r"Stopped after step (\d+)", said)[1]
    again = workspace.stage("pretrain")
    assert f"Going on from the checkpoint after step {stopped} of {STEPS}" in again


@pytest.mark.parametrize("processes", [1, 2])
def test_under_nohup_a_terminal_that_closes_stops_nothing(processes, workspace, calm):
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the stage inherits it
    try:
        own = {"MASKDM_CHECKPOINT_STEPS": "40", "MASKDM_PROCESSES": f"{processes}"}
        process = running(workspace, **own)
    finally:
        signal.signal(signal.SIGHUP, usual)
    process.stdout.close()  # nobody listens any more
    os.kill(process.pid, signal.SIGHUP)
    go_on(process)
    assert process.wait(timeout=600) == 0
    if processes == 1:  # two add up in another order
        assert workspace.files("models") == calm_result(calm).files("models")
    assert len(workspace.files("models")) == len(calm_result(calm).files("models"))


def test_a_second_trainer_of_the_same_waits_and_takes_over_when_the_first_is_killed(
    workspace, tmp_path
):
    other = like(workspace, tmp_path / "other")
    other.environment["MASKDM_CHECKPOINTS"] = str(workspace.checkpoints)
    first = running(workspace, MASKDM_CHECKPOINT_STEPS="20")
    second = other.start("pretrain")
    line = second.stdout.readline()
    while "Waiting" not in line:
        assert line, "it did not wait"
        line = second.stdout.readline()
    assert (
        line == f"Waiting for a run that trains the same: process {first.pid} on {os.uname()[1]}\n"
    )
    first.kill()
    first.wait()
    code, said = ended(second)
    assert code == 0, said
    assert "Going on from the checkpoint after step" in said
    assert other.files("models") == calm_result(workspace).files("models")


def calm_result(workspace):
    """Run to the end in a workspace whose checkpoints are there."""
    workspace.stage("pretrain")
    return workspace


def test_who_waits_takes_the_finished_checkpoint_as_soon_as_it_is_there(workspace, tmp_path):
    """A shorter run that comes second gets it from the longer one that holds the folder."""
    short = like(workspace, tmp_path / "short", pretrain={"steps": STEPS - 50})
    short.environment["MASKDM_CHECKPOINTS"] = str(workspace.checkpoints)
    first = running(workspace, MASKDM_CHECKPOINT_STEPS="1")  # stands until the short one has said
    second = short.start("pretrain")
    while not listed(workspace.checkpoints, f"*/{STEPS - 50:09d}-*{KEEP}"):
        assert second.poll() is None, second.stdout.read()
        time.sleep(0.02)
    go_on(first)
    code, said = ended(second)
    assert code == 0, said
    assert f"Found the finished checkpoint of these {STEPS - 50} steps" in said
    assert ended(first)[0] == 0


def fill(path):
    with path.open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(2**12))


def test_a_disk_that_fills_up_costs_no_more_than_the_interval(calm, workspace, tmp_path):
    """A small tmpfs holds a few checkpoints; a file then takes the rest of its room."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root may mount a small tmpfs, and not in every container")
    try:
        workspace.environment |= {"MASKDM_CHECKPOINTS": str(small), "MASKDM_CHECKPOINT_STEPS": "30"}
        process = half_way(workspace)
        with pytest.raises(OSError, match="No space"):
            fill(small / "ballast")
        go_on(process)
        code, said = ended(process)
        assert code == 1, said
        assert "No space left on device" in said
        assert "Make room there, or name another folder in MASKDM_CHECKPOINTS" in said
        assert "Traceback" not in said
        assert not list(small.rglob(f"*{BEGUN}"))
        (small / "ballast").unlink()
        said = workspace.stage("pretrain")
        step = int(re.search(r"Going on from the checkpoint after step (\d+)", said)[1])
        assert step >= 30
        calm.stage("pretrain")
        assert workspace.files(*MODELS_AND_CURVES) == calm.files(*MODELS_AND_CURVES)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_checkpoints_are_listed_and_cleared_but_not_those_in_use(workspace):
    process = running(workspace, MASKDM_CHECKPOINT_STEPS="20")
    (folder,) = workspace.checkpoints.iterdir()
    command = [sys.executable, "-m", "stages.checkpoints"]

    def checkpoints(*arguments, status=0):
        environment = os.environ | {"MASKDM_CHECKPOINTS": str(workspace.checkpoints)}
        done = subprocess.run(
            [*command, *arguments],
            cwd=workspace.folder,
            env=environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    assert f"{folder.name} (in use)" in checkpoints("list")
    assert "is in use and stays" in checkpoints("clear", "--all")
    go_on(process)
    assert ended(process)[0] == 0
    assert re.search(rf"step {STEPS:>8} .* MiB  kept", checkpoints("list"))
    assert "There are no checkpoints called nothing" in checkpoints("clear", "nothing", status=1)
    checkpoints("clear", folder.name)
    assert checkpoints("list").startswith("0.0 MiB in ")


def test_a_storm_in_the_background_is_heard_all_the_same():
    """A shell makes its background jobs ignore SIGINT: it would be counted, and kill nothing."""
    code = (
        "from benchmarks.robustness.interrupts import hear; hear(); import subprocess;"
        "child = subprocess.Popen(['sleep', '60']); child.send_signal(2); print(child.wait(30))"
    )
    ignoring = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ignoring.stdout == "-2\n", ignoring.stderr
