"""The tables in docs/speed.md say what stands in the reports."""

import json

import pytest

from benchmarks.speed.results import Row
from tools.tables import measured

ABOUT = {
    "machine": {"cpu": "Abacus", "cores": 3, "memory": "1 GiB", "device": "cpu"},
    "versions": {"python": "3.11", "torch": "2"},
}


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """A folder of reports."""
    monkeypatch.setattr(measured, "REPORTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("ratio", "higher", "said"),
    [(0.9, True, "≥ 0.85"), (0.8, True, "≥ 0.85, missed"), (0.8, False, "≤ 0.85"),
     (0.9, False, "≤ 0.85, missed")],
)  # fmt: skip
def test_a_goal_that_is_missed_says_so(ratio, higher, said, reports):
    row = Row("step", ratio * 2260, "GFLOP/s", 2260, 0.85, higher).record()
    (reports / "bench.json").write_text(json.dumps(ABOUT | {"rows": [row]}))
    *about, last = measured.speed().splitlines()
    value = {0.9: "2,030", 0.8: "1,810"}[ratio]
    assert last == f"| step | {value} GFLOP/s | 2,260 GFLOP/s | {ratio:.2f} | {said} |"
    assert about[0].startswith("On Abacus, 3 cores, 1 GiB, device cpu; Python 3.11, torch 2")


@pytest.mark.parametrize(("exponent", "said"), [(0.05, "≤ 0.1"), (0.2, "≤ 0.1, missed")])
def test_growth_has_a_line_a_quantity(exponent, said, reports):
    along = [
        {
            "factor": "images",
            "quantity": "batch",
            "value": value,
            "measured": value / 7,
            "unit": "s",
        }
        for value in (1000, 10_000)
    ]
    other = along[0] | {"quantity": "something else"}
    overall = {"factor": "images", "quantity": "batch", "exponent_measured": exponent}
    overall |= {"exponent_computed": None, "goal": 0.1}
    report = ABOUT | {"rows": [*along, other], "overall": [overall]}
    (reports / "growth.json").write_text(json.dumps(report))
    assert measured.growth().splitlines()[-1] == (
        f"| batch | images 1,000 → 10,000 | 143 → 1,430 s | {exponent:.2f} | {said} |"
    )


def test_shards_have_a_line_a_client_and_a_place(reports):
    report = {
        "versions": ABOUT["versions"] | {"s3fs": "7"},
        "MiB_per_second_read": {"s3fs": 81},
        "MiB_per_second_written": 30,
        "batches_per_second": {"file": 190, "server": 87},
    }
    (reports / "shards.json").write_text(json.dumps(ABOUT | report))
    assert measured.shards().splitlines()[-4:] == [
        "| read with s3fs 7 | 81 MiB/s |",
        "| written with s3fs, once | 30 MiB/s |",
        "| batches from the file | 190 a second |",
        "| batches from the server | 87 a second |",
    ]


def test_distances_stand_by_solver_and_evaluations(reports):
    cells = [
        {"solver": solver, "nfe": nfe, "kid_x": nfe / 100, "kid_x_std": 0.001 * nfe}
        for nfe in (7, 13)
        for solver in ("ddim", "heun")
    ]
    (reports / "solvers.json").write_text(json.dumps({"images": 40, "cells": cells}))
    said, _, *table = measured.evaluations().splitlines()
    assert said == "40 images a cell, deviation over subsets at most 0.013:"
    assert table == [
        "| `kid_x` after … | 7 evaluations | 13 evaluations |",
        "| --- | --- | --- |",
        "| `ddim` | 0.07 | 0.13 |",
        "| `heun` | 0.07 | 0.13 |",
    ]


def test_a_distance_that_is_null_is_a_dash(reports):
    cells = [
        {"solver": "ddim", "nfe": nfe, "kid_x": value, "kid_x_std": value}
        for nfe, value in ((7, None), (13, 0.02))
    ]
    (reports / "solvers.json").write_text(json.dumps({"images": 40, "cells": cells}))
    *_, last = measured.evaluations().splitlines()
    assert last == "| `ddim` | – | 0.02 |"


def test_what_was_not_measured_yet_is_a_dash(reports):
    """A report grows cell by cell, and may have been stopped anywhere."""
    cells = [
        {"solver": solver, "nfe": nfe, "kid_x": 0.1, "kid_x_std": 0.001}
        for solver, nfe in (("ddim", 7), ("heun", 7), ("ddim", 13))
    ]
    (reports / "solvers.json").write_text(json.dumps({"images": 40, "cells": cells}))
    assert measured.evaluations().splitlines()[-2:] == [
        "| `ddim` | 0.1 | 0.1 |",
        "| `heun` | 0.1 | – |",
    ]
    guided = [
        {"solver": "ddpm", "nfe": 25, "guide_scale": scale, "guide_interval": interval}
        for scale, interval in ((1.0, [0, 1]), (1.5, [0, 1]), (2.0, [0, 1]), (1.5, [0.2, 0.8]))
    ]
    cells = [cell | {"kid_x": 0.1, "network_passes": 50} for cell in guided]
    (reports / "guidance.json").write_text(json.dumps({"images": 40, "cells": cells}))
    assert measured.guidance().splitlines()[-1].endswith("| `kid_x` | 0.1 | 0.1 | – |")
