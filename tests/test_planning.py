"""A budget is spent to within a step of each phase, and what is printed can be run as it is."""

import json
import re

import pytest

from benchmarks.evidence.plan import network_of
from benchmarks.evidence.plan import pretraining as pretraining_of
from benchmarks.presets import read_preset
from benchmarks.scaling.planning import MASKED, SIZES, size_for, spend, step_flops
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import merge, read_params
from maskdm.training.flops import flops_before, training_flops
from maskdm.training.phases import FinetuneParams, PretrainParams
from stages.check import check
from tests.support.autoencoders import saved_autoencoder
from tests.support.graph import ROOT
from tools import plan

LAPTOP = read_preset("laptop")


@pytest.mark.parametrize("budget", [1e12, 1e13, 3e14, 1e17])
@pytest.mark.parametrize(
    "changes", [{}, {"pretrain": {"full_share": 0.1}}, {"model": {"patch": 2}}]
)
def test_a_budget_is_spent_to_within_a_step_of_each_phase(budget, changes):
    params = merge(LAPTOP, changes)
    planned = merge(params, spend(params, budget))
    masked, whole = step_flops(planned)
    steps = [planned[phase]["steps"] for phase in ("pretrain", "finetune")]
    assert abs(steps[0] * masked - MASKED * budget) <= 0.5 * masked
    assert abs(steps[1] * whole - (1 - MASKED) * budget) <= 0.5 * whole
    assert planned["pretrain"]["cooldown"] == 0 < planned["finetune"]["cooldown"]


def test_a_step_costs_what_training_counts_classes_included():
    trained = json.loads((ROOT / "reports/metrics.json").read_text())["training"]
    params = read_params(ROOT / "params.yaml")
    masked, whole = step_flops(params)
    steps = (params["pretrain"]["steps"], params["finetune"]["steps"])
    assert steps[0] * masked + steps[1] * whole == trained["flops"]
    without = step_flops(merge(params, {"data": {"classes": False}}))
    assert without[0] < masked
    assert without[1] < whole


def test_a_sparse_middle_costs_what_training_counts():
    params = merge(LAPTOP, {"mask": {"scope": "middle"}, "data": {"classes": False}})
    planned = merge(params, spend(params, 1e13))
    masked, _ = step_flops(planned)
    schedule = pretraining_of(planned)
    spent = flops_before(network_of(planned), schedule, schedule.steps)
    assert spent == pytest.approx(planned["pretrain"]["steps"] * masked)


def test_the_size_grows_with_the_budget_and_is_one_that_the_networks_take():
    widths = [size_for(10.0**power).dim for power in range(11, 20)]
    assert widths == sorted(widths)
    assert len(set(widths)) > 4
    for size in SIZES:
        assert size_for(size.budget) == size
        assert size.depth % 2 == 1
        assert size.dim % size.heads == 0


@pytest.mark.parametrize("name", ["laptop", "hero"])
def test_a_size_that_stands_on_a_run_has_that_runs_network_batches_and_rate(name):
    params, trained = read_preset(name), ROOT / "reports" / ("" if name == "laptop" else name)
    spent = json.loads((trained / "metrics.json").read_text())["training"]["flops"]
    size = size_for(spent)
    assert {"laptop": "the demo", "hero": "the hero"}[name] in size.stands_on
    for section, changes in size.sections().items():
        assert {key: params[section][key] for key in changes} == changes


def test_a_size_that_stands_on_the_study_was_run_in_it():
    cells = json.loads((ROOT / "reports/scaling.json").read_text())["cells"]
    run = {(cell["size"], f"{cell['budget']:.0e}".replace("+", "")) for cell in cells}
    for size in SIZES:
        for budget in re.findall(r"\de\d\d", size.stands_on) if "study" in size.stands_on else []:
            assert (f"width-{size.dim}", budget) in run


def overrides(printed):
    """Return what ``dvc exp run`` would be told, by section."""
    found = {}
    for section, key, value in re.findall(r"-S (\w+)\.(\w+)=(\S+)", printed):
        found.setdefault(section, {})[key] = json.loads(value)
    return found


def test_the_printed_overrides_pass_the_check_and_spend_the_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(LAPTOP))
    plan.main(flops=2e14)
    printed = capsys.readouterr().out
    assert printed.startswith(
        "# 2e+14 training FLOPs, 50% of them masked\n"
        "# this width stands on: nothing: between its neighbours\ndvc exp run"
    )
    changed = merge(LAPTOP, overrides(printed))
    assert changed == merge(changed, size_for(2e14).sections())
    for phase in ("pretrain", "finetune"):  # its film has as many rows as its curve has points
        assert changed[phase]["preview_every"] == changed[phase]["validate_every"]
    path.write_text(json.dumps(changed))
    check(path)
    masked, whole = step_flops(changed)
    spent = changed["pretrain"]["steps"] * masked + changed["finetune"]["steps"] * whole
    assert spent == pytest.approx(2e14, abs=masked + whole)

    path.write_text(json.dumps(LAPTOP))
    plan.main(flops=2e14, keep_size=True)
    kept = overrides(capsys.readouterr().out)
    assert "model" not in kept
    assert "batch_size" not in kept["pretrain"]

    path.write_text(json.dumps(merge(LAPTOP, {"finetune": {"preview_every": 0}})))
    plan.main(flops=2e14)
    assert "preview_every" not in overrides(capsys.readouterr().out)["finetune"]  # stays off


def test_minutes_become_flops_at_the_speed_of_the_size_that_they_allow(monkeypatch):
    asked = []

    def seconds(params):
        asked.append(params["model"]["dim"])
        return 1e-12 * (2 if params["model"]["dim"] < 128 else 1)  # small networks are slow

    monkeypatch.setattr(plan, "seconds_per_flop", seconds)
    planned, flops = plan.plan_minutes(merge(LAPTOP, {"model": {"dim": 512}}), 10.0, False)
    assert flops == pytest.approx(600e12)
    assert planned == merge(planned, size_for(600e12).sections())
    assert asked == [512, planned["model"]["dim"]]
    planned, flops = plan.plan_minutes(LAPTOP, 10.0, True)
    assert "model" not in planned


def test_the_speed_of_this_machine_is_measured_in_both_phases(monkeypatch, capsys):
    monkeypatch.setattr(plan, "TIMED", 0.05)
    tiny = read_preset("tiny")
    seconds = plan.seconds_per_flop(tiny)
    masked, whole = step_flops(tiny)
    assert 0 < seconds * min(masked, whole) < 10


def test_what_a_flop_takes_is_the_mean_over_the_shares_of_both_phases(monkeypatch):
    monkeypatch.setattr(plan, "_seconds_a_step", lambda _, phase, schedule: seconds[type(phase)])
    seconds = {PretrainParams: 2.0, FinetuneParams: 3.0}
    tiny = read_preset("tiny")
    masked, whole = step_flops(tiny)
    assert masked != whole
    found = plan.seconds_per_flop(tiny)
    assert found == pytest.approx(MASKED * 2 / masked + (1 - MASKED) * 3 / whole)


@pytest.mark.parametrize("changes", [{}, {"classes": True}, {"autoencoder": "vae"}])
def test_what_is_timed_is_the_network_whose_flops_are_counted(changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "TIMED", 0.01)
    if "autoencoder" in changes:
        saved_autoencoder(tmp_path / "vae")
    timed, build = [], plan.build_backbone

    def noted(*arguments):
        timed.append(build(*arguments))
        return timed[-1]

    monkeypatch.setattr(plan, "build_backbone", noted)
    params = merge(read_preset("tiny"), {"data": changes})
    plan.seconds_per_flop(params)
    grid = (8 if "autoencoder" in changes else 32) // params["model"]["patch"]
    whole = training_flops(timed[-1], grid**2, params["finetune"]["batch_size"])
    assert whole == step_flops(params)[1]


@pytest.mark.parametrize("budget", [{}, {"flops": 1e13, "minutes": 10.0}])
def test_one_budget_is_asked_for(budget):
    with pytest.raises(UserError, match="one budget, --minutes or --flops"):
        plan.main(**budget)


@pytest.mark.parametrize("budget", [{"flops": float("nan")}, {"minutes": float("inf")}])
def test_a_budget_is_a_number(budget):
    with pytest.raises(UserError, match="is no number: give it as"):
        plan.main(**budget)


def test_what_cannot_be_planned_is_refused():
    legs = [{"rate": 0.75, "steps": 10}]
    with pytest.raises(UserError, match=r"set pretrain\.legs to null"):
        spend(merge(LAPTOP, {"pretrain": {"legs": legs}}), 1e13)
    with pytest.raises(UserError, match="not enough for a step of each phase"):
        spend(LAPTOP, 1e8)
