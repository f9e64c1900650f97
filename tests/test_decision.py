"""The deciding experiments: equal budgets, tuning apart from the test, and the statistics."""

import json
import os
import re
import shutil
from collections import defaultdict
from dataclasses import replace
from math import log
from statistics import geometric_mean, mean, stdev
from threading import Barrier
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.evidence import by_image, decided, decision, matrix
from benchmarks.evidence.decision import LARGE, SCRATCH, SMALL, TESTS, runs_of_test
from benchmarks.evidence.matrix import datasets
from benchmarks.evidence.plan import (
    Run,
    network_of,
    plan,
    points,
    pretraining,
    primer_of,
    read_matrix,
    runs_of,
    settings_of,
    whole_step,
)
from benchmarks.evidence.regimes import EXACT, LEAST, MIXED, MOST, PARTS, factor, of_part, regimes
from benchmarks.evidence.results import read_results
from benchmarks.evidence.saved import before_cooling, courses, saved
from benchmarks.evidence.saved import of_part as courses_of
from maskdm.diffusion.paths import PATHS
from maskdm.runtime.errors import UserError
from maskdm.training.flops import flops_before
from maskdm.training.phases import FinetuneParams, finetuning_schedule
from maskdm.training.validation import HALF_LOG_SNRS, HeldOutValidator
from tests.support.graph import ROOT
from tools.report import saved as saved_charts
from tools.report.regimes import names as names_on_map
from tools.tables import decision as decision_tables

MATRIX = read_matrix()
REDUCED = "reduced"
PLANNED = [run for part in (SMALL, *TESTS, *LARGE, REDUCED) for run in runs_of(MATRIX, part)]


def budget(run):
    return run.of * MATRIX["parts"][run.part]["budget"]


def spent(run):
    """Return the training FLOPs of both phases of a run."""
    params = plan(MATRIX, run)
    masked = 0
    if params["pretrain"]["steps"]:
        primed = primer_of(settings_of(MATRIX, run))
        schedule = pretraining({**params, "data": primed["data"]})
        masked = flops_before(network_of(primed), schedule, schedule.steps)
    return masked, params["finetune"]["steps"] * whole_step(params)


@pytest.mark.parametrize("part", [SMALL, *TESTS, REDUCED])
def test_every_run_spends_its_budget_in_the_shares_that_it_has(part):
    for run in runs_of(MATRIX, part):
        masked, whole = spent(run)
        step = whole_step(plan(MATRIX, run))
        assert masked + whole == pytest.approx(budget(run), abs=3 * step), run
        assert masked == pytest.approx(run.share * budget(run), abs=3 * step), run


def test_warm_up_cool_down_and_average_are_the_same_shares_for_every_arm():
    for run in PLANNED:
        params = plan(MATRIX, run)
        first, last = params["pretrain"], params["finetune"]
        total = budget(run) / whole_step(params)
        spending = MATRIX["parts"][run.part]["spending"]
        assert last["cooldown"] == pytest.approx(spending["cooldown"] * total, abs=1)
        assert last["ema_images"] == pytest.approx(
            spending["average"] * last["steps"] * last["batch_size"], abs=1
        )
        opening = first if run.share else last
        assert opening["warmup"] == pytest.approx(spending["warmup"] * total, abs=1)
        if run.share and last["optimiser"] == "kept":
            assert last["warmup"] == 0
        grid = params["data"]["resolution"] // params["model"]["patch"]
        finetuning_schedule(FinetuneParams(**last), grid)  # they fit


@pytest.mark.parametrize("tuning", ["decision-8-tuning", "decision-tuning"])
def test_the_rivals_primer_has_images_of_half_the_side_and_a_quarter_of_the_tokens(tuning):
    run = next(run for run in PLANNED if (run.part, run.arm) == (tuning, "low-res-kept"))
    dataset = MATRIX["datasets"][run.dataset]
    assert datasets(MATRIX, run) == [run.dataset, dataset["half_as_large"]]
    primed = primer_of(settings_of(MATRIX, run))
    assert primed["data"]["resolution"] * 2 == plan(MATRIX, run)["data"]["resolution"]
    leg = pretraining({**plan(MATRIX, run), "data": primed["data"]}).legs[0]
    whole = plan(MATRIX, run)["data"]["resolution"] // plan(MATRIX, run)["model"]["patch"]
    assert leg.mask.visible == leg.mask.grid**2 == whole**2 // 4


@pytest.mark.parametrize("tuning", TESTS)
def test_all_arms_have_as_many_cells_and_scratch_has_no_fewer(tuning):
    counts = {}
    for run in runs_of(MATRIX, tuning):
        counts.setdefault((run.dataset, run.arm), []).append(run)
        assert run.dataset.endswith(decision.SUFFIX)
        assert run.seed not in decision.SEEDS
    sizes = {key: len(runs) for key, runs in counts.items()}
    arms = {size for (_, arm), size in sizes.items() if arm != SCRATCH}
    assert len(arms) == 1
    assert all(sizes[key] >= min(arms) for key in sizes if key[1] == SCRATCH)
    # Tuned at half of what is tested.
    assert MATRIX["parts"][tuning]["budget"] * 2 == MATRIX["parts"][TESTS[tuning]]["budget"]


@pytest.mark.parametrize("tuning", TESTS)
def test_the_test_takes_the_best_of_the_tuning_and_pairs_half_with_whole(tuning):
    runs, best = runs_of_test(tuning), decision.chosen(tuning)
    for (dataset, arm), (tuned, *others) in best.items():
        ends = [
            (result.curves["error"][-1][1], result.run)
            for result in read_results(tuning)
            if (result.run.dataset, result.run.arm) == (dataset + decision.SUFFIX, arm)
        ]
        assert min(error for error, _ in ends) == next(e for e, run in ends if run == tuned)
        own = [run for run in runs if (run.dataset, run.arm) == (dataset, arm)]
        assert {run.seed for run in own} == set(decision.SEEDS)
        assert max(run.of for run in own) == (1.0 if arm == SCRATCH else 0.5)
        # Scratch has what was second, too, at the whole budget.
        second = others[:1] if arm == SCRATCH else []
        assert {(run.tuning, run.share) for run in own} == {
            (run.tuning, run.share) for run in (tuned, *second)
        }
        assert {run.of for run in own if run.tuning != tuned.tuning} <= {1.0}
    seeds, scratches = len(decision.SEEDS), sum(arm == SCRATCH for _, arm in best)
    assert len(runs) == seeds * (2 * len(best) + scratches)  # none where nothing was chosen yet
    deciding = runs[: seeds * len(best)]  # those come first
    assert {run.of for run in deciding} == {1.0 if arm == SCRATCH else 0.5 for _, arm in best}
    assert {run.tuning for run in deciding} == {runs[0].tuning for runs in best.values()}
    assert best or tuning != "decision-tuning"
    for run in runs:
        assert points(MATRIX, run) == [plan(MATRIX, run)["finetune"]["steps"]]


@pytest.fixture
def parts(monkeypatch):
    """Two parts, each of a run, of which one is there; what is made and trained, in order."""
    done = []
    there, missing = (run for run in runs_of(MATRIX, SMALL)[:2])
    monkeypatch.setattr(decision, "NAMED", (SMALL,))
    monkeypatch.setattr(decision, "TESTS", {})
    monkeypatch.setattr(decision, "LARGE", ("large",))
    monkeypatch.setattr(decision, "runs_of", lambda _, part: [there, replace(missing, part=part)])
    monkeypatch.setattr(decision, "is_there", lambda _, run: run is there)

    def make(_, runs):
        done.extend(run.dataset for run in runs)

    monkeypatch.setattr(decision, "make_images", make)

    def train(_, runs, *__):
        done.extend(run.part for run in runs if not decision.is_there(_, run))

    monkeypatch.setattr(decision, "train_missing", train)
    return done


def test_images_are_made_for_what_is_missing_alone(parts, monkeypatch):
    decision.main(large=True)
    assert parts == [missing := runs_of(MATRIX, SMALL)[1].dataset, "large", missing, SMALL]
    parts.clear()
    monkeypatch.setattr(decision, "is_there", lambda *_: True)
    decision.main(large=True)
    assert parts == []


def test_a_part_that_fails_does_not_keep_the_next_from_being_trained(parts, monkeypatch):
    def train(_, runs, *__):
        parts.append(runs[-1].part)
        raise UserError(f"{runs[-1].part} failed.")

    monkeypatch.setattr(decision, "train_missing", train)
    with pytest.raises(UserError, match=rf"large failed\. {SMALL} failed\."):
        decision.main(large=True)
    assert [part for part in parts if part in (SMALL, "large")] == ["large", SMALL]
    monkeypatch.setattr(decision, "make_images", Mock(side_effect=UserError("no font.")))
    with pytest.raises(UserError, match=r"no font\. no font\."):
        decision.main(large=True)


def test_no_long_run_is_begun_late(parts, monkeypatch):
    clock = iter([0.0, 200.0, 201.0])
    monkeypatch.setattr(decision, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    decision.main(minutes=6, large=True)
    assert SMALL in parts
    assert "large" not in parts


def test_what_is_paired_with_a_new_run_is_computed_anew_if_it_was_on_other_images(
    parts, tmp_path, monkeypatch
):
    """A machine whose fonts or decoders draw otherwise must not compare with our pictures."""
    kept = read_results("decision-8")[0]
    there, trained = kept.run, []
    new = replace(there, seed=99)
    copied = tmp_path / f"runs/{there.name}.json"
    copied.parent.mkdir(parents=True)
    shutil.copy(kept.path, copied)
    monkeypatch.setattr(matrix, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(matrix, "WORK", tmp_path / "work")

    def make(dataset, own, features):
        about = tmp_path / dataset / "data/prepared/dataset.json"
        about.parent.mkdir(parents=True)
        about.write_text(json.dumps({"hash": "another"}))

    monkeypatch.setattr(matrix, "SETS", tmp_path)
    monkeypatch.setattr(matrix, "train", lambda run, *_: trained.append(run) or True)
    for name in ("is_there", "make_images", "train_missing"):
        monkeypatch.setattr(decision, name, getattr(matrix, name))
    monkeypatch.setattr(decision, "runs_of", lambda *_: [there])
    decision.main()
    assert trained == []
    monkeypatch.setattr(decision, "runs_of", lambda *_: [there, new])
    monkeypatch.setattr(matrix.images, "make", make)
    decision.main(jobs=1)
    assert trained == [there, new]


def test_features_are_of_images_to_which_distances_are_measured_alone(monkeypatch):
    made = {}
    monkeypatch.setattr(
        matrix.images, "make", lambda dataset, own, features: made.update({dataset: features})
    )
    tuned, tested = (
        next(run for run in runs_of(MATRIX, part) if run.arm == arm)
        for part, arm in (("decision-8-tuning", "low-res-kept"), (SMALL, "block-75"))
    )
    rival = replace(tuned, part="decision-8", dataset="openmoji-64")
    matrix.make_images(MATRIX, [tuned, tested, rival])
    assert made == {
        "openmoji-64-tuning": False,
        MATRIX["datasets"]["openmoji-64-tuning"]["half_as_large"]: False,
        "openmoji": True,
        "openmoji-64": True,
        MATRIX["datasets"]["openmoji-64"]["half_as_large"]: False,
    }


def test_a_test_is_not_begun_before_its_tuning_is_complete(monkeypatch):
    """What did best of some cells need not be the best of all: such runs would be in the way."""
    tuning = "decision-8-tuning"
    assert decision.tested(MATRIX, tuning) == runs_of_test(tuning)
    missing = runs_of(MATRIX, tuning)[-1]
    monkeypatch.setattr(decision, "is_there", lambda _, run: run != missing)
    with pytest.raises(UserError, match=r"decision-8 is not begun: .* of which 1 runs are missing"):
        decision.tested(MATRIX, tuning)


@pytest.mark.parametrize("done", [[], ["scratch"]])
def test_a_result_that_does_not_hold_any_more_is_put_aside_before_others_are_trained(
    done, tmp_path, monkeypatch
):
    """Whoever stops the runs half-way must not have old ones compared with new ones."""
    monkeypatch.setattr(matrix, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(matrix, "WORK", tmp_path / "work")
    runs = [one for one in runs_of(MATRIX, REDUCED) if one.seed == 1]
    for run in runs:
        for suffix in (".json", ".png"):
            path = tmp_path / f"runs/{run.name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(run.arm)
    monkeypatch.setattr(matrix, "is_there", lambda _, run: run.arm in done)
    monkeypatch.setattr(matrix, "train", lambda *_: True)
    matrix.train_missing(MATRIX, runs, jobs=1)
    left = {path.read_text() for path in (tmp_path / "runs").rglob("*.*") if path.is_file()}
    assert left == set(done)
    for run in runs:
        aside = tmp_path / f"work/former/{run.name}.json"
        assert aside.exists() == (run.arm not in done)


@pytest.mark.parametrize("other", ["images", "measure"])
def test_results_of_other_images_or_another_measure_are_no_pair(other):
    results = read_results(SMALL)
    first = next(
        one for one in results if one.run.arm == SCRATCH and one.run.seed in decision.SEEDS
    )
    rest = [one for one in results if one is not first]
    images = replace(first, legs=[{**leg, "data": "other"} for leg in first.legs])
    bf16 = {**first.params, "finetune": {**first.params["finetune"], "precision": "bf16"}}
    changed = {"images": images, "measure": replace(first, params=bf16)}[other]
    rows = decided.comparisons([changed, *rest])
    group = {"dataset": first.run.dataset, "against": first.run.tuning}
    seeds = {tuple(row["seeds"]) for row in rows if group.items() <= row.items()}
    (found,) = seeds
    assert first.run.seed not in found
    assert len(found) >= decided.LEAST


def test_results_are_taken_as_they_are_where_their_images_are_not(tmp_path, monkeypatch):
    run = read_results("decision-8")[0].run
    monkeypatch.setattr(matrix, "SETS", tmp_path)
    assert matrix.is_there(MATRIX, run)
    about = tmp_path / run.dataset / "data/prepared/dataset.json"
    about.parent.mkdir(parents=True)
    about.write_text(json.dumps({"hash": "another"}))
    assert not matrix.is_there(MATRIX, run)


@pytest.mark.parametrize(
    ("count", "shown", "asked", "expected"),
    [
        (4, None, None, ["0", "1", "2", "3", "0"]),
        (2, "3,GPU-5", None, ["3", "GPU-5", "3", "GPU-5", "3"]),
        (1, None, None, [None] * 5),
        (0, None, None, [None] * 5),
        (4, None, "cuda:1", [None] * 5),
    ],
)
def test_runs_at_a_time_take_gpus_by_turns(count, shown, asked, expected, tmp_path, monkeypatch):
    for name, value in {"CUDA_VISIBLE_DEVICES": shown, "MASKDM_DEVICE": asked}.items():
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    given = []

    def train(run, threads, gpu):
        given.append(gpu)
        barrier.wait(60)
        return True

    barrier = Barrier(5)
    for name in ("RUNS", "WORK"):
        monkeypatch.setattr(matrix, name, tmp_path)
    monkeypatch.setattr(matrix, "train", train)
    monkeypatch.setattr(matrix, "is_there", lambda *_: False)
    matrix.train_missing(MATRIX, runs_of(MATRIX, SMALL)[:5], jobs=5)
    assert sorted(given, key=str) == sorted(expected, key=str)


def test_a_run_sees_the_gpu_that_it_is_given_and_leaves_with_who_started_it(tmp_path, monkeypatch):
    seen = {}
    ended = SimpleNamespace(returncode=0)
    monkeypatch.setattr(matrix, "WORK", tmp_path)
    monkeypatch.setattr(matrix.subprocess, "run", lambda *_, env, **__: seen.update(env) or ended)
    assert matrix.train(runs_of(MATRIX, SMALL)[0], 2, "GPU-5")
    assert seen["CUDA_VISIBLE_DEVICES"] == "GPU-5"
    assert seen["MASKDM_PARENT"] == str(os.getpid())
    assert seen["OMP_NUM_THREADS"]


def test_a_difference_is_paired_by_seed_and_tested_on_one_side():
    pairs = [(1.0, 1.2), (2.0, 2.1), (1.5, 1.8), (0.9, 1.0)]
    found = decided.paired(pairs)
    differences = [a - b for a, b in pairs]
    assert found["mean"] == pytest.approx(sum(differences) / 4)
    expected = stats.ttest_1samp(differences, 0.0, alternative="less")
    assert found["p"] == pytest.approx(expected.pvalue)
    low, high = found["interval"]
    assert low < found["mean"] < high < 0
    assert decided.paired([(b, a) for a, b in pairs])["p"] == pytest.approx(1 - found["p"])


def test_a_family_that_is_not_complete_is_corrected_as_if_it_were():
    assert decided.holm([0.02, 0.01], 4) == pytest.approx([0.06, 0.04])
    arm = [one for one in read_results(SMALL) if one.run.dataset == "openmoji"]
    of_one_set = [row for row in decided.comparisons(arm) if "p_holm" in row]
    smallest = min(of_one_set, key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(4 * smallest["p"])


def test_holm_corrects_the_smallest_most_and_keeps_the_order():
    assert decided.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert decided.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert decided.holm([]) == []


def test_the_committed_report_is_that_of_the_committed_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(decided, "REPORT", tmp_path / "decision.json")
    decided.main()
    kept = json.loads((ROOT / "reports/decision.json").read_text())
    assert json.loads((tmp_path / "decision.json").read_text()) == kept
    for row in kept["comparisons"]:
        assert len(row["seeds"]) >= decided.LEAST
        assert len(row["values"]) == len(row["scratch"]) == len(row["seeds"])


def test_a_quarter_of_an_hour_asks_the_question_of_the_decision_with_pairs_enough():
    runs = runs_of(MATRIX, REDUCED)
    by_arm = {arm: [run for run in runs if run.arm == arm] for arm in (SCRATCH, "block-75")}
    assert {run.of for run in by_arm[SCRATCH]} == {1.0}
    assert {run.of for run in by_arm["block-75"]} == {0.5}
    seeds = [{run.seed for run in of_arm} for of_arm in by_arm.values()]
    assert seeds[0] == seeds[1]
    assert len(seeds[0]) >= decided.LEAST
    # 3e13 FLOPs are the demo, which takes about as long.
    assert sum(map(budget, runs)) <= 3e13


@pytest.mark.parametrize(
    ("interval", "better", "within"),
    [
        ((-2, -1), "yes", "yes"),
        ((-2, 4), "not decided", "yes"),
        ((1, 4), "no", "yes"),
        ((1, 8), "no", "not decided"),
        ((6, 8), "no", "no"),
        ((-1, 8), "not decided", "not decided"),
    ],
)
def test_a_wide_interval_decides_nothing(interval, better, within):
    assert decided.verdict(*interval) == better
    assert decided.verdict(*interval, allowed=5) == within


def test_the_question_is_a_family_for_each_arm_and_setting_of_scratch_and_the_rest_describes():
    rows = decided.comparisons(read_results(SMALL))
    asked = [row for row in rows if "p_holm" in row]
    assert {row["measure"] for row in asked} == {"error", "kid"}
    assert {(row["of"], row["against_of"]) for row in asked} <= {(0.5, 1.0), (1.0, 1.0)}
    for against in ("lr-10_batch-8", "lr-10_batch-16"):
        family = [row for row in asked if (row["of"], row["against"]) == (0.5, against)]
        assert len(family) == 2 * 2  # sets, measures
        assert [row["p_holm"] for row in family] == decided.holm([row["p"] for row in family])
    assert {row["measure"] for row in rows} == {"error", "kid", "fd"}


def test_every_row_says_how_often_each_phase_saw_its_training_set():
    rows = decided.comparisons(read_results(SMALL))
    for row in rows:
        of_set = {"openmoji": 4135, "glyphs-32": 10819}[row["dataset"]]
        for images, epochs in zip(row["images"], row["epochs"], strict=True):
            assert epochs == pytest.approx([count / of_set for count in images])
    rival = next(one for one in read_results("decision-8-tuning") if "low-res" in one.run.arm)
    assert len(decided.tuned(rival)["epochs"]) == 2
    # A result of before it was kept says nothing, rather than something wrong.
    assert decided.epochs(replace(rival, about=rival.about | {"training_images": {}})) == []


def test_what_the_page_says_of_raw_and_averaged_weights_is_what_the_runs_say():
    rows = [
        row
        for row in json.loads((ROOT / "reports/decision.json").read_text())["tuning"]
        if row["part"] == "decision-8-tuning"
    ]
    apart = [100 * abs(row["raw"] / row["error"] - 1) for row in rows]
    said = (
        f"by {mean(apart):.2f} % in the mean and at most {max(apart):.1f} % "
        f"in the {len(rows)} runs of the tuning with patches of 8"
    )
    assert said in (ROOT / "docs/evidence.md").read_text()


def test_the_headline_takes_scratchs_best_setting_and_has_what_is_decided_in_bold(
    tmp_path, monkeypatch
):
    def row(measure, against, scratch, mean, interval, against_of=1.0, arm="block-75", p=None):
        shared = {"part": SMALL, "dataset": "openmoji", "arm": arm, "share": 0.5, "of": 0.5}
        compared = {"measure": measure, "against": against, "against_of": against_of}
        compared |= {"seeds": [1, 2, 3], "flops": [1.001e13, 2e13]}
        holm = {} if p is None else {"p_holm": p, "p_worse_holm": 1 - p}
        return shared | compared | holm | {"scratch": [scratch], "mean": mean, "interval": interval}

    rows = [
        row("error", "worse", 2.0, -1.0, [-1.1, -0.9], p=0.01),
        row("kid", "worse", 1.0, -0.9, [-1, -0.8], p=0.01),
        row("error", "best", 1.0, -0.02, [-0.03, -0.01], p=0.02),
        row("kid", "best", 0.4, 0.1, [0.05, 0.15], p=0.99),
        row("error", "best", 1.0, 0.5, [0.4, 0.6], against_of=0.5),  # describes
        row("kid", "best", 1.0, 0.0, [-1, 1], against_of=0.5),
        row("error", "best", 1.0, -0.9, [-1, -0.8], arm="rival"),
    ]
    shared = {key: rows[2][key] for key in ("part", "dataset", "arm", "share", "of")}
    alike = [
        shared
        | {"against": against, "against_of": of, "mean": log(1 + by), "interval": [0, log(2)]}
        for against, of, by in (("worse", 1.0, 0.7), ("best", 1.0, -0.1), ("best", 0.5, 0.2))
    ]
    report = {"comparisons": rows, "geometric": alike}
    (tmp_path / "decision.json").write_text(json.dumps(report))
    monkeypatch.setattr(decision_tables, "REPORT", tmp_path / "decision.json")
    shown = decision_tables.headline().splitlines()[2:]
    assert shown == [
        "| 64 tokens, 32×32, width 96 (the demo's) | openmoji | 75 %, blocks of 2×2 | 1e13 | half "
        "| **−2.0 %** (−3.0 … −1.0) | −10.0 % (+0.0 … +100.0) | **+25.0 %** (+12.5 … +37.5) |",
        "| 64 tokens, 32×32, width 96 (the demo's) | openmoji | 75 %, blocks of 2×2 | 1e13 "
        "| as much | +50.0 % (+40.0 … +60.0) | +20.0 % (+0.0 … +100.0) "
        "| +0.0 % (−100.0 … +100.0) |",
    ]


@pytest.mark.parametrize(
    ("p", "p_worse", "marked"),
    [
        ([0.02, 0.02], [0.98, 0.98], True),
        ([0.02, 0.03], [0.98, 0.97], False),  # not better than scratch in its other setting
        ([1, 1], [0.012, 0.5], True),
        ([1, 1], [0.013, 0.001], False),  # worse than the best of two, which was picked
    ],
)
def test_better_is_better_than_every_setting_and_worse_is_corrected_for_their_number(
    p, p_worse, marked
):
    rows = [
        {"scratch": [scratch], "mean": 0.1, "interval": [0, 0.2], "p_holm": a, "p_worse_holm": b}
        for scratch, a, b in zip((1.0, 1.1), p, p_worse, strict=True)
    ]
    assert decision_tables._in_per_cent(rows, "**").startswith("**") == marked


@pytest.mark.parametrize(("weights", "measured"), [(None, True), ("this", True), ("that", False)])
def test_a_model_of_another_training_is_not_taken_for_the_runs(
    weights, measured, tmp_path, monkeypatch
):
    result = read_results(SMALL)[0]
    result = replace(result, about=result.about | {"weights": weights})
    (tmp_path / "weights" / result.run.name / "finetune").mkdir(parents=True)
    for name, value in {
        "KEPT": tmp_path / "kept",
        "WEIGHTS": tmp_path / "weights",
        "file_hash": lambda _: "this",
        "read_results": lambda _: [result],
        "open_prepared": lambda _: SimpleNamespace(heldout=np.zeros((2, 8, 8, 3), np.uint8)),
        "errors": lambda *_: np.ones((len(HALF_LOG_SNRS), 2)),
    }.items():
        monkeypatch.setattr(by_image, name, value)
    monkeypatch.setattr(by_image.maskdm, "load", lambda _: None)
    by_image.main(SMALL)
    assert (tmp_path / f"kept/{result.run.name}.json").exists() == measured


def test_a_rival_needs_smaller_images_of_the_set():
    run = Run(SMALL, "openmoji", "low-res-kept", "lr-10_batch-16", 0.5, 1)
    with pytest.raises(UserError, match="low-res-kept needs smaller images, which openmoji does"):
        datasets(MATRIX, run)


@pytest.mark.parametrize(
    ("of", "arm", "tuning"),
    [(0.5, SCRATCH, "lr-10_batch-8"), (1.0, "block-75", "lr-10_batch-16")],
)
def test_scratch_is_also_compared_at_as_much_compute(of, arm, tuning):
    """Runs of the first question stand in for those of as much."""
    asked_first = [one for one in read_results(SMALL) if one.run.of == 0.5 or one.run.share == 0]
    added = [
        replace(one, run=replace(one.run, of=of, tuning="added"))
        for one in asked_first
        if (one.run.arm, one.run.tuning) == (arm, tuning)
    ]
    rows = decided.comparisons([*asked_first, *added])
    equal = [row for row in rows if row["against_of"] == row["of"]]
    # It is another question: families of its own, which leave the first as it is.
    families = defaultdict(list)
    for row in equal:
        if "p_holm" in row:
            families[row["against"]].append(row)
    assert families
    for family in families.values():
        assert len(family) == 2 * 2  # sets, measures
        assert [row["p_holm"] for row in family] == decided.holm([row["p"] for row in family])
    first = [row for row in rows if row not in equal]
    assert first == decided.comparisons(asked_first)


def test_an_answer_is_printed_with_its_interval_and_the_report_is_left_alone(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(decided, "REPORT", tmp_path / "decision.json")
    decided.main(SMALL)
    said = capsys.readouterr().out.splitlines()
    start = "openmoji, error: block-75 at 50% of the compute 0.08701, "
    first = next(line for line in said if line.startswith(start))
    assert (
        "+0.0016 … +0.0033 (95 %, 5 seeds). At least as good: no. No more than 5% worse: yes."
        in first
    )
    assert not (tmp_path / "decision.json").exists()


def test_without_pairs_enough_there_is_no_answer_but_a_sentence(monkeypatch):
    few = [one for one in read_results(SMALL) if one.run.seed < decided.LEAST]
    monkeypatch.setattr(decided, "read_results", lambda part: few)
    with pytest.raises(UserError, match="no 3 seeds of decision-32 yet"):
        decided.answer(SMALL)


def test_a_measure_that_runs_lack_is_left_out():
    found = [
        replace(one, curves={key: curve for key, curve in one.curves.items() if key != "fd"})
        for one in read_results(SMALL)
    ]
    assert {row["measure"] for row in decided.comparisons(found)} == {"error", "kid"}


def with_errors(result, *errors):
    return replace(result, curves={"error": list(errors)})


CURVE = [(1.0, 0.8), (2.0, 0.4), (4.0, 0.2)]  # halves with every doubling


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ([(0.5, 0.8), (1.0, 0.4), (2.0, 0.2)], (2.0, EXACT)),
        ([(1.0, 0.8), (2.0, 0.4)], (1.0, EXACT)),
        ([(1.0, 0.9), (4.0, 0.4)], (0.5, EXACT)),
        ([(1.0, 0.4), (2.0, 0.1)], (4 / 2**0.5, EXACT)),  # between its points, on the power law
        ([(1.0, 0.1), (2.0, 0.05)], (4.0, LEAST)),  # better than all of scratch's from the start
        ([(0.5, 2.0), (2.0, 0.9)], (0.5, MOST)),  # worse than all of scratch's
        ([], None),
    ],
)
def test_a_factor_is_read_where_the_worse_of_two_curves_ends(own, found):
    value = factor((own, own), (CURVE, CURVE))
    assert value == (found and (pytest.approx(found[0]), found[1]))


def test_what_has_not_cooled_down_makes_a_bound_closer():
    ends = [(2.0, 0.1)]
    assert factor((ends, [(1.0, 0.3), (1.5, 0.2), *ends]), (CURVE, CURVE)) == (4 / 1.5, LEAST)
    ends = [(4.0, 0.9)]
    course = [(0.5, 0.95), (0.6, 0.9), *CURVE]
    assert factor((ends, ends), (CURVE, course)) == (0.15, MOST)


def test_runs_that_cool_down_are_compared_at_the_ends_of_all_their_budgets():
    """Of the demo's network: masking ran at half of the budget and at all of it."""
    found = [one for one in of_part(read_results(SMALL)) if one.dataset == "openmoji"]
    (one,) = found
    assert (one.arm, one.against) == (("block-75", "lr-10_batch-16", 0.5), "lr-10_batch-8")
    assert one.bound == EXACT
    ends = {
        (of.run.arm, of.run.of): of.curves["error"][-1]
        for of in read_results(SMALL)
        if of.run.seed == 1
        and of.run.dataset == "openmoji"
        and of.run.tuning == (one.against if of.run.arm == SCRATCH else one.arm[1])
    }
    (half, worse), (whole, better) = ends["block-75", 0.5], ends["block-75", 1.0]
    budget, error = ends[SCRATCH, 1.0]
    assert worse > error > better
    there = half * (whole / half) ** (log(worse / error) / log(worse / better))
    assert one.seeds[1] == (pytest.approx(budget / there), EXACT)
    (row,) = (row for row in decided.factors(read_results(SMALL)) if row["dataset"] == "openmoji")
    assert row["values"] == [value for value, _ in one.seeds.values()]
    assert row["mean"] == one.factor == pytest.approx(geometric_mean(row["values"]))
    logs = np.log(row["values"])
    about = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs)
    assert np.log(row["interval"]) == pytest.approx([logs.mean() - about, logs.mean() + about])


def test_the_map_takes_the_best_scratch_of_as_many_tokens():
    found = regimes()
    assert {one.part for one in found} <= set(PARTS)
    assert {one.tokens for one in found} == {64, 256}
    of_curves = [one for one in found if not one.part.startswith("decision")]
    assert {one.bound for one in of_curves} <= {EXACT, LEAST}
    results = read_results("confirmation")
    worse = [
        replace(
            one,
            run=replace(one.run, tuning="worse"),
            curves={"error": [(flops, 2 * error) for flops, error in one.curves["error"]]},
        )
        for one in results
        if one.run.arm == SCRATCH
    ]
    assert list(of_part([*worse, *results])) == list(of_part(results))


def test_seeds_of_both_bounds_have_a_mean_that_is_none():
    one = next(of_part(read_results(SMALL)))
    for first, second, together in (
        (EXACT, EXACT, EXACT), (EXACT, LEAST, LEAST), (MOST, MOST, MOST), (LEAST, MOST, MIXED)
    ):  # fmt: skip
        assert replace(one, seeds={1: (2.0, first), 2: (2.0, second)}).bound == together


def test_the_map_names_the_arms_of_tests_and_marks_that_touch_beside_the_first():
    one = next(of_part(read_results(SMALL)))
    places = [
        replace(one, arm=(arm, "", 0.5), seeds={1: (factor, EXACT)}, part=part)
        for arm, factor, part in (
            ("high", 2.0, SMALL),
            ("near", 1.95, SMALL),
            ("low", 1.0, SMALL),
            ("old", 1.0, "fine"),
        )
    ]
    assert names_on_map(places) == ["high, near", "", "low", ""]


def test_what_is_saved_is_read_off_the_best_of_scratchs_curves_at_equal_error():
    some = next(one for one in read_results("confirmation") if one.run.arm == SCRATCH)
    one = [(1.0, 0.8), (2.0, 0.4), (4.0, 0.2)]
    arm = with_errors(some, (0.5, 0.9), (1.0, 0.4), (2.0, 0.3), (3.0, 0.2), (3.5, 0.1))
    between = 2 * 2 ** (log(0.3 / 0.4) / log(0.2 / 0.4)) - 2  # on the power law
    # Where scratch was first measured it may have been there before; at its end, not yet.
    found = saved(arm, [one])
    assert found == {
        1.0: (1.0, True), 2.0: (pytest.approx(between), True), 3.0: (1.0, True), 3.5: (0.5, False),
    }  # fmt: skip
    better = [(1.0, 0.7), (1.5, 0.4), (3.9, 0.25)]
    assert saved(arm, [one, better])[1.0] == (0.5, True)
    assert saved(arm, [one, better])[3.5] == (pytest.approx(0.4), False)


def test_what_has_cooled_down_is_not_compared():
    cooled = next(one for one in read_results(SMALL) if one.run.arm == SCRATCH)
    curve, kept = cooled.curves["error"], before_cooling(cooled)
    assert kept == curve[: len(kept)]
    total = sum(leg["flops"] for leg in cooled.legs)
    assert kept[-1][0] <= 0.8 * total < curve[len(kept)][0]
    constant = next(one for one in read_results("confirmation") if one.run.arm == SCRATCH)
    assert before_cooling(constant) == constant.curves["error"]


def test_a_course_is_the_mean_of_its_seeds_and_of_the_best_tuning_of_its_arm():
    results = read_results("fine")
    course = next(one for one in courses_of(results) if one.dataset == "openmoji")
    arms = [one for one in results if (one.run.dataset, one.run.arm) == ("openmoji", "patch-90")]
    assert course.seeds == len(arms) == 3
    assert course.primed == pytest.approx(1e13, rel=0.01)
    assert course.after_priming.flops == pytest.approx(course.primed, rel=0.01)
    scratch = {
        one.run.seed: before_cooling(one)
        for one in results
        if (one.run.dataset, one.run.arm) == ("openmoji", SCRATCH)
    }
    point = course.points[2]
    each = [saved(one, [scratch[one.run.seed]])[point.flops] for one in arms]
    assert point.exact
    assert point.saved == pytest.approx(mean(value for value, _ in each))
    assert point.deviation == pytest.approx(stdev(value for value, _ in each))
    assert not course.points[-1].exact  # masking passes all that scratch has reached
    worse = [
        replace(
            with_errors(one, *((flops, 1.2 * error) for flops, error in one.curves["error"])),
            run=replace(one.run, tuning="worse"),
        )
        for one in arms
    ]
    assert list(courses_of([*worse, *results])) == list(courses_of(results))


def test_every_line_of_what_is_saved_is_one_course():
    """Several parts have an arm of one name on the same images; its points once made one line."""
    shown = saved_charts.panels()
    repeated = 0
    for rows in shown.values():
        lines = defaultdict(list)
        for row in rows:
            lines[row["arm"]].append(row["flops"])
        for spent_so_far in lines.values():
            assert spent_so_far == sorted(set(spent_so_far))
        repeated += len(lines) - len({name.partition(",")[0] for name in lines})
    drawn = [one for one in courses() if len(one.points) >= saved_charts.FEW]
    assert sum(len({row["arm"] for row in rows}) for rows in shown.values()) == len(drawn)
    assert repeated  # otherwise nothing was asked


def test_a_run_that_is_there_spent_what_was_planned():
    for part in (SMALL, *TESTS, *TESTS.values()):
        for result in read_results(part):
            run: Run = result.run
            assert sum(leg["flops"] for leg in result.legs) == sum(spent(run)), result.path
            assert set(result.about["levels"]) == {"-3", "-2", "-1", "0", "1", "2", "3"}


def test_errors_by_image_are_those_of_every_level_and_every_image(model):
    """Of one level with one noise a mean over images is what validation measures."""
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    found = by_image.errors(model, images, noises=2)
    assert found.shape == (len(HALF_LOG_SNRS), 5)
    assert np.isfinite(found).all()
    assert (found > 0).all()
    again = by_image.errors(model, images[:3], noises=2)
    np.testing.assert_allclose(again, found[:, :3], rtol=1e-5)  # an image's noise is its own
    many = by_image.errors(model, images, noises=8).mean()
    validated = HeldOutValidator(
        np.repeat(images, len(HALF_LOG_SNRS), axis=0),
        model.config.model.patch,
        model.config.diffusion,
        model.device,
    ).errors(model.backbone)
    assert many == pytest.approx(validated["mean"], rel=0.1)


def test_errors_by_image_fall_with_the_noise_and_every_noise_is_another(model):
    """An estimate that is what was seen is as wrong as the noise of its level."""
    images = np.full((5, 16, 16, 3), 128, np.uint8)
    seeing = SimpleNamespace(
        config=model.config, device=model.device, x0_network=lambda x, time, labels: x
    )
    one, two = (by_image.errors(seeing, images, noises=noises) for noises in (1, 2))
    path = PATHS[model.config.diffusion.path]
    for level, errors in zip(path.levels(torch.tensor(HALF_LOG_SNRS).double()), one, strict=True):
        if level.sigma < 0.3:  # what is clipped does not count
            assert errors.mean() == pytest.approx(level.sigma**2, rel=0.1)
    assert (np.diff(one.mean(axis=1)) < 0).all()
    assert (one != two).all()
    assert len(np.unique(one)) == one.size


def test_finer_errors_have_an_interval_over_seeds_and_one_over_images(monkeypatch):
    rng = np.random.default_rng(0)
    of_images, of_seeds = rng.normal(1, 0.3, 40), {1: 0.1, 2: -0.1}

    def measured(result):
        run = result.run
        if run.seed not in of_seeds:
            return None
        better = 0.2 if run.arm == SCRATCH else 0.0
        return of_images * (1 + better) + of_seeds[run.seed] * (run.arm == SCRATCH)

    monkeypatch.setattr(decided, "by_image", measured)
    row = next(decided.finer(read_results(SMALL)))
    assert (row["seeds"], row["images"]) == ([1, 2], 40)
    assert row["mean"] == pytest.approx(-0.2 * of_images.mean())
    low, high = row["over_images"]
    assert low < row["mean"] < high < 0  # every image is better
    assert row["interval"][0] < -1  # two seeds that differ say little


def test_errors_of_a_former_training_are_not_this_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(by_image, "KEPT", tmp_path)
    result = read_results(SMALL)[0]
    assert by_image.by_image(result) is None
    path = tmp_path / f"{result.run.name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"error": result.ends()["error"], "images": [0.1, 0.2]}))
    assert by_image.by_image(result).tolist() == [0.1, 0.2]
    path.write_text(json.dumps({"error": result.ends()["error"] + 1e-6, "images": [0.1, 0.2]}))
    assert by_image.by_image(result) is None


def test_the_geometric_mean_gives_every_level_the_same_weight():
    arms = [one.run for one in read_results(SMALL) if one.run.arm != SCRATCH]
    middle = {of: mean(run.seed for run in arms if run.of == of) for of in (0.5, 1.0)}

    def levels(run):
        if run.arm == SCRATCH:
            return {"-3": 10.0, "3": 0.11}
        return {"-3": 10.0 * 1.01 ** (run.seed - middle[run.of]), "3": 0.1}

    results = [
        replace(one, about=one.about | {"levels": levels(one.run)}) for one in read_results(SMALL)
    ]
    rows = list(decided.geometric(results))
    assert {row["of"] for row in rows} == {0.5, 1.0}
    assert all(row["mean"] == pytest.approx(-np.log(1.1) / 2) for row in rows)


def keys_of(content):
    """Return all keys of a report, of measures and noise levels aside."""
    if isinstance(content, dict):
        own = {key for key in content if not re.fullmatch(r"-?\d", key)}
        return own.union(*(keys_of(value) for value in content.values()))
    if isinstance(content, list):
        return set().union(*map(keys_of, content))
    return set()


@pytest.mark.parametrize("report", ["decision", "evidence", "transfer"])
def test_every_key_of_the_reports_is_explained(report):
    page = (ROOT / "docs/evidence-more.md").read_text()
    explained = set(re.findall(r"`(\w+)`", page[page.index("## The files") :]))
    assert keys_of(json.loads((ROOT / f"reports/{report}.json").read_text())) <= explained


def test_what_the_page_says_seed_by_seed_is_what_the_report_says():
    """Of the quarter, of scratch's second setting on the glyphs, and of the rival and masking."""
    report = json.loads((ROOT / "reports/decision.json").read_text())
    page = (ROOT / "docs/evidence.md").read_text()

    def of(dataset, arm, share, against, measure):
        where = {"dataset": dataset, "arm": arm, "of": share, "against": against, "against_of": 1}
        (row,) = (
            row
            for row in report["comparisons"]
            if row["measure"] == measure and where.items() <= row.items()
        )
        return np.array(row["values"]), np.array(row["scratch"])

    def span(values, others, digits=1):
        found = 100 * (values / others - 1)
        return [f"{value:+.{digits}f}".replace("-", "−") for value in (found.min(), found.max())]

    first, second, emoji, glyphs = "width-64_lr-10", "lr-10_batch-4", "openmoji-64", "glyphs-64"
    quarter = (emoji, "block-75", 0.25)
    for measure, against, words in (
        ("error", first, ["+1.6", "+3.4"]),
        ("kid", first, ["−18", "+10"]),
        ("fd", first, ["−12.2", "+0.2"]),
        ("error", second, ["−1.0", "+2.1"]),
        ("kid", second, ["−1", "+9"]),
    ):
        found = span(*of(*quarter, against, measure), digits=int("." in words[0]))
        assert found == words, (measure, against)
    assert (
        "on each seed (1.6 to 3.4 %), the KID on four of five (−18 to +10 %); the FD is level or "
        "lower (−12.2 to +0.2 %)" in page
    )
    assert "is level (−1.0 to +2.1 %), the KID higher on four of five (−1 to +9 %)" in page

    masked, better = (of(glyphs, "block-75", 0.5, one, "error") for one in (second, first))
    assert span(masked[1], better[1]) == ["+2.5", "+3.3"]
    assert span(*masked) == ["−0.2", "+1.7"]
    assert span(*of(glyphs, "block-75", 0.5, second, "kid"), digits=0) == ["−5", "+56"]
    assert "worse than scratch's first (the error 2.5 to 3.3 %" in page
    assert "(error −0.2 to +1.7 %, KID −5 to +56 %, neither decided)" in page

    def rival(dataset, measure, digits):
        pair = (of(dataset, arm, 0.5, first, measure)[0] for arm in ("low-res-kept", "block-75"))
        return span(*pair, digits)

    assert rival(emoji, "error", 1) == ["+2.1", "+3.5"]
    assert rival(emoji, "kid", 0) == ["+16", "+39"]
    assert "2.1 to 3.5 % higher than masking's on the five seeds, its KID 16 to 39 %" in page
    assert rival(glyphs, "error", 1) == ["−1.4", "+0.3"]
    assert rival(glyphs, "kid", 0) == ["−33", "+5"]
    assert (
        "the error is level (−1.4 to +0.3 %) and the KID lower on four of five (5 % higher" in page
    )


def test_what_the_page_says_of_256_tokens_in_a_narrow_network_is_what_its_tuning_says():
    best, page = decision.chosen("decision-4-tuning"), (ROOT / "docs/evidence.md").read_text()
    ends = {
        (result.run.dataset.removesuffix(decision.SUFFIX), result.run): result.ends()["error"]
        for result in read_results("decision-4-tuning")
    }
    off = {
        (dataset, arm): 100 * (ends[dataset, run] / ends[dataset, best[dataset, SCRATCH][0]] - 1)
        for (dataset, arm), (run, *_) in best.items()
    }
    emoji, glyphs = "openmoji-64", "glyphs-64"
    assert (
        f"`patch-90` ends {-off[emoji, 'patch-90']:.1f} % below scratch at the whole, and "
        f"{off[glyphs, 'patch-90']:.1f} % above it; `block-75-4` {off[emoji, 'block-75-4']:.1f} % "
        f"and {off[glyphs, 'block-75-4']:.1f} % above"
    ) in page
    smallest = {key for key, (run, *_) in best.items() if run.tuning == "lr-10_batch-4"}
    on_emoji = {(emoji, arm) for arm in (SCRATCH, "patch-90", "block-75-4")}
    assert smallest == on_emoji | {(glyphs, "patch-90")}
    eights = decision.chosen("decision-8-tuning")
    wide = [
        next(
            result.ends()["error"]
            for result in read_results("decision-8-tuning")
            if result.run == eights[dataset, SCRATCH][0]
        )
        for dataset in (emoji, glyphs)
    ]
    assert "({:.4f}, {:.4f} at 1e13".format(*wide) in page


def test_what_the_page_says_of_stronger_arms_is_what_their_runs_ended_with():
    page = (ROOT / "docs/evidence.md").read_text()
    ends, epochs = {}, {}
    for cell in json.loads((ROOT / "reports/decision.json").read_text())["tuning"]:
        tuned = cell["part"] == "decision-8-tuning" and cell["tuning"] == "width-64_lr-10"
        if cell["part"] == decision.ARMS or (tuned and cell["arm"] == SCRATCH):
            where = cell["dataset"].removesuffix("-64-tuning"), cell["arm"]
            ends[where], epochs[where] = cell["error"], cell["epochs"]
    drawn, written = (
        {arm: ends[dataset, arm] / ends[dataset, "block-75"] - 1 for _, arm in ends}
        for dataset in ("openmoji", "glyphs")
    )
    kept = f"{-100 * drawn['block-75-kept']:.1f} and {-100 * written['block-75-kept']:.1f} %"
    assert f"**Kept moments are lowest on both sets**, by {kept}," in page
    assert max(drawn["block-75-kept"], written["block-75-kept"]) < 0
    changed = {arm for _, arm in ends} - {SCRATCH, "block-75", "block-75-kept"}
    assert all(max(drawn[arm], written[arm]) > 0 for arm in changed)
    assert len(changed) == 4
    scratch = (ends[dataset, SCRATCH] for dataset in ("openmoji", "glyphs"))
    assert "in the tuning ({:.4f} and {:.4f}, on another machine)".format(*scratch) in page
    ways = [
        [
            100 * (ends[dataset, arm] / ends[dataset, SCRATCH] - 1)
            for dataset in ("openmoji", "glyphs")
        ]
        for arm in ("block-75-kept", "block-75")
    ]
    for (below, above), verb in zip(ways, ("ends", "`block-75` ends"), strict=True):
        assert below < 0 < above
        assert f"{verb} {-below:.1f} % below and {above:.1f} % above" in page
    for dataset, words in (
        ("openmoji", "{:.1f} epochs in place of {:.1f} on OpenMoji"),
        ("glyphs", "{:.1f} in place of {:.1f} on the glyphs"),
    ):
        seen = (epochs[dataset, arm][0] for arm in ("block-75-middle", "block-75"))
        assert words.format(*seen) in page
    costs = {}
    for result in read_results(decision.ARMS):
        masked = result.legs[0]
        costs[result.run.dataset, result.run.arm] = masked["flops"] / masked["steps"]
    dearer = [
        costs[dataset, "block-75-middle"] / costs[dataset, "block-75"]
        for dataset in ("openmoji-64-tuning", "glyphs-64-tuning")
    ]
    assert "a step costs {:.1f} and {:.1f} times as much".format(*dearer) in page
    shifted = [
        result.about["levels"]["3"]
        for arm in ("block-75-shifted", "block-75")
        for dataset in ("openmoji-64-tuning", "glyphs-64-tuning")
        for result in read_results(decision.ARMS)
        if (result.run.arm, result.run.dataset) == (arm, dataset)
    ]
    lower = [100 * (1 - shifted[at] / shifted[at + 2]) for at in (0, 1)]
    assert "{:.0f} and {:.0f} % lower at λ = 3".format(*lower) in page


def test_what_the_page_says_of_256_tokens_in_a_narrow_network_is_what_its_test_says():
    report = json.loads((ROOT / "reports/decision.json").read_text())
    page = (ROOT / "docs/evidence.md").read_text()
    spans, ends, holm, alone = {}, {}, {}, {}
    for row in report["comparisons"]:
        where = row["dataset"].removesuffix("-64"), row["measure"]
        if (row["part"], row["arm"], row["of"]) == ("decision-4", "patch-90", 0.5):
            assert len(row["seeds"]) == 5
            off = 100 * (np.array(row["values"]) / row["scratch"] - 1)
            spans[where] = min(off), max(off)
            ends[where] = mean(row["scratch"])
            if "p_holm" in row:
                found = min(row["p_holm"], row["p_worse_holm"]) < decision_tables.SIGNIFICANT
                assert found == (where == ("glyphs", "error"))
                holm[where] = row["p_worse_holm"]
                alone[where] = row["p"], row["p_holm"]
    (low, high), (worse, worst) = spans["openmoji", "error"], spans["glyphs", "error"]
    assert high < 0 < worse
    assert (
        f"the error is {-high:.1f} to {-low:.1f} % lower, and {worse:.1f} to {worst:.1f} % higher"
    ) in page
    (low, high), (worse, worst) = spans["openmoji", "kid"], spans["glyphs", "kid"]
    assert (
        f"the KID from {-low:.0f} % lower to {high:.0f} % higher, and {worse:.0f} to "
        f"{worst:.0f} % higher"
    ) in page
    assert f"the glyphs' error alone (p = {holm['glyphs', 'error']:.2g} after Holm)" in page
    p, corrected = alone["openmoji", "error"]
    assert f"p = {p:.2g} alone and {corrected:.2g} after Holm" in page
    eights = {
        row["dataset"].removesuffix("-64"): mean(row["scratch"])
        for row in report["comparisons"]
        if (row["part"], row["arm"], row["of"], row["measure"])
        == ("decision-8", "block-75", 0.5, "error")
        and (row["against"], row["against_of"]) == ("width-64_lr-10", 1.0)
    }
    assert (
        f"ends here at {ends['openmoji', 'error']:.4f} and {ends['glyphs', 'error']:.3f}, with "
        "patches of 8, the same width and as much compute at "
        f"{eights['openmoji']:.4f} and {eights['glyphs']:.3f}"
    ) in page
    factors = {
        one.dataset.removesuffix("-64"): one for one in regimes() if one.part == "decision-4"
    }
    assert factors["openmoji"].bound == LEAST
    assert factors["openmoji"].factor > 2
    assert factors["glyphs"].bound == MOST
    long = next(
        one
        for one in courses()
        if (one.part, one.dataset) == (SMALL, "openmoji") and one.primed > 9e12
    )
    assert f"are worth {-long.after_priming.saved / 1e12:.1f}e12 less than scratch's" in page


def test_what_the_pages_say_of_as_much_compute_in_the_demos_network_is_what_the_report_says():
    report = json.loads((ROOT / "reports/decision.json").read_text())
    spans, holm = {}, {}
    for row in report["comparisons"]:
        asked = row["part"], row["of"], row["against_of"], row["against"]
        if asked == (SMALL, 1.0, 1.0, "lr-10_batch-8"):
            assert len(row["seeds"]) == 5
            off = 100 * (np.array(row["values"]) / row["scratch"] - 1)
            spans[row["dataset"], row["measure"]] = sorted(off)
            if "p_holm" in row:
                holm[row["dataset"], row["measure"]] = row["p_holm"]
    emoji, glyphs = (spans[dataset, "error"] for dataset in ("openmoji", "glyphs-32"))
    assert max(*emoji, *glyphs) < 0
    page = (ROOT / "docs/evidence.md").read_text()
    lower = f"{-emoji[-1]:.1f} to {-emoji[0]:.1f} %"
    assert (
        f"by {lower} on OpenMoji and by {-glyphs[-1]:.1f} to {-glyphs[0]:.1f} % on the glyphs"
    ) in page
    drawn, written = (spans[dataset, "kid"] for dataset in ("openmoji", "glyphs-32"))
    assert max(drawn) < 0
    assert sum(off < 0 for off in written) == 3
    assert max(holm["openmoji", measure] for measure in ("error", "kid")) < (
        decision_tables.SIGNIFICANT
    )
    error, kid = (f"{holm['openmoji', measure]:.2g}" for measure in ("error", "kid"))
    assert f"(p = {error} and {kid} after Holm)" in page
    both = {f"{holm['glyphs-32', measure]:.2g}" for measure in ("error", "kid")}
    assert f"on the glyphs both have p = {both.pop()}" in page
    assert not both
    assert (
        f"({-drawn[-1]:.0f} to {-drawn[0]:.0f} % on OpenMoji; on the glyphs from "
        f"{-written[0]:.0f} % lower to {written[-1]:.0f} % higher)"
    ) in page
    assert f"five seeds have an error {lower} lower" in (ROOT / "docs/scaling.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "docs/evidence.md"])
def test_what_the_pages_begin_with_is_what_the_report_says(name):
    page = (ROOT / name).read_text()
    report = json.loads((ROOT / "reports/decision.json").read_text())
    # With 64 tokens masking saved compute on both sets and in both networks …
    factors = {
        (row["part"], row["dataset"].partition("-")[0]): row
        for row in report["factors"]
        if row["part"] in decision_tables.ASKED
        and row["arm"] == decision_tables.ASKED[row["part"]][1]
    }
    assert len(factors) == 6
    narrow, demos = (
        [factors[part, dataset] for dataset in ("openmoji", "glyphs")]
        for part in ("decision-8", SMALL)
    )
    for row in (*demos, narrow[1]):
        assert row["interval"][0] > 1
        assert row["interval"][1] < 2  # … and half of it in one of the four cases
    for row in narrow[0], factors["decision-4", "openmoji"]:
        assert min(row["values"]) > 2
    said = (
        "about {:.1f} times less {}on drawings and {:.1f} times less on glyphs in the network that "
        "suits the budget, {:.1f} and {:.1f} times less in the demo's"
    ).format(
        narrow[0]["mean"],
        "compute " if name.startswith("docs") else "",
        *(row["mean"] for row in (narrow[1], *demos)),
    )
    assert said in page
    # Half of the compute was enough on both sets and in both measures in none.
    for part, (_, arm) in decision_tables.ASKED.items():
        asked = [
            row
            for row in report["comparisons"]
            if (row["part"], row["arm"], row["of"], row["against_of"]) == (part, arm, 0.5, 1.0)
            and "p_holm" in row
        ]
        assert min(row["p_worse_holm"] for row in asked) < decision_tables.SIGNIFICANT
        assert all(len(row["seeds"]) == 5 for row in asked)


def test_what_the_page_says_of_larger_patches_is_what_the_report_says():
    """With half of the compute they end where patches of 4 do with all of it, or lower."""
    page = (ROOT / "docs/evidence.md").read_text()
    ends = {}
    for row in json.loads((ROOT / "reports/decision.json").read_text())["comparisons"]:
        tuned = row["part"] == "decision-4" or row["against"] == "width-64_lr-10"
        if row["measure"] == "error" and tuned:
            where = row["part"][-1], row["dataset"].partition("-")[0]
            ends[*where, SCRATCH, row["against_of"]] = mean(row["scratch"])
            ends[*where, row["arm"], row["of"]] = mean(row["values"])
    assert (
        f"with patches of 8 and half of the compute at {ends['8', 'openmoji', SCRATCH, 0.5]:.4f} "
        f"and {ends['8', 'glyphs', SCRATCH, 0.5]:.3f}."
    ) in page
    assert ends["8", "openmoji", SCRATCH, 0.5] == pytest.approx(
        ends["4", "openmoji", SCRATCH, 1.0], rel=0.002
    )
    assert ends["8", "glyphs", SCRATCH, 0.5] < ends["4", "glyphs", SCRATCH, 1.0]
    assert (
        f"a little ahead of scratch's patches of 8 ({ends['4', 'openmoji', 'patch-90', 0.5]:.4f} "
        f"and {ends['8', 'openmoji', SCRATCH, 0.5]:.4f}), masked patches of 8 far ahead of both "
        f"({ends['8', 'openmoji', 'block-75', 0.5]:.4f})"
    ) in page


def test_what_the_page_says_of_levels_and_of_pairs_is_what_the_report_says():
    report = json.loads((ROOT / "reports/decision.json").read_text())
    page = (ROOT / "docs/evidence.md").read_text()

    def geometric(dataset, against_of):
        (row,) = (
            row
            for row in report["geometric"]
            if (row["dataset"], row["arm"], row["of"]) == (dataset, "block-75", 0.5)
            and (row["against"], row["against_of"]) == ("width-64_lr-10", against_of)
        )
        per_cent = (100 * np.expm1(value) for value in (row["mean"], *row["interval"]))
        return [f"{value:+.1f}".replace("-", "−") for value in per_cent]

    for dataset, against_of in (("openmoji-64", 1.0), ("glyphs-64", 0.5)):
        middle, low, high = geometric(dataset, against_of)
        assert f"({middle} %, {low} … {high})" in page
    pairs = [
        np.corrcoef(row["values"], row["scratch"])[0, 1]
        for row in report["comparisons"]
        if row["arm"] == "block-75" and len(row["seeds"]) == 5 and row["measure"] != "fd"
    ]
    low, high = (f"{value:+.2f}".replace("-", "−") for value in (min(pairs), max(pairs)))
    assert f"the correlations of pairs run from {low} to {high}" in page
