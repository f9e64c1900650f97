"""The kit for GPUs: it ends by itself, goes on where it was, and outlives a piece that fails."""

import json

import pytest
import torch

from benchmarks.gpu import exactness, kit
from maskdm.runtime.execution import Execution
from tools.tables import kit as tables

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The kit with pieces of its own; what they were asked is noted."""
    asked = []

    def piece(name, value):
        def measure():
            asked.append(name)
            if isinstance(value, Exception):
                raise value
            return value

        return name, measure

    monkeypatch.setattr(kit, "REPORTS", tmp_path)
    monkeypatch.setattr(
        kit, "pieces", lambda _: [piece("a", 1.0), piece("b", ValueError("no")), piece("c", {})]
    )
    return asked


def read(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_it_goes_on_where_it_was_and_a_piece_that_fails_stops_nothing(measured, tmp_path):
    kit.main(only="a")
    assert measured == ["a"]
    kit.main()
    assert measured == ["a", "b", "c"]
    kit.main()
    assert measured == ["a", "b", "c"]
    pieces = read(tmp_path)["pieces"]
    assert pieces == {"a": 1.0, "b": {"failed": "ValueError: no"}, "c": {}}


def test_it_begins_nothing_when_the_time_is_over(measured, tmp_path, capsys):
    kit.main(minutes=0.0)
    assert measured == []
    assert "run it again to go on" in capsys.readouterr().out


def test_its_pieces_have_names_of_their_own_and_what_compiles_comes_last():
    names = [name for name, _ in kit.pieces(Execution(CPU))]
    assert len(set(names)) == len(names)
    compiled = ["compiled" in name for name in names]
    assert compiled == sorted(compiled)
    steps = [name for name in names if name.startswith("steps")]
    assert all(tables.STEPS.fullmatch(name) for name in steps)


@pytest.mark.slow
def test_exactness_holds_on_a_cpu():
    found = exactness.exactness(Execution(CPU))
    assert found["two runs the same"]
    assert found["stopped and gone on the same"]
    assert found["losses finite"]
    assert found["against launched and not compiled"] == 0
    assert 0 < found["micro-batches"] < 1e-4


def test_a_difference_is_seen():
    one = {"a": torch.ones(3), "history.losses": torch.tensor([1.0, 2.0])}
    other = {"a": torch.ones(3), "history.losses": torch.tensor([1.0, 2.5])}
    assert exactness.same(one, one)
    assert not exactness.same(one, other)
    assert exactness.difference(one["history.losses"], other) == pytest.approx(0.25)


def test_the_tables_say_what_the_report_says(monkeypatch, tmp_path):
    report = {
        "device": "A", "torch": "2", "cpu": "B",
        "pieces": {
            "multiply, bf16": 4e12,
            "exactness, fp32": {"two runs the same": False, "micro-batches": 2e-7},
            "batches, demo, 75%": 30.0,
            "steps, demo, 75%, bf16, replayed": {
                "images a step": 64, "steps/s": 200.0, "images/s": 12800.0, "FLOP/s": 2e12,
                "peak memory, bytes": 2**30,
            },
            "steps, demo, 0%, bf16, replayed": {"failed": "RuntimeError: no"},
        },
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(report))
    monkeypatch.setattr(tables, "REPORTS", tmp_path)
    assert "| demo | 75% | 64 | replayed | 200 | 12,800 | 2 | 0.5 | 1 | 30 |" in tables.speed()
    assert "failed" not in tables.speed()
    assert "| two runs the same | **no** |" in tables.exactness()
