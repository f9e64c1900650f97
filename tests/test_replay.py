"""Recorded steps: inputs that stand still, one recording a shape, the same training to rounding."""

import gc
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from maskdm.backbones.registry import build_backbone
from maskdm.diffusion.masking import nothing_masked
from maskdm.runtime.compile import with_fallback
from maskdm.runtime.errors import UserError
from maskdm.runtime.execution import Execution
from maskdm.runtime.replay import FIRST, CudaRecorder, Replay
from maskdm.training.batches import Batches
from maskdm.training.schedule import Schedule
from maskdm.training.state import State
from maskdm.training.step import Rates, TrainingStep
from tests.support.training import CPU, DIFFUSION, GRID, IMAGES, MODEL, leg, masked, phase, whole


class Recorder:
    """Stands for CUDA graphs: a replay is the call on the very tensors that it was recorded with.

    Recording computes nothing, and a graph writes its output to the same place every time.
    """

    def __init__(self):
        self.recorded = 0

    def __call__(self, call):
        self.recorded += 1
        place = None

        def replay():
            nonlocal place
            result = call()
            place = result if place is None else place.copy_(result)
            return place

        return replay


def test_a_function_is_called_first_then_replayed_and_acts_once_a_call():
    record, total = Recorder(), torch.zeros(())

    def add(x, nothing):
        assert nothing is None
        total.add_(x.sum())
        return 2 * x

    replay = Replay(add, CPU, lambda: record)
    results = [replay(torch.full((3,), float(i)), None) for i in range(FIRST + 4)]
    assert record.recorded == 1
    assert total.item() == 3 * sum(range(FIRST + 4))
    # What was returned stays as it was, though the graph's own output is written again.
    assert [r[0].item() for r in results] == [2.0 * i for i in range(FIRST + 4)]


def recorders(made):
    """Return what makes recorders, and notes them."""

    def make():
        made.append(Recorder())
        return made[-1]

    return make


def test_every_shape_has_a_recording_of_its_own_and_those_that_mix_keep_theirs():
    made = []
    replay = Replay(lambda x: x + 1, CPU, recorders(made))
    for _ in range(FIRST + 9):
        for shape in ((2,), (3,)):
            assert replay(torch.ones(shape)).tolist() == [2.0] * shape[0]
    assert [record.recorded for record in made] == [2]


def test_the_graphs_of_a_leg_are_forgotten_when_the_next_begins():
    made = []
    replay = Replay(lambda x: x + 1, CPU, recorders(made))
    for shape in ((2,), (3,), (4,)):
        for _ in range(FIRST + 3):
            assert len(replay(torch.ones(shape))) == shape[0]
        assert len(replay._recordings) == 1
    assert [record.recorded for record in made] == [1, 1, 1]


def test_shapes_that_come_again_are_recorded_once_more_and_then_kept():
    made = []
    replay = Replay(lambda x: x + 1, CPU, recorders(made))
    for _ in range(4):  # many steps of one kind between two of the other
        for shape, times in (((2,), FIRST + 4), ((3,), 1)):
            for _ in range(times):
                assert len(replay(torch.ones(shape))) == shape[0]
    assert len(replay._recordings) == 2
    # (2,) once, forgotten for (3,), then once more; (3,) in its fourth call.
    assert [record.recorded for record in made] == [1, 2]


def test_no_older_graph_is_collected_while_another_one_is_recorded(monkeypatch):
    collects = []

    @contextmanager
    def graph(*arguments, **options):
        collects.append(gc.isenabled())
        yield

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    replay = CudaRecorder(CPU)(lambda: torch.ones(1))
    assert replay().item() == 1
    assert collects == [False]
    assert gc.isenabled()


def test_what_is_no_fault_of_recording_or_compiling_stays_what_it_is():
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    replay = Replay(lambda x: x + 1, CPU, lambda: full, strict=True)
    for _ in range(FIRST):
        replay(torch.ones(1))
    with pytest.raises(torch.OutOfMemoryError):
        replay(torch.ones(1))
    with pytest.raises(torch.OutOfMemoryError):
        with_fallback(full, full, strict=True)(torch.ones(1))


def test_a_device_that_is_lost_is_told_from_what_cannot_be_recorded(device_error, capsys):
    """Both have one class, and only the second is a fault of recording."""

    def raising(number):
        def record(call):
            raise device_error(number, "said by CUDA")

        return record

    for strict, number, expected in (
        (True, 700, torch.AcceleratorError),
        (False, 700, torch.AcceleratorError),
        (True, 900, UserError),
        (True, 908, UserError),
    ):
        replay = Replay(lambda x: x + 1, CPU, partial(raising, number), strict=strict)
        for _ in range(FIRST):
            replay(torch.ones(1))
        with pytest.raises(expected):
            replay(torch.ones(1))
    assert "going on without" not in capsys.readouterr().err
    replay = Replay(lambda x: x + 1, CPU, partial(raising, 901))
    for _ in range(FIRST + 1):
        assert replay(torch.ones(1)).item() == 2
    assert "going on without: said by CUDA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("operation not permitted when stream is capturing\nmore", "not permitted when .*"),
        ("", "RuntimeError"),
    ],
)
def test_strict_is_an_error_in_place_of_other_bits(text, said, monkeypatch):
    def refuse(call):
        raise RuntimeError(text)

    replay = Replay(lambda x: x + 1, CPU, lambda: refuse, strict=True)
    for _ in range(FIRST):
        replay(torch.ones(1))
    with pytest.raises(UserError, match=rf"{said}\. To go on .* MASKDM_REPLAY=0\."):
        replay(torch.ones(1))
    monkeypatch.setenv("MASKDM_EXACT", "1")
    assert Execution.from_environment().strict
    monkeypatch.delenv("MASKDM_EXACT")
    assert not Execution.from_environment().strict


def test_where_nothing_can_be_recorded_one_line_says_so_and_all_is_computed(capsys):
    def refuse(call):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    made = []
    replay = Replay(lambda x: made.append(1) or x + 1, CPU, lambda: refuse)
    for _ in range(FIRST + 3):
        assert replay(torch.ones(1)).item() == 2.0
    assert len(made) == FIRST + 3
    assert not replay._recordings  # nor memory
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "operation not permitted" in lines[0]
    assert "more" not in lines[0]


def test_what_a_recording_that_failed_left_in_the_gradients_is_not_added_to():
    """It has the addresses of gradients that no replay will ever compute."""
    params = phase(steps=FIRST + 2)
    schedule = whole(params)
    batches = Batches(IMAGES, schedule, 4, 0.5, 0, "test")

    def run(fails):
        state = State.start(build_backbone(MODEL, 32, 3, 0), params)
        step = TrainingStep(state, DIFFUSION, params, Execution(CPU))

        def refuse(call):
            for parameter in step.parameters:
                parameter.grad = torch.full_like(parameter, 1e6)
            raise RuntimeError("operation not permitted when stream is capturing")

        if fails:
            step.replay = Replay(step.on_tensors, CPU, lambda: refuse)
        for made in range(FIRST + 2):
            state.history.add(step(batches.at(made), 8, Rates(1e-3, 0.1)))
            state.step += 1
        return state.tensors()

    expected, found = run(False), run(True)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


@pytest.mark.parametrize("shift", [None, 0.5])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_replayed_steps_train_as_launched_ones_do(shift, precision):
    params = phase(steps=9, warmup=3, precision=precision, weight_decay=0.1)
    legs = (leg(masked(0.5), params, 5), leg(nothing_masked(GRID), params, 4))
    schedule = Schedule(legs, 9, 2)
    batches = Batches(IMAGES, schedule, 4, 0.5, 0, "test")

    def run(replays):
        state = State.start(build_backbone(MODEL, 32, 3, 0), params)
        step = TrainingStep(state, DIFFUSION, params, Execution(CPU, precision=precision))
        if replays:
            step.replay = Replay(step.on_tensors, CPU, Recorder)
        for made in range(9):
            rates = Rates(schedule.learning_rate(made), 0.1 + made / 20, shift)
            state.history.add(step(batches.at(made), 8, rates))
            state.step += 1
        return state

    launched, replayed = run(False), run(True)
    expected, found = launched.tensors(), replayed.tensors()
    if precision == "fp16":  # AdamW makes a whole step of a gradient that is but rounding
        expected, found = ({"losses": t["history.losses"]} for t in (expected, found))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5, msg=name)
