"""How cost grows, measured and computed, and what is computed for GPUs that are not at hand."""

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.presets import read_preset
from benchmarks.speed import growth
from benchmarks.speed.growth import (
    BATCH,
    IMAGES,
    ROOT,
    STEPS,
    WRITE,
    Growth,
    batch_timer,
    batches_of,
    epoch_timer,
    images,
    settled,
    step,
    step_flops,
    table,
)
from benchmarks.speed.measuring import peak_memory
from benchmarks.speed.preparing import write_noise
from maskdm.data.prepared import open_prepared
from maskdm.runtime.files import write_json
from maskdm.runtime.params import merge
from stages.check import check
from tools.tables import gpus
from tools.tables.needs import needs

CELEBAHQ = read_preset(gpus.PRESET)
values = st.lists(st.integers(1, 10**6), min_size=2, max_size=5, unique=True)


# Exponents


@given(values, st.floats(-3, 3), st.floats(1e-6, 1e6))
def test_a_power_law_has_its_exponent_between_neighbours_and_over_all(values, exponent, factor):
    grown = Growth("size", "time", "s", {value: factor * value**exponent for value in values})
    assert grown.exponent() == pytest.approx(exponent, abs=1e-6)
    for pair in pairwise(values):
        assert grown.exponent(*pair) == pytest.approx(exponent, abs=1e-6)
    assert grown.computed() is None


def test_what_should_not_grow_misses_its_goal_above_a_tenth_and_a_step_has_none():
    flat, steep = ({10: 1.0, 1000: 100**exponent} for exponent in (0.09, 0.11))
    verdicts = [Growth("images", "time", "s", measured).meets_goal for measured in (flat, steep)]
    assert verdicts == [True, False]
    assert Growth("dim", "time", "s", steep, {10: 1, 1000: 2}).meets_goal


def test_the_report_has_a_row_a_value_and_the_exponents_over_all():
    grown = Growth("dim", "a step", "s", {2: 1.0, 4: 8.0, 8: 32.0}, {2: 10, 4: 40, 8: 320})
    rows = json.loads(json.dumps(grown.rows()))
    assert [(row["value"], row["measured"], row["flops"]) for row in rows] == [
        (2, 1, 10), (4, 8, 40), (8, 32, 320),
    ]  # fmt: skip
    assert [row["exponent_measured"] for row in rows] == [None, 3, 2]
    assert [row["exponent_computed"] for row in rows] == [None, 2, 3]
    assert {(row["factor"], row["quantity"], row["unit"]) for row in rows} == {
        ("dim", "a step", "s")
    }
    assert grown.overall() == {
        "factor": "dim", "quantity": "a step", "exponent_measured": 2.5, "exponent_computed": 2.5,
        "goal": None,
    }  # fmt: skip


def test_the_table_marks_what_grows_and_should_not():
    measured = {10: 1.0, 100: 1.0, 1000: 9.0}
    lines = table(
        [
            Growth("images", "steep", "s", measured),
            Growth("images", "flat", "s", {10: 1.0, 1000: 1.0}),
            Growth("dim", "a step", "s", measured, {10: 1, 100: 1, 1000: 1}),
        ]
    ).splitlines()
    assert [line.split()[0] for line in lines if "MISSED" in line] == ["overall"]
    assert "MISSED" in lines[lines.index("steep by images") + 4]


# Training steps


@pytest.mark.parametrize("factor", STEPS)
def test_a_step_varies_one_factor_of_the_demo_and_costs_what_its_tokens_say(factor, tmp_path):
    flops = {}
    for value, changes in STEPS[factor].items():
        preset = merge(read_preset("laptop"), changes)
        write_json(tmp_path / "params.yaml", preset)
        check(tmp_path / "params.yaml")
        flops[value] = step_flops(preset)
        shape = {"resolution": 32, "patch": 4, "dim": 96, "depth": 7, "images": 16, "heads": 2}
        shape |= changes.get("data", {}) | changes.get("model", {})
        tokens = (shape["resolution"] // shape["patch"]) ** 2
        batch = changes["finetune"]["batch_size"]
        matrices = (12 * 7 + 2 * 3) * shape["dim"] ** 2 * (tokens + 1)
        attention = 2 * 7 * shape["dim"] * (tokens + 1) ** 2
        ends = 2 * tokens * 3 * shape["patch"] ** 2 * shape["dim"]
        refined = (shape["resolution"] ** 2 * 9 * 3 * 3 + 2 * 64) * 32
        assert flops[value] == 3 * batch * 2 * (matrices + attention + ends + refined)
    grown = [smaller < larger for smaller, larger in pairwise(flops.values())]
    assert grown == [True] * 2
    assert len({c["finetune"]["batch_size"] for c in STEPS[factor].values()}) == 1


def test_the_step_that_is_timed_trains():
    small = {"model": {"dim": 32, "depth": 1, "heads": 1}, "finetune": {"batch_size": 2}}
    call = step(merge(read_preset("laptop"), small))
    assert [call() for _ in range(2)] == [1, 2]


# Images


def test_a_hundred_times_the_images_are_written_in_the_memory_of_few(tmp_path):
    few, many = (
        peak_memory(["python", "-c", WRITE, str(tmp_path / str(n)), str(n)], ROOT)
        for n in (10**3, 10**5)
    )
    assert many < 1.1 * few
    assert len(open_prepared(tmp_path / "100000").train) == 90_000


def test_a_timed_batch_is_of_other_images_each_time_and_of_the_first_epoch(monkeypatch):
    made = []
    batches = SimpleNamespace(images=range(900), indices=lambda _: None, at=made.append)
    measure = batch_timer(batches)
    for _ in range(20):
        measure()
    assert set(made) == set(range(900 // BATCH))


def test_every_epoch_that_is_timed_is_new_and_timed_from_its_first_batch(tmp_path):
    write_noise(tmp_path, 1000)
    batches = batches_of(tmp_path)
    asked = []
    spy = SimpleNamespace(images=batches.images, indices=asked.append)
    measure = epoch_timer(spy)
    for _ in range(3):
        measure()
    assert asked == [45, 90, 135]
    for first in (0, *asked):
        epoch = np.concatenate([batches.indices(first + step) for step in range(45)])
        assert sorted(epoch) == list(range(900))
    assert all(0.9 * number % BATCH == 0 for number in IMAGES)


def test_the_share_of_a_batch_in_an_epochs_order_is_its_share_of_the_images(monkeypatch):
    monkeypatch.setattr(growth, "interleaved", lambda timers, **_: dict.fromkeys(timers, 1.0))
    monkeypatch.setattr(growth, "nothing_to_do", lambda counts: dict.fromkeys(counts, 2.0))
    memory, batch, share, repro = images((100, 1000))
    assert share.measured == {100: BATCH / 90, 1000: BATCH / 900}
    assert batch.measured == {100: 1, 1000: 1}
    assert repro.measured == {100: 2, 1000: 2}
    assert all(10 < peak < 500 for peak in memory.measured.values())  # MiB
    assert {grown.goal for grown in (memory, batch, share, repro)} == {0.1}


@pytest.mark.slow
def test_dvc_is_content_with_a_set_of_any_size_and_notices_when_it_changes():
    with settled(300) as folder:
        kept = open_prepared(folder / "data/prepared")
        assert len(kept.train) + len(kept.heldout) == 300
        (folder / "data/prepared/train.npy").unlink()
        write_noise(folder / "data/prepared", 200)
        status = growth.execute(["dvc", "status", "prepare"], folder)
        assert "modified" in status
        assert "data/prepared" in status


# GPUs, by calculation


def test_the_stages_are_the_whole_of_the_preset():
    stages, whole = gpus.stages(CELEBAHQ), needs(CELEBAHQ)
    assert [stage.name for stage in stages] == ["90% masked", "50% masked", "whole images"]
    assert sum(stage.flops for stage in stages) == whole.masked + whole.full
    assert stages[-1].memory(1) == whole.memory
    hours = sum(stage.steps * stage.seconds(1) for stage in stages) / 3600
    assert hours == pytest.approx(whole.hours * 312 / 989)


def test_several_gpus_share_the_computing_and_each_sends_its_gradients_around_the_ring():
    stage = gpus.Stage("whole", 10, 32, int(1e18), parameters=10**8, kept=10**9)
    assert stage.adding(1) == 0
    assert stage.seconds(1) == pytest.approx(1e17 / (0.4 * 989e12))
    assert stage.computing(8) == pytest.approx(stage.seconds(1) / 8)
    assert stage.adding(8) == pytest.approx(7 / 4 * 4e8 / gpus.NVLINK)
    assert stage.seconds(8) == stage.computing(8) + stage.adding(8)


@pytest.mark.parametrize(("number", "in_flight", "each"), [(1, 16, 22), (2, 16, 26), (8, 4, 26)])
def test_a_gpu_holds_the_network_and_its_part_of_the_batch(number, in_flight, each):
    stage = gpus.Stage("whole", 10, 32, int(1e18), parameters=10**8, kept=10**9)
    assert stage.memory(number) == each * 10**8 + in_flight * 10**9


def test_hidden_patches_take_no_memory():
    masked, half, whole = gpus.stages(CELEBAHQ)
    assert half.kept == whole.kept // 2
    assert masked.kept == pytest.approx(whole.kept * 0.1, rel=0.1)


def test_the_last_row_sums_the_rows_above():
    *rows, total = [
        [cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
        for line in gpus.table().splitlines()[2:]
    ]
    for column in (1, 3, 5, 8):
        parts = sum(float(row[column]) for row in rows)
        assert float(total[column]) == pytest.approx(parts, rel=0.05)
