"""The table of what was done to break the pipeline says what the reports say."""

import json

import pytest

from tools.tables import robustness
from tools.tables.pages import TABLES

REPORT = {
    "inputs": {"cases": 5, "picture": 2, "skipped": 3},
    "fuzzed_by_coverage": {"images": {"files": 12345, "seconds": 600, "found": 3, "defects": 1}},
    "combinations": {
        "pairs": 90,
        "pairs_run": 60,
        "pairs_refused": 30,
        "rows_with_nonsense_refused": 7,
        "faults": ["one"],
    },
    "kills_under_dvc_repro": {"kills": 6, "lost": [], "wrong": ["a"]},
    "faults_at_writes": {
        "faults": 9,
        "kinds": {"full": 4, "killed": 5},
        "lost": ["a", "b"],
        "wrong": [],
        "left": [],
        "unclear": [],
    },
}
PHASE = {"signals": {"SIGKILL": 3, "SIGINT": 1}, "differing": []}


@pytest.fixture
def reports(tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "REPORTS", tmp_path)
    (tmp_path / "robustness.json").write_text(json.dumps(REPORT))
    return tmp_path


@pytest.mark.parametrize(
    "row",
    [
        "| odd files | 5 | 2 picture, 3 skipped |",
        "guided by coverage: images | 12,345 files in 10 minutes | defects: 3 found, 1 left |",
        "| values of two parameters together | 90 of 90 pairs | 60 run, 30 refused in a sentence, ",
        "| `kill -9` under `dvc repro` | 6 | 0 files lost, 1 wrong |",
        "(4 × full disk, 5 × kill) | 9 | 2 files lost, 0 wrong, 0 left over; 0 ",
    ],
)
def test_what_was_tried_is_a_row(row, reports):
    assert row in TABLES["robustness"]()


def test_what_was_not_tried_is_none(reports):
    assert "signals" not in robustness.table()
    torture = {"pretrain": PHASE, "finetune": PHASE}
    (reports / "torture.json").write_text(json.dumps(torture))
    assert "| signals to finetune | 4 | 0 wrong |" in robustness.table()
    (reports / "robustness.json").unlink()
    assert "odd files" not in robustness.table()
