"""Prefetched batches are the batches of their steps, whoever makes them and when."""

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from maskdm.training.batches import Batch
from maskdm.training.prefetch import PREFETCHED, prefetched


class Elsewhere:
    """A device that stands for an accelerator; tensors stay where they are."""

    type = "elsewhere"


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)
    return Elsewhere()


def of(step, device=None):
    return Batch(*(torch.tensor([step]) for _ in range(4)))


def test_on_a_cpu_a_batch_is_made_when_it_is_needed():
    made = []
    with prefetched(lambda step, _: made.append(step) or of(step), 9, torch.device("cpu")) as take:
        assert take(3).tokens.item() == 3
    assert made == [3]


def test_elsewhere_the_next_ones_are_under_way_in_threads_and_none_beyond_the_end(elsewhere):
    made, started, go = [], threading.Barrier(PREFETCHED + 1), threading.Event()

    def make(step, device):
        if step < PREFETCHED:
            started.wait(timeout=30)  # so many must be under way at once
            go.wait(timeout=30)
        made.append(step)
        return of(step)

    with prefetched(make, PREFETCHED + 2, elsewhere) as take:
        first = threading.Thread(target=lambda: found.append(take(0)))
        found = []
        first.start()
        started.wait(timeout=30)
        go.set()
        first.join(timeout=30)
        found += [take(step) for step in range(1, PREFETCHED + 2)]
    assert [batch.tokens.item() for batch in found] == list(range(PREFETCHED + 2))
    assert sorted(made) == list(range(PREFETCHED + 2))


def test_an_error_in_a_batch_is_the_error_of_its_step(elsewhere):
    def make(step, device):
        if step == 1:
            raise ValueError("no such image")
        return of(step)

    with prefetched(make, 5, elsewhere) as take:
        take(0)
        with pytest.raises(ValueError, match="no such image"):
            take(1)


def test_threads_end_with_the_training(elsewhere):
    with prefetched(of, 1000, elsewhere) as take:
        take(0)
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


class Stream:
    """Stands for a CUDA stream; its events note in ``log`` what is asked of them."""

    def __init__(self, name, log):
        self.name, self.log, self.recorded = name, log, 0

    def record_event(self):
        self.recorded += 1
        return Event(f"{self.name} {self.recorded}", self.log)

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event.name}")


class Event:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def synchronize(self):
        self.log.append(f"the host waits for {self.name}")


def test_on_a_gpu_batches_are_waited_for_and_the_host_runs_ahead_by_a_few_steps(monkeypatch):
    log, opened = [], []
    computing = Stream("computing", log)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: Stream("beside", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: opened.append(device) or nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    device, steps = SimpleNamespace(type="cuda"), PREFETCHED + 3
    with prefetched(of, steps, device) as take:
        for step in range(steps):
            assert take(step).tokens.item() == step
    waited = [line for line in log if line.startswith("computing waits for beside")]
    assert len(set(waited)) == steps
    # The event of a step is recorded before its batch is waited for: the steps before it are done.
    hosts = [line for line in log if line.startswith("the host")]
    assert hosts == [f"the host waits for computing {n}" for n in range(1, steps - PREFETCHED + 1)]
    assert opened == [device] * steps
