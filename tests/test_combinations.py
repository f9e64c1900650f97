"""Parameters together: what check accepts the stages run, all else is refused by its name."""

from itertools import combinations as two

import pytest

from benchmarks.presets import read_preset
from benchmarks.robustness import combinations
from benchmarks.robustness.combinations import (
    FACTORS,
    USUAL,
    VARIED,
    Tally,
    largest_accepted,
    refusal,
    refuse_nonsense,
)
from benchmarks.robustness.forks import Ended

SAMPLED = 3


@pytest.fixture(scope="module")
def rows():
    """Rows that hold every pair of values."""
    return combinations.covering()


def leaves(params, above=()):
    """Yield the keys of every value."""
    for key, value in params.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key)


def test_every_parameter_has_values_and_every_pair_of_them_is_in_a_row(rows):
    assert set(leaves(read_preset("laptop"))) == FACTORS.keys()
    numbered = [[(key, VARIED[key].index(row[key])) for key in VARIED] for row in rows]
    held = {frozenset(pair) for row in numbered for pair in two(row, 2)}
    assert held == set(combinations.pairs())


def test_the_usual_row_is_accepted_and_of_another_as_much_as_goes_together(rows):
    assert refusal(USUAL) is None
    mixed = [row for row in rows if refusal(row) is not None][:SAMPLED]
    assert mixed
    for row in mixed:
        kept = largest_accepted(row)
        assert refusal(kept) is None
        assert sum(kept[key] == row[key] for key in VARIED) > len(VARIED) * 0.8
        put_back = [key for key in VARIED if kept[key] != row[key]]
        assert all(refusal(kept | {key: row[key]}) for key in put_back)


def test_nonsense_is_refused_by_its_name_whatever_the_others_are(rows):
    tally = Tally()
    for number, row in enumerate(rows[:: len(rows) // SAMPLED]):
        refuse_nonsense(row, number, tally)
    assert tally.faults == []
    assert tally.nonsense >= SAMPLED * len(FACTORS)


def test_nonsense_that_is_accepted_or_not_named_is_a_fault(monkeypatch):
    for said in (None, "something is wrong"):
        tally = Tally()
        monkeypatch.setattr(combinations, "refusal", lambda row, said=said: said)
        refuse_nonsense(USUAL, 0, tally)
        assert (len(tally.faults), tally.nonsense) == (len(USUAL), 0)


@pytest.mark.parametrize("fails", [None, "fid"])
def test_pairs_count_as_run_once_every_stage_has_ended_well(tmp_path, monkeypatch, fails):
    monkeypatch.setattr(
        combinations, "run", lambda name, _: Ended(int(name == fails), "error: x", 0, 0, 0)
    )
    tally = Tally()
    combinations.run_all(USUAL, tmp_path / "w", tally)
    assert len(tally.run) == (0 if fails else len(VARIED) * (len(VARIED) - 1) / 2)
    assert len(tally.faults) == bool(fails)
