"""Several processes compute what one does, go on where others stopped, and speak with one voice."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import DistError

from benchmarks.robustness.torture import ROOT
from maskdm.backbones.model_folder import load_model
from maskdm.runtime.distributed import (
    ALONE,
    NAMES,
    Processes,
    Worker,
    another_has_ended,
    worker,
)
from tests.support.workspaces import go_on, like, paused, pausing

STEPS, CUT = 50, 20
# Of 10 images, 4 processes have 2 or 3 each.
PHASE = {"steps": STEPS, "batch_size": 10, "log_every": 1, "validate_every": 25}
BIN = Path(sys.executable).parent
PATIENCE = 300  # seconds, against a run that waits for ever; it takes ten

# Slurm's srun, for two tasks on this machine: it hands SIGTERM on and ends as a task ends.
SRUN = """#!/bin/sh
export SLURM_NTASKS=2
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
trap 'kill -TERM $first $second' TERM
wait $second; wait $second 2>/dev/null
wait $first
"""


def begun(prepared, folder, steps=STEPS):
    """Return a workspace with prepared images, in which pretraining makes so many steps."""
    return like(prepared, folder, pretrain=PHASE | {"steps": steps})


@pytest.fixture
def workspace(prepared, tmp_path):
    """Such a workspace; what still runs there in the end is killed."""
    yield (made := begun(prepared, tmp_path / "w"))
    clear(made)


@pytest.fixture(scope="module")
def pretrained(prepared, tmp_path_factory):
    """Return a workspace where so many processes made so many steps; each way is run once."""

    @cache
    def pretrained(count, steps=STEPS, **environment):
        made = begun(prepared, tmp_path_factory.mktemp("pretrained") / "w", steps)
        said = run(made, count, **environment)
        assert_nothing_twice(said)
        assert "warning" not in said.lower()
        assert said.count(f"{steps} steps of 10 images") == 1
        return made

    return pretrained


def start(workspace, count=None, stage="pretrain", **environment):
    """Start a stage in ``count`` processes, or as the environment says."""
    processes = {"MASKDM_PROCESSES": str(count)} if count else {}
    workspace.environment = processes | environment
    return workspace.start(stage)


def ended(process, seconds=PATIENCE):
    """Return status and words of a command, once nobody is left who could add to them."""
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


def run(workspace, count=None, status=0, **options):
    """Run a stage to its end and return what it said."""
    try:
        code, said = ended(start(workspace, count, **options))
    finally:
        clear(workspace)
    assert code == status, said
    return said


def started(workspace, *arguments, **options):
    """Start pretraining and return it where it has stopped, as it saves its second checkpoint."""
    own = {"MASKDM_CHECKPOINT_STEPS": "7", **pausing("pretrain", ROOT)}
    process = start(workspace, *arguments, **options, **own)
    paused(process)
    return process


def living(workspace):
    """Return the processes that run in a workspace, whoever their parents are."""
    folder = str(workspace.folder.resolve())
    return [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == folder]


def clear(workspace):
    """Kill what runs in a workspace, and what it starts meanwhile."""
    while processes := living(workspace):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.1)


def lines(said):
    """Return the lines of an output, without the states of a progress bar."""
    bar = re.compile(r"\w+: +\d+%\|")
    return [line for line in said.splitlines() if line.strip() and not bar.match(line)]


def assert_nothing_twice(said):
    assert len(set(lines(said))) == len(lines(said)), said


def curves(workspace):
    """Return the columns of both curves of pretraining, as numbers by name."""
    columns = {}
    for name in ("training", "validation"):
        with (workspace.folder / f"reports/pretrain/{name}.tsv").open() as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        for column in rows[0]:
            columns[name, column] = [float(row[column] or "nan") for row in rows]
    return columns


def timing(workspace):
    return json.loads((workspace.folder / "reports/timing/pretrain.json").read_text())


def processes_of(workspace):
    """Return how many processes computed the steps, in turn."""
    return [part["processes"] for part in timing(workspace)["numerics"]]


def output(workspace, weights):
    """Return what a model makes of some noise."""
    backbone, config = load_model(workspace.folder / "models/pretrain", weights)
    patches, channels = (config.size // config.model.patch) ** 2, 3 * config.model.patch**2
    tokens = torch.randn(8, patches, channels, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone(tokens, torch.arange(patches).expand(8, -1), torch.linspace(0.05, 0.95, 8))


def assert_agree(one, other):
    """Two runs differ by rounding: curves in their last digit of six, outputs by under 1/1000."""
    found, expected = curves(one), curves(other)
    assert found.keys() == expected.keys()
    for column, numbers in expected.items():
        assert found[column] == pytest.approx(numbers, rel=1.1e-5, nan_ok=True), column
    for weights in ("raw", "averaged"):
        torch.testing.assert_close(output(one, weights), output(other, weights), atol=1e-3, rtol=0)


def assert_same_bytes(one, other):
    folders = ("models/pretrain", "reports/pretrain")
    found, expected = one.files(*folders), other.files(*folders)
    assert expected
    assert [name for name in found | expected if found.get(name) != expected.get(name)] == []


# What several processes compute


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_what_one_trains(count, pretrained):
    assert processes_of(pretrained(count)) == [count]
    assert_agree(pretrained(count), pretrained(1))


@pytest.mark.slow
def test_micro_batches_in_two_processes_train_what_one_trains(pretrained):
    """Five images in passes of at most two: 1, 2 and 2."""
    parts = pretrained(2, MASKDM_MICRO_BATCH="2")
    assert processes_of(parts) == [2]
    assert_agree(parts, pretrained(1))


@pytest.mark.slow
def test_sharded_weights_train_what_whole_ones_train(pretrained):
    sharded = pretrained(2, CUT, MASKDM_SHARD="1")
    assert processes_of(sharded) == [2]
    assert_agree(sharded, pretrained(1, CUT))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, {}), (2, {})),
        ((1, {}), (2, {"MASKDM_SHARD": "1"})),
        ((2, {"MASKDM_SHARD": "1"}), (1, {})),
    ],
    ids=["one to two", "one to two sharded", "two sharded to one"],
)
def test_another_number_of_processes_goes_on_and_says_so(before, after, pretrained, tmp_path):
    (count, sharded), (now, sharded_now) = before, after
    workspace = like(pretrained(count, CUT, **sharded), tmp_path / "w", pretrain={"steps": STEPS})
    said = run(workspace, now, **sharded_now)
    assert f"Going on from the checkpoint after step {CUT} of {STEPS}" in said
    assert f"processes {count} → {now}" in said
    assert_nothing_twice(said)
    assert processes_of(workspace) == [count, now]
    assert timing(workspace)["steps_computed"] == STEPS - CUT
    assert_agree(workspace, pretrained(1))


@pytest.fixture(scope="module")
def measured(prepared, pretrained, tmp_path_factory):
    """Return everything that drawing and measuring in so many processes writes."""

    @cache
    def measured(count):
        made = like(prepared, tmp_path_factory.mktemp("measured") / "w")
        model = pretrained(1).folder / "models/pretrain"
        for name in ("finetune", "pretrain"):  # the second is the guide
            shutil.copytree(model, made.folder / "models" / name)
        several = {
            "MASKDM_PROCESSES": str(count),
            "MASKDM_SAMPLE_BATCH": "5",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.several"],
            cwd=made.folder,
            env=os.environ | several,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        assert_nothing_twice(done.stdout)
        return made.files("data/samples", "data/reference", "reports")

    return measured


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_draw_and_measure_the_bytes_that_one_does(count, measured):
    """24 images, 5 at a time: at the last turn 2 processes have 4 images, 4 have 4 and nothing."""
    together, alone = measured(count), measured(1)
    assert {
        *("data/samples/samples.npy", "data/samples/samples.json", "data/reference/train.npy"),
        *("data/reference/heldout.npy", "data/reference/reference.json", "reports/metrics.json"),
        *("reports/measured.json", "reports/samples.png", "reports/yardsticks.json"),
    } < alone.keys()
    differing = {name for name in alone | together if alone.get(name) != together.get(name)}
    assert differing <= {"reports/timing/sample.json"}


# How they stop and go on


@pytest.fixture(scope="module")
def stopped(prepared, tmp_path_factory):
    """Four workers whose parent got SIGTERM: workspace, status, what was said, who still lives."""
    workspace = begun(prepared, tmp_path_factory.mktemp("stopped") / "w")
    try:
        process = started(workspace, 4)
        os.kill(process.pid, signal.SIGTERM)
        go_on(process)
        status, said = ended(process)
        return workspace, status, said, living(workspace)
    finally:
        clear(workspace)


def stop_in(said):
    """Return the step after which a run said that it stopped."""
    return int(re.search(r"Stopped after step (\d+); its checkpoint is ", said)[1])


@pytest.mark.slow
def test_sigterm_to_the_parent_has_the_workers_save_and_stop(stopped):
    workspace, status, said, left = stopped
    assert status == 143, said
    assert "Traceback" not in said
    assert workspace.saved() == stop_in(said) < STEPS
    assert left == []


@pytest.mark.slow
def test_that_they_stop_is_said_once(stopped):
    _, _, said, _ = stopped
    assert said.count("Stopped after step") == 1, said


@pytest.mark.slow
def test_the_same_command_goes_on_to_the_bytes_of_processes_that_nobody_stopped(
    stopped, pretrained, tmp_path
):
    """Of four numbers the sum depends on the order; of two it does not."""
    before, _, said, _ = stopped
    workspace = like(before, tmp_path / "w")
    again = run(workspace, 4)
    assert f"Going on from the checkpoint after step {stop_in(said)} of {STEPS}" in again
    assert timing(workspace)["steps_computed"] == STEPS - stop_in(said)
    assert_same_bytes(workspace, pretrained(4))


@pytest.mark.slow
def test_a_killed_worker_ends_the_others_and_one_process_goes_on(workspace, pretrained):
    process = started(workspace, 2)
    (killed,) = (
        child
        for child in psutil.Process(process.pid).children()
        if child.environ().get("RANK") == "1"
    )
    killed.kill()
    go_on(process)
    status, said = ended(process, seconds=60)
    assert status == 128 + signal.SIGKILL, said
    assert living(workspace) == []
    again = run(workspace)
    step = int(re.search(r"Going on from the checkpoint after step (\d+) of", again)[1])
    assert 0 < step < STEPS
    assert "processes 2 → 1" in again
    assert processes_of(workspace) == [2, 1]
    assert_agree(workspace, pretrained(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "launcher"), [("3", None), ("0", "torchrun --standalone --nproc-per-node 4")]
)
def test_one_of_four_that_dies_ends_the_others_and_the_same_command_goes_on_to_the_same_bytes(
    rank, launcher, workspace, pretrained
):
    path = {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"]])}
    how = {"count": None, "MASKDM_LAUNCHER": launcher, **path} if launcher else {"count": 4}
    process = started(workspace, **how)
    workers = psutil.Process(process.pid).children(recursive=True)
    (died,) = (child for child in workers if child.environ().get("RANK") == rank)
    died.kill()
    go_on(process)
    status, said = ended(process)
    assert status not in (0, None), said
    assert living(workspace) == []
    assert "The same command goes on from the last checkpoint." in said
    if not launcher:  # torchrun says much itself
        assert_nothing_twice(said)
        assert f"Process {rank} was killed by SIGKILL" in said
        assert "Traceback" not in said
    again = run(workspace, **how)
    step = int(re.search(r"Going on from the checkpoint after step (\d+) of", again)[1])
    assert 0 < step < STEPS
    assert processes_of(workspace) == [4]
    assert_same_bytes(workspace, pretrained(4))


# How they are started


@pytest.mark.slow
def test_a_batch_smaller_than_the_number_of_processes_is_refused_once(workspace, tmp_path):
    few = like(workspace, tmp_path / "few", pretrain={"batch_size": 1})
    said = run(few, 2, status=1)
    assert said.count("error: pretrain.batch_size is 1, fewer images than the 2 processes") == 1
    assert "Traceback" not in said
    assert_nothing_twice(said)
    assert not (few.folder / "models").exists()


@pytest.mark.slow
def test_two_workers_that_srun_started_stop_and_those_of_torchrun_go_on_to_the_same_bytes(
    workspace, pretrained, tmp_path
):
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin/srun"
    srun.write_text(SRUN)
    srun.chmod(0o755)
    path = {"PATH": os.pathsep.join([str(srun.parent), str(BIN), os.environ["PATH"]])}

    process = started(workspace, MASKDM_LAUNCHER="srun", **path)
    os.kill(process.pid, signal.SIGTERM)
    go_on(process)
    status, said = ended(process)
    assert status == 143, said
    assert said.count("steps of") == 1
    assert "Traceback" not in said
    assert living(workspace) == []

    torchrun = "torchrun --standalone --nproc-per-node 2"
    again = run(workspace, MASKDM_LAUNCHER=torchrun, **path)
    assert again.count("steps of") == 1
    assert f"Going on from the checkpoint after step {stop_in(said)} of {STEPS}" in again
    assert processes_of(workspace) == [2]
    assert_same_bytes(workspace, pretrained(2))


@pytest.mark.slow
def test_a_launcher_that_passes_no_numbers_on_is_refused(workspace):
    said = run(workspace, status=1, MASKDM_LAUNCHER="env")
    # Where nobody reads along, what is printed comes after what is said on stderr.
    assert [line for line in lines(said) if " steps of " not in line] == [
        "error: The launcher started this process, but gave it no number (RANK, WORLD_SIZE and "
        "LOCAL_RANK, or Slurm's): see MASKDM_LAUNCHER in docs/running.md."
    ]
    assert not (workspace.folder / "models").exists()


# What they are told


@given(length=st.integers(0, 10_000), count=st.integers(1, 300))
def test_parts_cover_a_batch_once_in_order_and_differ_by_one_sample_at_most(length, count):
    parts = [range(length)[Processes(rank, count).part(length)] for rank in range(count)]
    assert [sample for part in parts for sample in part] == list(range(length))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("names", NAMES)
def test_a_worker_knows_its_numbers_and_those_of_a_batch_script_count_only_if_the_stage_called_srun(
    names, monkeypatch
):
    for name in {*sum(NAMES, ()), "MASKDM_WORKER"}:
        monkeypatch.delenv(name, raising=False)
    assert worker() is None
    for name, number in zip(names, ("5", "8", "1"), strict=True):
        assert worker() is None
        monkeypatch.setenv(name, number)
    assert worker() == (Worker(5, 8, 1) if names[0] == "RANK" else None)
    monkeypatch.setenv("MASKDM_WORKER", "1")
    assert worker() == Worker(5, 8, 1)


@pytest.mark.parametrize(
    ("said", "gone"),
    [
        ("[third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]", True),
        ("a defect", False),
    ],
)
def test_only_a_worker_may_have_lost_another_one(said, gone, monkeypatch):
    for name in {*sum(NAMES, ()), "MASKDM_WORKER"}:
        monkeypatch.delenv(name, raising=False)
    assert not another_has_ended(RuntimeError(said))
    for name, number in zip(NAMES[0], ("0", "4", "0"), strict=True):
        monkeypatch.setenv(name, number)
    assert another_has_ended(RuntimeError(said)) == gone
    assert another_has_ended(DistError("a store that is gone"))
    assert not another_has_ended(ValueError(said))


def test_one_process_works_on_items_in_order():
    worked = []
    results = ALONE.map("abc", lambda item: worked.append(item) or item.upper())
    assert next(results) == ("a", "A")
    assert worked == ["a"]  # one at a time: progress shows
    assert list(results) == [("b", "B"), ("c", "C")]


@pytest.mark.slow
def test_processes_that_compile_train_as_those_that_do_not(tmp_path):
    """As several GPUs do by default: the data-parallel network is traced and split in buckets."""
    found = []
    for word in ("--no-compiles", "--compiles"):
        file = tmp_path / f"{word}.json"
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.compiled", str(file), word],
            cwd=ROOT,
            env=os.environ | {"MASKDM_PROCESSES": "2", "MASKDM_DEVICE": "cpu"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(file.read_text()))
    plain, compiled = found
    assert compiled["graphs"] > 1  # one a leg, at least
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-4)
