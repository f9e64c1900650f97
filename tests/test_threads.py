"""Threads in the background leave training's threads alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskdm.training.batches import Batch
from maskdm.training.checkpoints.store import CheckpointStore
from maskdm.training.prefetch import prefetched
from tests.support.clones import ROOT
from tests.support.training import Run, phase, whole

COUNTED = """
import os, torch
from maskdm.runtime.threads import background_threads

torch.set_num_threads(2)
large = torch.ones(10**6)
large.isfinite().all()  # starts torch's own threads
before = len(os.listdir("/proc/self/task"))
with background_threads(1, "test") as pool:
    assert pool.submit(lambda: large.isfinite().all()).result()
    print(len(os.listdir("/proc/self/task")) - before, torch.get_num_threads())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_a_background_thread_starts_no_others_and_takes_none_from_training():
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True)
    assert done.stdout == "1 2\n", done.stderr


@pytest.fixture
def two_threads():
    """torch computes with two threads, as new ones would."""
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


def test_batches_are_made_in_such_threads(monkeypatch, two_threads):
    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)
    threads = []

    def make(step, device):
        threads.append(torch.get_num_threads())
        return Batch(*(torch.tensor([step]) for _ in range(4)))

    with prefetched(make, 9, torch.device("meta")) as take:
        for step in range(9):
            take(step)
    assert threads == [1] * 9


def test_checkpoints_are_written_in_such_a_thread(monkeypatch, tmp_path, two_threads):
    threads, save = [], CheckpointStore.save

    def counting(*arguments, **named):
        threads.append(torch.get_num_threads())
        return save(*arguments, **named)

    monkeypatch.setattr(CheckpointStore, "save", counting)
    params = phase(steps=2)
    Run(tmp_path, params, whole(params))
    assert threads
    assert set(threads) == {1}


@pytest.mark.slow
def test_tests_compute_on_one_thread_and_without_what_their_caller_has_set():
    """Or two workers of pytest have four on two cores, and one computes as somebody's cluster."""
    code = "import os, tests.conftest, torch; print(torch.get_num_threads(), *os.environ)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"MASKDM_PROCESSES": "2", "RANK": "1", "GIT_DIR": "x"},
        capture_output=True,
        text=True,
        check=True,
    )
    threads, *names = said.stdout.split()
    assert threads == "1"
    assert not {"MASKDM_PROCESSES", "RANK", "GIT_DIR"} & set(names)
