"""The benchmark's arithmetic: what its figures mean, not what they are."""

import json
import random
from itertools import chain, repeat
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import measuring
from benchmarks.commands import SHORT, workspace
from benchmarks.measuring import doubt, execute, interleaved, peak_memory, timer
from benchmarks.rows import Row, table
from benchmarks.speed import PRESET, machine, versions
from benchmarks.training import Work, training_rows, training_step
from maskdm.errors import UserError
from maskdm.masking import nothing_masked
from maskdm.params import read_params, read_section
from maskdm.phases import FinetuneParams
from stages.check import check

TINY = Path("presets/tiny.yaml")
positive = st.floats(1e-3, 1e3)


def nothing() -> None:
    pass


def row(ratio: float, goal: float, higher_is_better: bool) -> Row:
    return Row("a row", 3 * ratio, "s", 3.0, goal, higher_is_better)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_goal_is_met_on_its_better_side_and_on_the_point(higher_is_better):
    assert row(0.9, 0.8, higher_is_better).meets_goal is higher_is_better
    assert row(0.7, 0.8, higher_is_better).meets_goal is not higher_is_better
    assert row(0.5, 0.5, higher_is_better).meets_goal


def test_the_table_marks_the_rows_that_miss_their_goal_and_no_others():
    lines = table([row(0.9, 0.8, True), row(0.9, 0.8, False)]).splitlines()[1:]
    assert ["MISSED" in line for line in lines] == [False, True]


def test_a_record_has_the_columns_of_the_report_and_a_number_for_a_goal():
    record = json.loads(json.dumps(Row("a row", 1 / 3, "s", 2, 1.5, False).record()))
    assert record == {
        "name": "a row", "value": 0.3333, "unit": "s", "limit": 2, "ratio": 0.1667, "goal": 1.5,
        "higher_is_better": False,
    }  # fmt: skip


@given(share=positive, best=positive, whole=st.integers(1, 64), masked=st.integers(1, 64))
def test_steps_at_one_rate_are_as_fast_as_their_flops_whatever_their_batches(
    share, best, whole, masked
):
    steps = {
        "whole": Work(nothing, 4000 * whole, whole),
        "masked": Work(nothing, 1000 * masked, masked),
    }
    multiplies = {"slow": Work(nothing, 100), "best": Work(nothing, 500), "last": Work(nothing, 9)}
    seconds = {name: work.flops / (share * best) for name, work in steps.items()}
    seconds |= {"slow": 200 / best, "best": 500 / best, "last": 10 / best}
    *rates, speed_up = training_rows(steps, multiplies, seconds)
    assert [rate.ratio for rate in rates] == pytest.approx([share, share])
    assert [speed_up.value, speed_up.limit] == pytest.approx([4, 4])
    assert speed_up.goal * speed_up.limit == pytest.approx(3.3)


def test_the_step_that_is_timed_is_a_step_of_the_training_loop():
    params = read_section(TINY, "finetune", FinetuneParams)
    work = training_step(TINY, nothing_masked(8), params, torch.device("cpu"))
    assert [work.call().step for _ in range(2)] == [1, 2]
    dim, tokens = 32, 65  # 3 blocks, 1 skip, patches of 48 numbers
    forward = 2 * ((12 * 3 + 2) * dim**2 * tokens + 2 * 3 * dim * tokens**2 + 2 * 64 * 48 * dim)
    assert (work.flops, work.images) == (3 * forward * params.batch_size, params.batch_size)


def test_measurements_take_turns_and_outliers_leave_the_medians_alone():
    turns, a, b = [], iter([1, 1, 99, 1, 1]), repeat(2)
    measurements = {
        "a": lambda: turns.append("a") or next(a),
        "b": lambda: turns.append("b") or next(b),
    }
    medians = interleaved(measurements, least=5, most=50)
    assert medians == {"a": 1, "b": 2}
    assert turns == ["a", "b"] * 5


def test_measuring_goes_on_until_the_medians_stand_still_or_the_rounds_are_used_up(capsys):
    settling = chain([5, 1] * 5, repeat(2))
    assert interleaved({"a": lambda: next(settling)}, least=3, most=1000) == {"a": 2}
    assert next(settling) == 2
    rounds = iter(range(1000))
    interleaved({"a": lambda: 1 + next(rounds) % 2}, least=3, most=20)
    assert next(rounds) == 20
    assert "20 of 3 to 20 rounds, medians ±" in capsys.readouterr().err


def test_doubt_is_the_standard_error_of_the_least_certain_median():
    rng = random.Random(0)
    samples = [sorted(rng.gauss(10, 2) for _ in range(41)) for _ in range(1000)]
    spread = pstdev(sample[20] for sample in samples) / 10
    told = fmean(doubt({"noisy": sample, "steady": [10.0, 10.0]}) for sample in samples)
    assert told == pytest.approx(spread, rel=0.1)


@given(seconds=st.floats(1e-6, 10))
def test_a_timer_tells_the_seconds_of_one_call_and_waits_for_the_device(seconds):
    clock, queued = [0.0], []

    def finish():
        clock[0] += seconds * len(queued)
        queued.clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring.time, "perf_counter", lambda: clock[0])
        measure = timer(lambda: queued.append(1), finish)
        queued.append("of before")
        before = clock[0]
        assert measure() == pytest.approx(seconds, rel=1e-3)
        assert clock[0] - before >= min(measuring.SHORTEST, seconds) * 0.9


def test_peak_memory_is_the_largest_descendants_and_not_the_benchmarks_own():
    own = b"x" * 2**29
    inner = "python -c \"held = b'x' * 2**28\""
    peak = peak_memory(["sh", "-c", f"{inner}; true"], Path())
    assert 0.25 < peak < 0.35
    assert len(own) == 2**29


def test_a_command_that_fails_says_what_it_said():
    with pytest.raises(UserError, match="exit 3 failed:\nno such luck"):
        execute(["sh", "-c", "echo no such luck; exit 3"], Path())


def test_the_short_demo_is_valid_and_keeps_what_memory_depends_on():
    with workspace(PRESET, SHORT) as folder:
        check(folder / "params.yaml")
        short, whole = read_params(folder / "params.yaml"), read_params(PRESET)
    for section, values in SHORT.items():
        assert short[section] == whole[section] | values
        assert not {"size", "channels", "batch_size", "precision"} & set(values)
    assert {name: part for name, part in short.items() if name not in SHORT} == {
        name: part for name, part in whole.items() if name not in SHORT
    }


def test_the_machine_and_the_versions_are_told():
    assert set(machine()) == {"cpu", "cores", "memory", "device", "threads"}
    assert versions()["torch"] == torch.__version__
