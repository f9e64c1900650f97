"""The table of what was done to break the pipeline says what the reports say."""

import json
from pathlib import Path

import pytest

from tools.tables import robustness
from tools.tables.pages import TABLES

MEASURED = {"mib": 100, "handles": 8, "temporary_files": 0, "kib_on_disk": 12345}
REPORT = {
    "inputs": {"cases": 5, "picture": 2, "skipped": 3},
    "near_duplicates": {
        "drawings": 1000,
        "found": {"saved": 0.9928, "scaled": 1.0},
        "taken_for_it": {"moved": 0.0},
    },
    "fuzzed_by_coverage": {"images": {"files": 12345, "seconds": 600, "found": 3, "defects": 1}},
    "combinations": {
        "pairs": 90,
        "pairs_run": 60,
        "pairs_refused": 30,
        "rows_with_nonsense_refused": 7,
        "faults": ["one"],
    },
    "kills_under_dvc": {
        "exp run": {
            "kills": {"SIGINT to all": 2, "SIGKILL to all": 4},
            "lost": [],
            "wrong": ["a"],
            "left_running": [],
        }
    },
    "faults_at_writes": {
        "faults": 9,
        "kinds": {"full": 4, "SIGKILL": 5},
        "longest": {
            "seconds": 1800,
            "rounds": 2,
            "first_round": MEASURED,
            "last_round": MEASURED | {"mib": 101, "kib_on_disk": 23456},
        },
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
        "that were changed, found to be the same | 1,000 | saved: 99.3 %, scaled: 100 % |",
        "| drawings that were changed, taken for the same | 1,000 | moved: 0 % |",
        "| values of two parameters together | 90 of 90 pairs | 60 run, 30 refused in a sentence, ",
        "under `dvc exp run` (2 × SIGINT to all, 4 × SIGKILL to all) | 6 | 0 files",
        "| 0 files lost, 1 wrong; 0 processes left |",
        "| 30 minutes | MiB of memory 100 → 101, open files 8 → 8, temporary files 0 → 0, KiB on ",
        "(4 × full disk, 5 × SIGKILL) | 9 | 2 files lost, 0 wrong, 0 left over; 0 ",
    ],
)
def test_what_was_tried_is_a_row(row, reports):
    assert row in TABLES["robustness"]()


def test_what_was_not_tried_is_none(reports):
    assert "signals to" not in robustness.table()
    assert robustness.table().endswith(
        "| signals and faults in all | 15 | 2 results lost, 1 wrong |"
    )
    torture = {"pretrain": PHASE, "finetune": PHASE}
    (reports / "torture.json").write_text(json.dumps(torture))
    assert "| signals to finetune | 4 | 0 wrong |" in robustness.table()
    assert "| signals and faults in all | 23 | 2 results lost, 1 wrong |" in robustness.table()
    (reports / "robustness.json").unlink()
    assert "odd files" not in robustness.table()


def test_what_the_page_says_of_kills_of_prepare_is_what_the_report_says():
    kept = json.loads(Path("reports/robustness.json").read_text())["kills_of_prepare"]
    again, signals = kept["images_read_again_a_kill"], kept["signals"]
    assert not kept["differing"]
    said = (
        f"Of {kept['images']:,} images, {sum(signals.values())} signals at random moments "
        f"({signals['SIGKILL']} of them SIGKILL) had {again['mean']} read again on average and "
        f"{again['most']} at most; no byte of the result differed"
    )
    assert said.replace(",000", " 000") in Path("docs/running.md").read_text()
