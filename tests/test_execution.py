"""Where and how to compute: how a batch is cut into processes and passes, at which precision."""

from math import ceil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from maskdm.runtime import execution as execution_module
from maskdm.runtime.distributed import Processes
from maskdm.runtime.errors import UserError
from maskdm.runtime.execution import Execution
from maskdm.runtime.numerics import numerics
from maskdm.training.run import _check_agreement, _check_processes
from maskdm.training.schedule import Leg, Schedule
from tests.support.training import CPU, masked


@given(st.integers(1, 200), st.integers(1, 9), st.one_of(st.none(), st.integers(1, 70)))
def test_the_passes_of_all_processes_cover_the_batch_once_within_the_micro_batch(
    batch_size, count, micro_batch
):
    assume(batch_size >= count)  # a stage refuses processes without images
    parts, numbers = [], set()
    for rank in range(count):
        execution = Execution(CPU, Processes(rank, count), micro_batch)
        passes = list(execution.passes(batch_size))
        part = range(batch_size)[execution.processes.part(batch_size)]
        own = [sample for samples in passes for sample in part[samples]]
        assert own == list(part)
        lengths = [samples.stop - samples.start for samples in passes]
        assert min(lengths) >= 1
        # All make as many passes: where shares are unequal, one of 1 image may have to take 2.
        most = micro_batch or len(part)
        assert max(lengths) <= (most if most > 1 or batch_size % count == 0 else 2)
        parts += own
        numbers.add(len(passes))
    assert parts == list(range(batch_size))
    (number,) = numbers
    largest = ceil(batch_size / count)
    assert number <= ceil(largest / (micro_batch or largest))  # no more than are needed


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_a_forward_pass_runs_at_its_precision(precision, dtype):
    layer = torch.nn.Linear(2, 2)
    with Execution(CPU, precision=precision).autocast():
        assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer(torch.ones(1, 2)).dtype == torch.float32


def test_the_environment_says_where_and_the_caller_at_which_precision(monkeypatch):
    monkeypatch.setenv("MASKDM_DEVICE", "cpu")
    monkeypatch.setenv("MASKDM_MICRO_BATCH", "3")
    assert Execution.from_environment("bf16") == Execution(CPU, micro_batch=3, precision="bf16")
    monkeypatch.delenv("MASKDM_MICRO_BATCH")
    assert Execution.from_environment() == Execution(CPU)
    monkeypatch.setenv("MASKDM_MICRO_BATCH", "none")
    with pytest.raises(UserError, match=r"MASKDM_MICRO_BATCH is 'none', but must be a whole"):
        Execution.from_environment()


class Together(Processes):
    """The second of two processes; the first passed what it is given here."""

    first: Any = None

    def broadcast_object(self, content):
        self.told.append(content)
        return content if self.first is None else self.first

    def any(self, *flags):
        return list(flags)


def test_processes_that_would_train_something_else_are_refused():
    def told(steps=4, start="a", micro_batch=None, first=None):
        """Return what a process tells the others of what it is about to train."""
        schedule = Schedule((Leg(masked(0.5), steps, 8, 1e-3, 0),), steps)
        processes = Together(1, 2)
        object.__setattr__(processes, "told", said := [])
        object.__setattr__(processes, "first", first)
        execution = Execution(CPU, processes, micro_batch)
        _check_agreement("pretrain", lambda step: f"{start} {step}", schedule, execution)
        return said[0]

    first = told()
    told(first=first)
    for other in ({"steps": 5}, {"start": "b"}, {"micro_batch": 16}):
        with pytest.raises(UserError, match="Not all processes of pretrain have the same param"):
            told(**other, first=first)


def test_of_a_cpu_the_model_is_part_of_what_rounding_depends_on(monkeypatch):
    model = "Wise & Owl 9000"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags : a\nmodel name\t:  {model} \n")
    assert numerics(Execution(CPU))["device"].endswith(f", {model})")
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=OSError))
    assert numerics(Execution(CPU))["device"].startswith("cpu (")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("unset", [None, "MASKDM_COMPILE", "MASKDM_REPLAY"])
def test_on_a_gpu_steps_are_compiled_and_replayed_unless_the_environment_or_company_forbids_it(
    count, unset, monkeypatch
):
    for name in ("MASKDM_COMPILE", "MASKDM_REPLAY", "MASKDM_MICRO_BATCH", "MASKDM_SHARD"):
        monkeypatch.delenv(name, raising=False)
    if unset:
        monkeypatch.setenv(unset, "0")
    gpu, processes = torch.device("cuda"), Processes(0, count)
    monkeypatch.setattr(execution_module, "choose_device", lambda: gpu)
    monkeypatch.setattr(execution_module, "join", lambda device, sharded: processes)
    made = Execution.from_environment()
    assert made.compiles == (unset != "MASKDM_COMPILE")
    assert made.replays == (unset != "MASKDM_REPLAY" and count == 1)
    monkeypatch.setattr(execution_module, "choose_device", lambda: CPU)
    made = Execution.from_environment()
    assert not made.compiles
    assert not made.replays


def test_fp16_is_refused_on_sharded_weights_and_nowhere_else():
    schedule = Schedule((Leg(masked(0.5), 4, 8, 1e-3, 0),), 4)
    for sharded, precision in ((False, "fp16"), (True, "bf16"), (True, "fp32")):
        execution = Execution(CPU, Processes(0, 2, sharded=sharded), precision=precision)
        _check_processes("pretrain", schedule, execution, None)
    execution = Execution(CPU, Processes(0, 2, sharded=True), precision="fp16")
    with pytest.raises(UserError, match=r"pretrain\.precision is fp16.*take bf16"):
        _check_processes("pretrain", schedule, execution, None)


def test_kept_moments_are_refused_on_sharded_weights_and_nowhere_else():
    schedule = Schedule((Leg(masked(0.5), 4, 8, 1e-3, 0),), 4)
    sharded, whole = (Execution(CPU, Processes(0, 2, sharded=s)) for s in (True, False))
    for execution, moments in ((sharded, None), (whole, None), (whole, {})):
        _check_processes("finetune", schedule, execution, moments)
    with pytest.raises(UserError, match=r"finetune\.optimiser is kept.*unset MASKDM_SHARD"):
        _check_processes("finetune", schedule, sharded, {})
