"""The matrix of the evidence: equal compute, how the summary is computed, a tiny part for real."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import images, results, summary
from benchmarks.evidence.images import classes_kept, keep
from benchmarks.evidence.matrix import datasets, is_there
from benchmarks.evidence.plan import (
    Run,
    entry,
    network_of,
    plan,
    points,
    pretraining,
    pretraining_flops,
    read_matrix,
    runs_of,
    settings_of,
    whole_step,
)
from benchmarks.evidence.results import (
    Kind,
    Result,
    at,
    first_reached,
    linear,
    read_result,
    read_results,
)
from benchmarks.evidence.summary import entries, transfers
from maskdm.data.prepared import Sample, open_prepared, write_prepared
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import merge
from maskdm.training.flops import training_flops
from tests.support.clones import clone_tree
from tests.support.preparing import save_images
from tools.report.evidence import rows_of

MATRIX = read_matrix()
# Those that spend their budgets another way are in test_decision.py.
PARTS = [part for part in MATRIX["parts"] if "spending" not in MATRIX["parts"][part]]
ALL = [run for part in PARTS for run in runs_of(MATRIX, part)]
SMALL = {"data.limit": 24}


# Equal compute


def test_every_run_spends_its_budget_to_within_a_step():
    for run in ALL:
        params, budget = plan(MATRIX, run), MATRIX["parts"][run.part]["budget"]
        masked, whole = pretraining_flops(params), whole_step(params)
        finetuning = params["finetune"]["steps"] * whole
        outside = "pretrained_on" in MATRIX["datasets"][run.dataset]
        spent = finetuning if outside else masked + finetuning
        assert abs(spent - budget) <= 0.5 * whole, run
        assert abs(masked - run.share * budget) <= whole, run
        assert bool(masked) == bool(run.share)


def test_a_run_that_is_there_spent_what_was_planned():
    for part in PARTS:
        for result in read_results(part):
            whole = whole_step(result.params)
            spent = sum(leg["flops"] for leg in result.legs)
            outside = "pretrained_on" in MATRIX["datasets"][result.run.dataset]
            wanted = result.budget * (1 + result.run.share if outside else 1)
            assert abs(spent - wanted) <= whole, result.path
            assert result.curves["error"][-1][0] == spent


def test_every_run_of_the_committed_parts_is_there():
    for part in ("screening", "confirmation", "transfer", "fine-screening", "fine"):
        found = read_results(part)
        assert {result.run for result in found} == set(runs_of(MATRIX, part))
        assert all(result.path.with_suffix("").match(f"*/{result.run.name}") for result in found)


def test_what_a_tuning_says_is_what_is_trained():
    """A part's settings do not overrule it: a width that is tried is the width that is run."""
    for part in MATRIX["parts"]:
        for run in runs_of(MATRIX, part):
            told, settings = entry(MATRIX, "tunings", run.tuning), settings_of(MATRIX, run)
            assert merge(settings, told) == settings, run.name
            assert plan(MATRIX, run)["model"] == settings["model"], run.name


def test_the_masked_part_of_a_staged_run_is_split_and_that_of_a_mixture_is_mixed():
    staged = plan(MATRIX, Run("screening", "openmoji", "staged", "base", 0.25, 0))
    network, legs = network_of(staged), pretraining(staged).legs
    assert [leg.mask.rate for leg in legs] == pytest.approx([0.9, 0.5], abs=0.03)
    costs = [leg.steps * training_flops(network, leg.mask.visible, 16) for leg in legs]
    assert costs[0] == pytest.approx(costs[1], rel=0.01)
    mixture = plan(MATRIX, Run("screening", "openmoji", "mixture", "base", 0.25, 0))
    alone = plan(MATRIX, Run("screening", "openmoji", "patch-75", "base", 0.25, 0))
    assert mixture["pretrain"]["full_share"] == 0.1
    assert mixture["pretrain"]["steps"] < alone["pretrain"]["steps"]


def test_arms_of_a_comparison_differ_in_nothing_but_the_masked_part():
    for part in ("confirmation", "fine", "transfer"):
        for run in runs_of(MATRIX, part):
            scratch = plan(MATRIX, replace(run, arm="scratch", share=0.0))
            arm = plan(MATRIX, run)
            for params in (arm, scratch):
                params.pop("mask")
                params.pop("pretrain")
                for name in ("steps", "warmup"):
                    del params["finetune"][name]
            assert arm == scratch


def test_distances_are_measured_at_shares_of_the_budget():
    scratch = Run("confirmation", "openmoji", "scratch", "whole-batch-8", 0.0, 0)
    masked = replace(scratch, arm="block-75", share=0.125)
    for run in (scratch, masked):
        params = plan(MATRIX, run)
        whole, primer = whole_step(params), pretraining_flops(params)
        for step, share in zip(points(MATRIX, run), (0.25, 0.5, 1), strict=True):
            assert primer + step * whole == pytest.approx(share * 4e13, abs=whole)


def test_what_the_matrix_does_not_know_is_refused():
    with pytest.raises(UserError, match=r"no 'patch-76' among the arms of matrix.yaml: scratch,"):
        plan(MATRIX, Run("screening", "openmoji", "patch-76", "base", 0.25, 0))
    with pytest.raises(UserError, match=r"no 'sratch' among the matrices of tiny: scratch, masked"):
        runs_of(MATRIX, "tiny", ["sratch"])
    with pytest.raises(UserError, match="arm calibrated is for openmoji-64, and not for openmoji"):
        plan(MATRIX, Run("decision-8", "openmoji", "calibrated", "base", 0.2, 0))
    with pytest.raises(UserError, match="leaves no finetuning"):
        plan(MATRIX, Run("tiny", "openmoji-few", "patch-75", "base", 0.9999, 0))


def test_a_run_needs_its_own_images_and_those_that_it_is_pretrained_on():
    for run in ALL:
        other = MATRIX["datasets"][run.dataset].get("pretrained_on")
        assert datasets(MATRIX, run) == [run.dataset, *([other] if other else [])]
        assert set(datasets(MATRIX, run)) <= set(MATRIX["datasets"])


def test_every_run_has_a_file_of_its_own():
    assert len({run.name for run in ALL}) == len(ALL)


# The summary


def test_between_two_measurements_a_curve_is_a_power_law():
    curve = [(10.0**k, 8.0 / 2**k) for k in range(4)]
    assert at(curve, 10**1.5) == pytest.approx(8 / 2**1.5)
    assert first_reached(curve, 8 / 2**1.5) == pytest.approx(10**1.5)
    assert at(curve, 2000.0) is None
    assert at(curve, 1005.0) == 1.0  # a step more or less
    assert first_reached(curve, 0.9) is None
    assert first_reached(curve, 9.0) == 1.0
    assert first_reached([(1.0, 4.0), (2.0, 1.0), (3.0, 2.0)], 1.0) == 2.0


def test_seconds_go_on_straight_between_corners():
    corners = [(0.0, 0.0), (10.0, 1.0), (20.0, 5.0)]
    assert [linear(corners, x) for x in (5.0, 10.0, 15.0, 25.0)] == [0.5, 1.0, 3.0, 7.0]


PARAMS = {"data": {"resolution": 8, "channels": 3}, "model": {"patch": 2}}
STEP_TIMES = {Kind(8, 3, '{"patch": 2}', 16, 1): 2.0, Kind(8, 3, '{"patch": 2}', 4, 1): 1.0}


def ran(arm, seed, height, share=0.0, end=100.0, dataset="set"):
    """Return a result whose error is height / FLOPs, and its distances the same at three points."""
    primer = share * end
    rest = end - primer
    legs = [
        {"phase": "pretrain", "flops": primer, "images": primer, "full_images": 0, "visible": 4},
        {"phase": "finetune", "flops": rest, "images": rest / 4, "full_images": rest / 4},
    ]
    legs[1]["visible"] = 16
    legs = [leg | {"batch_size": 1, "data": dataset} for leg in legs]
    error = [(float(x), height / x) for x in (1, 2, 5, 10, 20, 50, 100)]
    curves = {"error": error, "fd": error[3:4] + error[5:]}
    run = Run("part", dataset, arm, "base", share, seed)
    return Result(run, end, curves, legs, PARAMS, {}, Path("none"))


def test_the_speed_up_is_scratchs_budget_by_what_the_arm_needs_for_the_same():
    runs = [ran("scratch", seed, 1.0) for seed in (0, 1)]
    runs += [ran("masked", 0, 0.5, 0.2), ran("masked", 1, 0.25, 0.2)]
    found = entries(runs, STEP_TIMES)
    whole = next(row for row in found if row["arm"] == "masked" and row["budget_flops"] == 100)
    assert whole["share"] == 0.2
    assert whole["seeds"] == [0, 1]
    assert whole["speedup"]["error"]["flops"] == {
        "mean": 2.828,
        "values": [2.0, 4.0],
        "reached": 2,
        "at_least": 0,
    }
    # Masked steps cost a FLOP and a second each, whole ones four and two: with factors 2 and 4 the
    # arm is there after 20 + 30/4·2 and 20 + 5/4·2 seconds, scratch after 100/4·2.
    factors = [50 / 35, 50 / 22.5]
    seconds = whole["speedup"]["error"]["seconds"]
    assert seconds["values"] == pytest.approx(factors, rel=1e-3)
    assert seconds["mean"] == pytest.approx((factors[0] * factors[1]) ** 0.5, rel=1e-3)
    assert whole["speedup"]["kid"] is None
    assert whole["final"]["kid"] is None
    assert whole["final"]["fd"] == {"mean": 0.00375, "std": 0.001768}
    assert whole["improvement_percent"]["fd"] == {"mean": 62.5, "std": 17.68}
    assert whole["improvement_percent"]["kid"] is None
    # A run passes through the run of half the budget, whose masked share is twice as large.
    assert [(row["budget_flops"], row["share"]) for row in found if row["arm"] == "masked"] == [
        (50, 0.4),
        (100, 0.2),
    ]
    assert all(row["speedup"]["error"] is None for row in found if row["arm"] == "scratch")


def test_never_reached_is_null_and_counted():
    scratch = [ran("scratch", seed, 1.0) for seed in (0, 1)]
    some = entries([*scratch, ran("masked", 0, 0.5), ran("masked", 1, 1.1)], {})
    row = next(row for row in some if row["arm"] == "masked" and row["budget_flops"] == 100)
    assert row["speedup"]["error"]["flops"] == {
        "mean": 2.0,
        "values": [2.0],
        "reached": 1,
        "at_least": 0,
    }
    assert row["speedup"]["error"]["seconds"] is None
    error, fd = rows_of(row)
    ends = ["0.0100 ± 0.0000", "0.00800 ± 0.00424", "20.0 ± 42.4 %"]
    assert error[4:] == ["error", *ends, "on 1 of 2 seeds", "on 1 of 2 seeds"]
    assert fd[4:] == ["fd", *ends, "–", "–"]  # three points carry no factor
    none = entries([*scratch, ran("masked", 0, 1.1), ran("masked", 1, 1.2)], {})
    row = next(row for row in none if row["arm"] == "masked" and row["budget_flops"] == 100)
    assert row["speedup"]["error"] is None
    assert [line[-2:] for line in rows_of(row)] == [["never", "never"], ["–", "–"]]


def test_scratch_is_as_fast_as_itself_however_noisy():
    for ends in ([3.0, 1.0, 2.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0]):
        curves = {"error": [(x, y) for x, y in zip((25.0, 50.0, 100.0), ends, strict=True)]}
        scratch = replace(ran("scratch", 0, 1.0), curves=curves)
        same = replace(ran("masked", 0, 1.0), curves=curves)
        row = entries([scratch, same], {})[-1]
        assert row["speedup"]["error"]["flops"]["mean"] == 1.0
        assert row["improvement_percent"]["error"]["mean"] == 0.0


def test_an_arm_that_is_there_when_first_looked_at_is_at_least_so_fast():
    arm = ran("masked", 0, 0.05)
    row = entries([ran("scratch", 0, 1.0), arm], {})[-1]
    assert row["speedup"]["error"]["flops"]["at_least"] == 0
    assert row["speedup"]["fd"]["flops"] == {
        "mean": 10.0,
        "values": [10.0],
        "reached": 1,
        "at_least": 1,
    }
    row["speedup"]["error"] = row["speedup"]["fd"]
    assert rows_of(row)[0][-2] == "≥ 10.00× (10.00)"


def test_a_kernel_distance_may_be_below_zero():
    curve = [(1.0, 0.1), (3.0, -0.1)]
    assert at(curve, 2.0) == pytest.approx(0.0)
    assert first_reached(curve, 0.05) == pytest.approx(1.5)


def test_seeds_are_paired_and_datasets_kept_apart():
    runs = [ran("scratch", 0, 1.0), ran("scratch", 1, 9.0), ran("masked", 1, 4.5)]
    runs += [ran("scratch", 1, 0.1, dataset="other")]
    row = next(row for row in entries(runs, {}) if row["arm"] == "masked")
    assert row["seeds"] == [1]
    assert row["speedup"]["error"]["flops"]["mean"] == 2.0
    assert entries([ran("masked", 1, 1.0)], {}) == []


def test_transfer_is_the_gain_in_per_cent_seed_by_seed():
    runs = [ran("scratch", 0, 1.0), ran("scratch", 1, 2.0)]
    runs += [ran("masked", 0, 0.9, 0.5), ran("masked", 1, 2.2, 0.5)]
    (row,) = transfers(runs)
    assert row["improvement_percent"]["error"] == {"mean": pytest.approx(0, abs=1e-9), "std": 14.14}
    # Of the masked part, until half of the compute, no error counts.
    lowest = {"mean": 0.0155, "std": 0.009192}
    assert row["pretrained"]["lowest_error"] == row["pretrained"]["error"] == lowest
    dip = replace(runs[0], curves={"error": [(20.0, 0.001), (60.0, 0.004), (100.0, 0.01)]})
    (row,) = transfers([dip, replace(runs[2], curves=dip.curves)])
    assert row["scratch"]["lowest_error"]["mean"] == 0.001  # scratch has no masked part
    assert row["pretrained"]["lowest_error"]["mean"] == 0.004
    assert row["pretrained"]["error"]["mean"] == 0.01
    assert row["improvement_percent"]["kid"] is None
    assert row["finetuning_flops"] == 100
    assert row["pretraining_flops"] == 50


def test_a_summary_of_other_parts_takes_not_the_place_of_the_committed_one(tmp_path):
    with pytest.raises(UserError, match=r"evidence\.json is of confirmation, fine: name another"):
        summary.main(["confirmation"])
    with pytest.raises(UserError, match=r"decision-8 has runs of several budgets: .*decided"):
        summary.main(["decision-8"], tmp_path / "out.json")


def test_the_committed_summary_is_that_of_the_committed_runs(tmp_path):
    summary.main(None, tmp_path / "evidence.json")
    assert (tmp_path / "evidence.json").read_text() == summary.EVIDENCE.read_text()
    kept = json.loads(summary.TRANSFER.read_text())
    assert kept == json.loads(json.dumps(transfers(read_results("transfer"))))


# Images


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A prepared set of 20 training and 4 held-out images of the classes a, b, in turns.

    A part of it takes its place, and not that of the repository.
    """
    monkeypatch.setattr(images, "PREPARED", tmp_path / "prepared")
    samples = [
        Sample(np.full((8, 8, 3), number, dtype=np.uint8), number % 2, number >= 20)
        for number in range(24)
    ]
    folder = tmp_path / "prepared"
    about = {"size": 8, "channels": 3, "source": "none", "licence": "none"}
    return write_prepared(folder, iter(samples), classes=["a", "b"], **about)


def test_features_come_when_they_are_wanted_and_images_are_prepared_once(tmp_path, monkeypatch):
    """Also where the first call was stopped while it extracted them."""
    done = []

    def prepare():
        done.append("images")
        samples = [Sample(np.zeros((8, 8, 3), np.uint8), None, held) for held in (False, True)]
        about = {"size": 8, "channels": 3, "source": "none", "licence": "none"}
        write_prepared(images.PREPARED, iter(samples), classes=None, **about)

    def reference():
        done.append("features")
        images.FEATURES.parent.mkdir(exist_ok=True)
        if done.count("features") == 1:
            raise KeyboardInterrupt
        images.FEATURES.write_text("{}")

    monkeypatch.setattr(images, "SETS", tmp_path)
    monkeypatch.setattr(images.prepare, "main", prepare)
    monkeypatch.setattr(images.reference, "main", reference)
    images.make("openmoji", features=False)
    assert done == ["images"]
    with pytest.raises(KeyboardInterrupt):
        images.make("openmoji")
    for _ in range(2):
        images.make("openmoji")
    assert done == ["images", "features", "features"]
    assert Path.cwd() != tmp_path / "openmoji"


@pytest.mark.parametrize(
    ("select", "share", "train", "heldout"),
    [
        ({"classes": ["b"]}, 1.0, range(1, 20, 2), [21, 23]),
        ({"without": ["b"]}, 1.0, range(0, 20, 2), [20, 22]),
        ({"classes": ["a"]}, 0.3, [0, 8, 18], [20, 22]),
        ({"classes": ["a"]}, 0.01, [0], [20, 22]),
        ({"without": []}, 1.0, range(20), [20, 21, 22, 23]),
    ],
)
def test_a_part_of_a_set_is_of_its_classes_and_share(
    prepared, tmp_path, select, share, train, heldout
):
    keep(prepared, classes_kept(select), share)
    kept = open_prepared(tmp_path / "prepared")
    assert list(kept.train[:, 0, 0, 0]) == list(train)
    assert list(kept.heldout[:, 0, 0, 0]) == list(heldout)
    assert kept.classes is None


def test_the_halves_of_the_held_out_images_are_apart_and_the_training_images_the_same(
    prepared, tmp_path
):
    found = {}
    for half in ("first", "second"):
        keep(prepared, None, heldout=half)
        kept = open_prepared(tmp_path / "prepared")
        assert len(kept.train) == 20
        found[half] = [int(image[0, 0, 0]) for image in kept.heldout]
        # The set is replaced by its part: begin again with the whole of it.
        write_prepared(
            tmp_path / "prepared",
            (
                Sample(np.full((8, 8, 3), number, dtype=np.uint8), number % 2, number >= 20)
                for number in range(24)
            ),
            classes=["a", "b"], size=8, channels=3, source="none", licence="none",
        )  # fmt: skip
        prepared = open_prepared(tmp_path / "prepared")
    assert found == {"first": [20, 21], "second": [22, 23]}


def test_a_part_without_images_is_refused(prepared):
    with pytest.raises(UserError, match="No image is left"):
        keep(prepared, classes_kept({"classes": ["c"]}))


# For real


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A clone in which the runs of the tiny part are there."""
    clone = clone_tree(tmp_path_factory.mktemp("evidence") / "clone", SMALL)
    said = clone.call("python", "-m", "benchmarks.evidence.matrix", "tiny", "--jobs", "1")
    assert "0 of 4 runs are there" in said
    return clone


def results_of(clone, part="tiny"):
    folder = clone.path / "benchmarks/evidence/runs" / part
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))}


@pytest.mark.slow
def test_tiny_runs_are_measured_at_their_points(computed):
    found = results_of(computed)
    assert len(found) == 4
    for name, result in found.items():
        spent = sum(leg["flops"] for leg in result["training"])
        assert spent == result["curve"][-1]["flops"] == result["points"][-1]["flops"]
        assert abs(spent / 2e9 - 1) < 0.05
        assert [round(point["flops"] / 2e9, 1) for point in result["points"]] == [0.6, 1.0]
        assert all(math.isfinite(point["kid"]) for point in result["points"])
        flops = [row["flops"] for row in result["curve"]]
        assert flops == sorted(set(flops))
        masked = sum(leg["flops"] for leg in result["training"] if leg["visible"] < 64)
        assert masked / spent == pytest.approx(0.25 if name.startswith("patch-75") else 0, abs=0.03)
        picture = computed.path / "benchmarks/evidence/runs/tiny/openmoji-few" / name
        assert picture.with_suffix(".png").exists()
        prepared = computed.path / "benchmarks/evidence/sets/openmoji-few/data/prepared"
        count = len(open_prepared(prepared).train)
        assert result["training_images"] == {"pretrain": count, "finetune": count}
        models = computed.path / "benchmarks/evidence/weights/tiny/openmoji-few" / picture.stem
        assert (models / "finetune/model.safetensors").exists()
        assert (models / "pretrain/config.json").exists()
    assert found["scratch_0_base_0.json"]["curve"] != found["scratch_0_base_1.json"]["curve"]


@pytest.mark.slow
def test_runs_that_are_there_are_left_alone_until_they_change(computed):
    run = ("python", "-m", "benchmarks.evidence.matrix", "tiny", "--jobs", "1")
    before = results_of(computed)
    assert "4 of 4 runs are there" in computed.call(*run)
    gone = computed.path / "benchmarks/evidence/runs/tiny/openmoji-few/scratch_0_base_1.json"
    gone.unlink()
    said = computed.call(*run, OMP_NUM_THREADS="1")
    assert "3 of 4 runs are there" in said
    assert "tiny/openmoji-few/scratch_0_base_1 done" in said
    after = results_of(computed)
    for name, result in after.items():  # the same but for the clock
        assert result["curve"] == before[name]["curve"]
        assert result["points"] == before[name]["points"]


@pytest.mark.slow
def test_the_summary_and_the_step_times_of_the_tiny_part(computed):
    computed.call("python", "-m", "benchmarks.evidence.step_times", "--part", "tiny")
    summary = ("python", "-m", "benchmarks.evidence.summary", "--part", "tiny")
    assert "name another file, --out" in computed.call(*summary, code=1)
    computed.call(*summary, "--out", "reports/tiny.json")
    found = json.loads((computed.path / "reports/tiny.json").read_text())
    assert [(row["arm"], row["seeds"]) for row in found] == [
        ("scratch", [0, 1]),
        ("patch-75", [0, 1]),
    ]
    assert set(found[1]["speedup"]) == {"error", "fd", "kid"}
    timed = json.loads((computed.path / "reports/timing/step_times.json").read_text())
    assert {row["visible"] for row in timed["kinds"]} == {16, 64}


@pytest.mark.slow
def test_the_same_question_is_asked_of_own_images(computed, tmp_path):
    save_images(tmp_path / "own", [f"{number}.png" for number in range(30)], side=32)
    run = ("python", "-m", "benchmarks.evidence.matrix", "tiny", "--jobs", "1", "--only", "scratch")
    said = computed.call(*run, "--own", f"{tmp_path}/own")
    assert "tiny/own/scratch_0_base_1 done" in said
    assert "2 of 2 runs are there" in computed.call(*run, "--own", f"{tmp_path}/own")
    save_images(tmp_path / "own", ["another.png"], side=32)
    assert "0 of 2 runs are there" in computed.call(*run, "--own", f"{tmp_path}/own")
    said = computed.call(*run, "--own", f"{tmp_path}/nowhere", code=1)
    assert "There is no folder" in said
    assert "Traceback" not in said


def test_a_run_on_other_images_than_are_there_is_computed_anew(tmp_path, monkeypatch):
    run = Run("transfer", "flags-10", "block-75", "whole-batch-8", 1, 0)
    kept = read_result(results.RUNS / f"{run.name}.json")
    made = {"emoji-without-flags": kept.legs[0]["data"], "flags-10": kept.legs[-1]["data"]}

    def there(**other):
        for name, found in (made | other).items():
            path = tmp_path / name / "data/prepared/dataset.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"hash": found}))
        return is_there(MATRIX, run)

    monkeypatch.setattr("benchmarks.evidence.matrix.SETS", tmp_path)
    assert there()
    assert not there(**{"flags-10": "other"})
    assert not there(**{"emoji-without-flags": "other"})
    assert not is_there(MATRIX, replace(run, seed=9))


@pytest.mark.slow
def test_a_run_that_fails_is_named_with_its_log(computed):
    run = ("python", "-m", "benchmarks.evidence.matrix", "tiny", "--jobs", "1")
    name = "benchmarks/evidence/matrix.yaml"
    text = (computed.path / name).read_text()
    computed.edit(name, r"  batch-8: .*", "  batch-8: {finetune: {lr: -1.0}}")
    computed.edit(
        name,
        r"scratch: (\{dataset: \[openmoji-few\].*)tuning: \[base\]",
        r"scratch: \1tuning: [batch-8]",
    )
    try:
        said = computed.call(*run, "--only", "scratch", code=1)
    finally:
        (computed.path / name).write_text(text)
    assert "tiny/openmoji-few/scratch_0_batch-8_0 failed" in said
    assert os.sep + "work/" in said
