"""How long a mask rate pays, from curves whose cheapest way is known."""

from dataclasses import replace

import pytest

from benchmarks.evidence import calibrate
from benchmarks.evidence.calibrate import PART, branches, cheapest, cheapest_of_all, while_masked
from benchmarks.evidence.decision import SCRATCH, SUFFIX
from benchmarks.evidence.plan import arm_of, plan, read_matrix, runs_of
from benchmarks.evidence.results import read_results
from maskdm.runtime.errors import UserError

MATRIX = read_matrix()


def falling(scale, floor=0.0, points=60):
    """A curve that falls by a power law to a floor."""
    flops = [10 ** (11 + 2 * i / points) for i in range(points + 1)]
    return [(f, max(floor, scale * (f / 1e11) ** -0.3)) for f in flops]


def test_a_rate_that_is_cheaper_down_to_its_floor_is_left_there():
    scratch = falling(0.3)
    way = cheapest({0.0: scratch, 0.75: falling(0.2, floor=0.12)})
    assert list(way.legs) == [0.75, 0.0]
    # The masked curve is at 0.12 after (0.2 / 0.12)^(1 / 0.3) · 1e11 FLOPs, scratch after
    # (0.3 / 0.12)^(1 / 0.3) · 1e11: what lies between is saved.
    masked, whole = (1e11 * (scale / 0.12) ** (1 / 0.3) for scale in (0.2, 0.3))
    assert way.legs[0.75] == pytest.approx(masked, rel=0.05)
    assert way.legs[0.0] == pytest.approx(1e13 - whole, rel=0.05)
    assert (way.error, way.scratch) == (scratch[-1][1], 1e13)


def test_rates_follow_each_other_downwards_and_none_that_does_not_pay_is_taken():
    curves = {
        0.0: falling(0.3),
        0.5: falling(0.35),  # dearer than scratch throughout
        0.75: falling(0.2, floor=0.1),
        0.9: falling(0.15, floor=0.14),
    }
    assert list(cheapest(curves).legs) == [0.9, 0.75, 0.0]
    assert list(cheapest({0.0: curves[0.0], 0.5: curves[0.5]}).legs) == [0.0]


def test_no_way_is_dearer_than_scratch_and_a_curve_begins_where_it_was_measured():
    scratch = falling(0.3)
    late = [point for point in falling(0.2) if point[1] < 0.1]  # measured late: dear until then
    way = cheapest({0.0: scratch, 0.75: late})
    assert sum(way.legs.values()) <= way.scratch
    assert way.legs[0.75] >= late[0][0]  # nothing is gained before its first measurement


def test_the_legs_of_the_matrix_are_those_of_the_calibration():
    tested = {run.dataset: run for run in runs_of(MATRIX, "decision-8", ["calibrated"])}
    masked = {
        dataset.removesuffix(SUFFIX): {rate: flops for rate, flops in way.legs.items() if rate}
        for dataset, way in cheapest_of_all(read_results(PART)).items()
    }
    assert tested.keys() == {dataset for dataset, rates in masked.items() if rates}
    for dataset, run in tested.items():
        spent = sum(masked[dataset].values())
        budget = run.of * MATRIX["parts"][run.part]["budget"]
        assert run.share == pytest.approx(spent / budget, abs=0.005)
        legs = plan(MATRIX, run)["pretrain"]["legs"]
        told = arm_of(MATRIX, run)["pretrain"]["legs"]
        assert [leg["rate"] for leg in legs] == [leg["rate"] for leg in told]
        assert {leg["rate"]: leg["share"] for leg in told} == pytest.approx(
            {rate: flops / spent for rate, flops in masked[dataset].items()}, abs=0.005
        )


def test_the_calibration_has_its_runs_and_ways_see_the_masked_phase_alone():
    results = read_results(PART)
    assert {one.run for one in results} == set(runs_of(MATRIX, PART))
    for result in results:
        if result.run.share == 1:
            curve = while_masked(result)
            assert curve == result.curves["error"][: len(curve)]
            assert curve[-1][0] == sum(leg["flops"] for leg in result.legs[:-1])


def test_a_branch_has_saved_what_scratch_would_have_spent_less_what_was_spent():
    found = [one for one in read_results("fine") if one.run.dataset == "openmoji"]
    scratch, masked = (
        next(one for one in found if one.run.arm == arm) for arm in (SCRATCH, "patch-90")
    )

    def as_branch(share, first, last):
        legs = [dict(masked.legs[0], flops=first), masked.legs[-1]]
        curves = {"error": [(first, 0.9), last]}
        return replace(masked, run=replace(masked.run, share=share), legs=legs, curves=curves)

    whole = replace(scratch, curves={"error": [(1.0, 0.8), (2.0, 0.4), (4.0, 0.2)]})
    longer = as_branch(0.8, 2.0, (2.5, 0.1))
    shorter = as_branch(0.5, 0.5, (1.0, 0.4))
    found = branches([whole, longer, shorter], "openmoji")
    assert [branch.masked for branch in found] == [0.5, 2.0]
    assert [branch.saved for branch in found] == [1.0, None]  # scratch never gets to 0.1


def test_without_scratch_there_is_a_sentence(monkeypatch):
    masked = [one for one in read_results(PART) if one.run.arm != SCRATCH]
    monkeypatch.setattr(calibrate, "read_results", lambda part: masked)
    with pytest.raises(UserError, match="no runs of decision-8-calibration with scratch"):
        calibrate.main(PART)
