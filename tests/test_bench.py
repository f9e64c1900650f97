"""The benchmark's arithmetic: what its figures mean, not what they are."""

import json
import random
from itertools import chain, repeat
from pathlib import Path
from statistics import fmean, pstdev
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.presets import read_preset
from benchmarks.speed import batches, measuring, precision, stage
from benchmarks.speed.bench import PRESET
from benchmarks.speed.commands import SHORT, workspace
from benchmarks.speed.machine import machine, versions
from benchmarks.speed.measuring import (
    doubt,
    execute,
    interleaved,
    peak_memory,
    peak_memory_of_code,
    timer,
)
from benchmarks.speed.memory import bytes_needed
from benchmarks.speed.multiplies import (
    Product,
    Products,
    best_rates,
    multiplies,
    multiply,
    products,
)
from benchmarks.speed.overhead import BYTES, started, surrounding, updating
from benchmarks.speed.results import Row, table
from benchmarks.speed.training import (
    DRAWN,
    EVALUATIONS,
    Work,
    gpu_rows,
    rows_of,
    sampling,
    training_step,
)
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.backbones.uvit import UViT
from maskdm.diffusion.masking import nothing_masked
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import merge, read_params, read_section
from maskdm.runtime.threads import background_threads
from maskdm.training.batches import Batches
from maskdm.training.flops import training_flops
from maskdm.training.phases import FinetuneParams, PretrainParams
from stages.check import check

TINY = merge(read_preset("tiny"), {"model": {"refine": 0}})  # a cost of its own: test_refiner
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


LAYER = Product("output", 20, 30)


@given(share=positive, whole=st.integers(1, 64), masked=st.integers(1, 64))
def test_steps_at_one_rate_are_as_fast_as_their_flops_whatever_their_batches(share, whole, masked):
    full, part = "training step, s, whole images", "training step, s, masked"
    works = {
        full: Work(nothing, Products({LAYER: 4000 * whole}, 4000 * whole), whole, whole),
        part: Work(nothing, Products({LAYER: 1000 * masked}, 1000 * masked), masked, masked),
    }
    seconds = {name: work.products.flops / (share * 1e9) for name, work in works.items()}
    *rates, speed_up = rows_of(works, seconds, {LAYER: 1e9}, "s")
    assert [rate.ratio for rate in rates] == pytest.approx([share, share])
    assert (speed_up.value, speed_up.limit) == pytest.approx((4, 4))
    assert speed_up.name == "images/s, s, masked ÷ whole images"


def test_a_gpu_is_told_by_its_tokens_and_by_its_nominal_peak():
    works = {"a step": Work(nothing, Products({LAYER: 10**13}, 10**13), 5, 200)}
    found = gpu_rows(works, {"a step": 0.02}, {LAYER: 6e14}, "NVIDIA H100 80GB HBM3")
    assert [(row.value, row.limit) for row in found] == [
        (200 / 0.02, pytest.approx(6e14 / (10**13 / 200))),
        (pytest.approx(500), 989),
    ]
    assert len(gpu_rows(works, {"a step": 0.02}, {LAYER: 6e14}, "another")) == 1


def test_batches_are_rated_against_the_plain_way_and_against_their_noise(monkeypatch):
    taken = {"plain": 4.0, "noise": 1.0}
    timed = {}

    def measured(timers, least, most):
        timed.update(timers)
        return {name: taken.get(name.split(",")[0], 2.0) for name in timers}

    monkeypatch.setattr(batches, "interleaved", measured)
    monkeypatch.setattr(batches, "timer", lambda call, device: call)
    with background_threads(2, "batches") as threads:
        rows = batches.of_size("tiny", TINY, threads)
        assert {row.name: row.ratio for row in rows} == {
            f"batches/s, tiny, {masked} ÷ {limit}": ratio
            for masked in ("whole images", "50% masked", "75% masked", "90% masked")
            for limit, ratio in (("the plain way", 2.0), ("the noise alone", 0.5))
        }
        assert {row.value for row in rows} == {batches.MADE / 2.0}
        monkeypatch.setattr(batches, "MADE", 1)
        for call in timed.values():
            call()


def test_the_limit_is_every_product_at_its_best_and_attention_at_the_best_of_all():
    other = Product("weight", 20, 30)
    multiplied = Products({LAYER: 3000, other: 2000}, 3000 + 2000 + 1000)
    longest = 3000 / 1e6 + 2000 / 2e6 + 1000 / 2e6
    assert multiplied.best_rate({LAYER: 1e6, other: 2e6}) == pytest.approx(6000 / longest)


@pytest.mark.parametrize("of", ["output", "input", "weight"])
def test_the_best_rate_of_a_product_is_that_of_the_way_that_took_least(of):
    product = Product(of, 20, 30)
    seconds = {name: 2.0 + number for number, name in enumerate(product.ways())}
    rates = best_rates({product: 1}, 10, seconds)
    assert rates == {product: 2 * 10 * 20 * 30 / 2.0}
    calls = multiplies({product: 1}, 10, torch.float32, torch.device("cpu"))
    assert set(calls) == set(product.ways())
    assert {tuple(call().shape) for call in calls.values()} == {product.shape(10)[::2]}


def test_the_products_of_a_step_are_those_of_its_linear_layers_forward_and_backward():
    model = read_section(TINY, "model", ModelParams)
    with torch.device("meta"):
        backbone = build_backbone(model, 32, 3, seed=0)
    images, dim, tokens = 5, 32, 65
    rows = {(48, dim): 64, (dim, 48): 64, (2 * dim, dim): tokens}
    layers = [(dim, 3 * dim), (dim, dim), (dim, 4 * dim), (4 * dim, dim)]
    rows |= dict.fromkeys(layers, 3 * tokens)
    forward = products(backbone, 64, images, flops=1, step=False).linear
    assert forward == {
        Product("output", *layer): 2 * images * count * layer[0] * layer[1]
        for layer, count in rows.items()
    }
    flops = training_flops(backbone, 64, images)
    both = products(backbone, 64, images, flops, step=True).linear
    assert sum(both.values()) == 3 * sum(forward.values())
    attention = 3 * images * 2 * 2 * 3 * dim * tokens**2
    assert flops - sum(both.values()) == attention


@pytest.mark.parametrize("way", ["", "A", "B"])
def test_a_product_is_the_product_however_its_matrices_lie(way):
    call = multiply((3, 4, 5), way, torch.float32, torch.device("cpu"))
    a, b = call.args
    assert (tuple(a.shape), tuple(b.shape)) == ((3, 4), (4, 5))
    assert [a.is_contiguous(), b.is_contiguous()] == [way != "A", way != "B"]
    torch.testing.assert_close(call(), a @ b)


def test_the_step_that_is_timed_is_a_step_of_the_training_loop():
    params = read_section(TINY, "finetune", FinetuneParams)
    work = training_step(TINY, nothing_masked(8), params)
    assert [work.call() for _ in range(2)] == [1, 2]
    dim, tokens = 32, 65  # 3 blocks, 1 skip, patches of 48 numbers
    forward = 2 * ((12 * 3 + 2) * dim**2 * tokens + 2 * 3 * dim * tokens**2 + 2 * 64 * 48 * dim)
    assert work.products.flops == 3 * forward * params.batch_size
    assert (work.images, work.tokens) == (params.batch_size, 64 * params.batch_size)


def test_the_sampling_that_is_timed_evaluates_the_network_as_often_as_it_is_credited(monkeypatch):
    called = []
    forward = UViT.forward
    monkeypatch.setattr(
        UViT, "forward", lambda self, x, *rest: called.append(len(x)) or forward(self, x, *rest)
    )
    work = sampling(TINY, torch.device("cpu"))
    called.clear()  # those that counted products
    work.call()
    assert called == [DRAWN] * EVALUATIONS
    backbone = build_backbone(read_section(TINY, "model", ModelParams), 32, 3, seed=0)
    assert work.products.flops == sum(called) * backbone.forward_flops(64)


def test_the_update_that_is_timed_changes_weights_and_average_and_touches_what_is_counted():
    state = started(TINY, torch.device("cpu"))
    held = [
        *(p.detach() for p in state.backbone.parameters()),
        *state.averaged.values(),
        *state.optimiser.moments.values(),
        *state.optimiser.second_moments.values(),
    ]
    before = [tensor.clone() for tensor in held]
    updating(state)()
    assert not any(torch.equal(a, b) for a, b in zip(before, held, strict=True))
    read_and_written = 2 * sum(tensor.nbytes for tensor in held)
    gradients = sum(p.numel() * 4 for p in state.backbone.parameters())
    assert read_and_written + gradients == BYTES * sum(
        p.numel() for p in state.backbone.parameters()
    )


def test_what_is_timed_beside_a_step_goes_on_from_step_to_step(tmp_path, monkeypatch):
    steps = []
    at = Batches.at
    monkeypatch.setattr(
        Batches, "at", lambda self, step, **on: steps.append(step) or at(self, step)
    )
    params = read_section(TINY, "finetune", FinetuneParams)
    state = started(TINY, torch.device("cpu"))
    surround = surrounding(TINY, nothing_masked(8), params, state, tmp_path)
    for _ in range(2 * params.log_every):
        surround()
    assert steps == list(range(2 * params.log_every))


def test_needed_memory_is_the_weights_five_times_and_what_a_forward_pass_keeps():
    params = read_section(TINY, "finetune", FinetuneParams)
    one, two = (
        bytes_needed(TINY, nothing_masked(8), params.model_copy(update={"batch_size": n}))
        for n in (8, 16)
    )
    backbone = build_backbone(read_section(TINY, "model", ModelParams), 32, 3, seed=0)
    weights = 20 * sum(p.numel() for p in backbone.parameters())
    kept = one - weights
    assert two - weights == pytest.approx(2 * kept, rel=1e-3)
    # Of a token a block keeps: both norms' outputs and inputs, q, k, v, attention's output, and
    # the MLP's four times wider values before and after the activation.
    block = 4 * 32 * (2 + 2 + 3 + 1 + 8)
    assert 8 * 65 * 3 * block == pytest.approx(kept, rel=0.25)


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

    def finish(device):
        clock[0] += seconds * len(queued)
        queued.clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring.time, "perf_counter", lambda: clock[0])
        patch.setattr(measuring, "finish", finish)
        measure = timer(lambda: queued.append(1), torch.device("cpu"))
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


def test_peak_memory_of_code_counts_what_it_held_for_a_while():
    nothing, something = (
        peak_memory_of_code(code, Path()) for code in ("pass", "held = b'x' * 2**28; del held")
    )
    assert 0.24 < something - nothing < 0.26


@pytest.mark.slow
def test_a_stage_is_timed_with_the_checkpoints_that_it_saves(monkeypatch):
    monkeypatch.setattr(stage, "STEPS", 6)
    monkeypatch.setattr(stage, "SAVE", 3)
    ran = []

    def measure(timers, **_):
        ran.append(timers["staged"]())
        return {"alone": 0.25, "staged": 0.5}

    execute, saved = stage.execute, []

    def keep(command, folder):
        said = execute(command, folder)
        if "stages.pretrain" in command:
            saved.append((folder / "reports/timing/pretrain.json").read_text())
            saved.append(command)
        return said

    monkeypatch.setattr(stage, "interleaved", measure)
    monkeypatch.setattr(stage, "execute", keep)
    (row,) = stage.stage(TINY)
    batch = read_section(TINY, "pretrain", PretrainParams).batch_size
    assert (row.value, row.limit) == (2 * batch, 4 * batch)
    timing, command = json.loads(saved[0]), saved[1]
    assert timing["steps_computed"] == 6
    assert ran == [timing["seconds"] / 6]
    assert "MASKDM_CHECKPOINT_STEPS=3" in command


def test_a_command_that_fails_says_what_it_said():
    with pytest.raises(UserError, match="exit 3 failed:\nno such luck"):
        execute(["sh", "-c", "echo no such luck; exit 3"], Path())


def test_the_short_demo_is_valid_and_keeps_what_memory_depends_on():
    whole = read_preset(PRESET)
    with workspace(whole, SHORT) as folder:
        check(folder / "params.yaml")
        short = read_params(folder / "params.yaml")
    for section, values in SHORT.items():
        assert short[section] == whole[section] | values
        assert not {"resolution", "channels", "batch_size", "precision"} & set(values)
    assert {name: part for name, part in short.items() if name not in SHORT} == {
        name: part for name, part in whole.items() if name not in SHORT
    }


def test_the_machine_and_the_versions_are_told():
    assert set(machine()) == {"cpu", "cores", "memory", "device", "threads"}
    assert versions()["torch"] == torch.__version__


def test_bf16_is_compared_with_fp32_step_by_step(monkeypatch):
    asked, seconds = [], {"masked bf16": 2.0, "masked fp32": 1.0}
    seconds |= {"whole images bf16": 0.25, "whole images fp32": 0.5}

    def training_step(preset, mask, params):
        asked.append((mask.visible, params.batch_size, params.precision))
        return SimpleNamespace(call=lambda: None)

    def interleaved(timers, least, most):
        assert timers.keys() == seconds.keys()
        return seconds

    monkeypatch.setattr(precision, "training_step", training_step)
    monkeypatch.setattr(precision, "timer", lambda call, device: call)
    monkeypatch.setattr(precision, "interleaved", interleaved)
    masked, whole = precision.precision(read_preset("laptop"))
    assert (masked.ratio, masked.meets_goal) == (0.5, False)
    assert (whole.ratio, whole.meets_goal) == (2.0, True)
    assert [kind for *_, kind in asked] == ["bf16", "fp32"] * 2
    assert asked[0][:2] == asked[1][:2] != asked[2][:2] == asked[3][:2]
