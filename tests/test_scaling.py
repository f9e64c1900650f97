"""The scaling study: its cells spend their budgets, and what is committed is what it says."""

import json

import pytest

from benchmarks.evidence.plan import network_of
from benchmarks.scaling import study, summary
from benchmarks.scaling.planning import step_flops
from benchmarks.scaling.study import Cell, cells, plan, read_study, result, samplings
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import merge
from tests.support.graph import ROOT

STUDY = read_study()
ALL = list(cells(STUDY))


def test_every_cell_spends_its_budget_on_a_network_of_its_own():
    assert len(set(ALL)) == len({cell.name for cell in ALL}) == len(ALL)
    for cell in ALL:
        params = plan(STUDY, cell)
        masked, whole = step_flops(params)
        spent = params["pretrain"]["steps"] * masked + params["finetune"]["steps"] * whole
        assert spent == pytest.approx(cell.budget, abs=masked + whole), cell
        network_of(params)  # can be built


def test_the_study_is_planned_to_span_what_it_is_to_decide():
    assert {cell.budget for cell in ALL} == {1e13, 4e13, 1e14}
    varied = [plan(STUDY, cell) for cell in ALL]
    for section, key, least in (
        ("model", "dim", 5),
        ("model", "depth", 4),
        ("model", "patch", 2),
        ("pretrain", "batch_size", 3),
        ("pretrain", "lr", 3),
    ):
        assert len({params[section][key] for params in varied}) >= least, key


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """A cell, its kept result, and what puts another one in its place."""
    monkeypatch.setattr(study, "RUNS", tmp_path)
    path = tmp_path / f"{ALL[0].name}.json"
    path.parent.mkdir(parents=True)
    params = plan(STUDY, ALL[0])
    kept = {"params": params, "samplings": samplings(STUDY, params), "distances": {}}
    return ALL[0], kept, lambda content: path.write_text(json.dumps(content))


def test_a_cell_of_other_parameters_counts_as_missing(cell):
    cell, kept, keep = cell
    assert result(STUDY, cell) is None
    keep(kept)
    assert result(STUDY, cell) is not None
    keep({"params": kept["params"], "kid": 0.1})  # of the former study
    assert result(STUDY, cell) is None
    faster = {"pretrain": {"lr": 2 * kept["params"]["pretrain"]["lr"]}}
    keep(kept | {"params": merge(kept["params"], faster)})
    assert result(STUDY, cell) is None


def test_a_cell_that_was_drawn_from_otherwise_counts_as_missing(cell):
    cell, kept, keep = cell
    keep(kept)
    more = merge(STUDY, {"samplings": {"plain": {"nfe": 25}}})
    third = merge(STUDY, {"samplings": {"third": {**STUDY["samplings"]["plain"], "nfe": 8}}})
    for changed in (more, third):
        assert result(changed, cell) is None
    assert result(STUDY, cell) is not None


def test_a_cell_that_is_not_in_the_study_is_said_to_be_none():
    with pytest.raises(UserError, match=r"study\.yaml has no such cell"):
        study.main(size="width-65")


def test_every_cell_is_measured_plain_and_guided_unless_its_primer_is_untrained():
    for cell in ALL:
        params = plan(STUDY, cell)
        names = set(samplings(STUDY, params))
        assert names == ({"plain", "guided"} if params["pretrain"]["steps"] else {"plain"}), cell
        for section in samplings(STUDY, params).values():
            assert section["count"] == 1500


def test_an_unknown_size_is_refused_with_what_there_is():
    with pytest.raises(UserError, match=r"no 'width-1' among the sizes.*width-64, width-96"):
        plan(STUDY, Cell(1e13, "width-1", "base"))


def test_the_committed_report_is_that_of_the_committed_cells():
    found = {cell: kept for cell in ALL if (kept := result(STUDY, cell)) is not None}
    files = {path.relative_to(study.RUNS) for path in study.RUNS.rglob("*.json")}
    assert {f"{path.with_suffix('')}" for path in files} == {cell.name for cell in found}
    report = json.loads((ROOT / "reports/scaling.json").read_text())
    assert report["cells"] == [
        json.loads(json.dumps(summary.row(cell, kept))) for cell, kept in found.items()
    ]
    page = (ROOT / "docs/scaling.md").read_text()
    assert f"{len(found)} of the study's {len(ALL)} cells have been run" in page
    assert f"the {len(ALL) - len(found)} cells of `study.yaml` that are not in the table" in page
    for cell, kept in found.items():
        assert kept["flops"] == pytest.approx(cell.budget, rel=0.02)
        assert kept["curve"][-1]["flops"] == kept["flops"]


def test_the_envelope_is_the_lowest_error_so_far():
    assert summary.envelope([(3, 0.2), (1, 0.5), (2, 0.3), (4, 0.25)]) == [
        (1, 0.5), (2, 0.3), (3, 0.2), (4, 0.2),
    ]  # fmt: skip
