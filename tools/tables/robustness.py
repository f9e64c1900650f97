"""The table of what was done to break the pipeline, from the reports of it."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

REPORTS = Path("reports")
Row = tuple[str, str, str]


def table() -> str:
    """Return what was tried, how often, and what came of it; only what was measured."""
    report = _read("robustness.json") | {"torture": _read("torture.json")}
    lines = ["| tried | how often | what came of it |", "| --- | --- | --- |"]
    for key, rows in KINDS.items():
        lines += [f"| {' | '.join(row)} |" for row in rows(report[key])] if report.get(key) else []
    return "\n".join([*lines, f"| {' | '.join(_in_all(report))} |"])


def _in_all(report: Mapping[str, Any]) -> Row:
    """Return the sum of the signals and faults that struck whole stages and pipelines."""
    torture = [report["torture"].get(phase, {}) for phase in ("pretrain", "finetune")]
    parts = [
        *(report.get("kills_of_prepare", {}), report.get("faults_at_writes", {}), *torture),
        *report.get("kills_under_dvc", {}).values(),
    ]
    struck = ("signals", "kinds", "kills")  # how each part calls how many there were of which kind
    count = sum(sum(part[key].values()) for part in parts for key in struck if key in part)
    lost = sum(len(part.get("lost", ())) for part in parts)
    wrong = sum(len(part.get("wrong", part.get("differing", ()))) for part in parts)
    return "signals and faults in all", f"{count:,}", f"{lost} results lost, {wrong} wrong"


def _read(name: str) -> dict[str, Any]:
    path = REPORTS / name
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _kills(report: Mapping[str, Any]) -> Iterator[Row]:
    for way, own in report.items():
        kinds = ", ".join(f"{count} × {kind}" for kind, count in own["kills"].items())
        counts = {name: len(own[name]) for name in ("lost", "wrong", "left_running")}
        came = "{lost} files lost, {wrong} wrong; {left_running} processes left".format(**counts)
        if failed := own.get("failed"):
            came += f"; {len(failed)} commands failed"
        yield f"kills under `dvc {way}` ({kinds})", f"{sum(own['kills'].values())}", came


def _prepare(report: Mapping[str, Any]) -> Iterator[Row]:
    signals, wrong = sum(report["signals"].values()), len(report["differing"])
    left = len(report["left_over"])
    yield "signals to prepare", f"{signals}", f"{wrong} files wrong, {left} left over"


def _torture(report: Mapping[str, Any]) -> Iterator[Row]:
    for phase in ("pretrain", "finetune"):
        wrong = len(report[phase]["differing"])
        yield f"signals to {phase}", f"{sum(report[phase]['signals'].values())}", f"{wrong} wrong"


def _writes(report: Mapping[str, Any]) -> Iterator[Row]:
    kinds = ", ".join(f"{count} × {FAULTS.get(k, k)}" for k, count in report["kinds"].items())
    counts = {name: len(report[name]) for name in ("lost", "wrong", "left", "unclear")}
    came = "{lost} files lost, {wrong} wrong, {left} left over; {unclear} messages unclear"
    yield f"a fault at a write of a stage ({kinds})", f"{report['faults']}", came.format(**counts)
    longest = report.get("longest", {})
    if longest.get("rounds", 1) > 1:  # one alone cannot show what grows
        first, last = longest["first_round"], longest["last_round"]
        grown = (f"{name} {first[key]:,} → {last[key]:,}" for key, name in MEASURED.items())
        often = f"{longest['seconds'] / 60:.0f} minutes"
        yield "such faults without a pause, first round → last", often, ", ".join(grown)


FAULTS = {
    "full": "full disk",
    "quota": "full quota",
    "read-only": "read-only folder",
    "failing": "I/O error",
    "handles": "too many open files",
}
MEASURED = {
    "mib": "MiB of memory",
    "handles": "open files",
    "temporary_files": "temporary files",
    "kib_on_disk": "KiB on the disk",
}


def _fuzzed(report: Mapping[str, Any]) -> Iterator[Row]:
    for name, own in report.items():
        often = f"{own['files']:,} files in {own['seconds'] / 60:.0f} minutes"
        came = f"defects: {own['found']} found, {own['defects']} left"
        yield f"fuzzing guided by coverage: {name}", often, came


def _combined(report: Mapping[str, Any]) -> Iterator[Row]:
    ran, refused = report["pairs_run"], report["pairs_refused"]
    whole = f"{ran + refused} of {report['pairs']} pairs"
    came = f"{ran} run, {refused} refused in a sentence, {len(report['faults'])} otherwise"
    yield "values of two parameters together", whole, came
    nonsense = report["rows_with_nonsense_refused"]
    yield "one value without sense among others", f"{nonsense}", "each refused by its name"


def _inputs(report: Mapping[str, Any]) -> Iterator[Row]:
    counts = {kind: count for kind, count in report.items() if kind != "cases"}
    came = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    yield "odd files", f"{report['cases']}", came


def _alike(report: Mapping[str, Any]) -> Iterator[Row]:
    for which, came in (("found", "found to be the same"), ("taken_for_it", "taken for the same")):
        shares = ", ".join(f"{name}: {100 * share:.3g} %" for name, share in report[which].items())
        yield f"drawings that were changed, {came}", f"{report['drawings']:,}", shares


KINDS: dict[str, Callable[[Mapping[str, Any]], Iterator[Row]]] = {
    "inputs": _inputs,
    "near_duplicates": _alike,
    "fuzzed_by_coverage": _fuzzed,
    "combinations": _combined,
    "kills_of_prepare": _prepare,
    "torture": _torture,
    "kills_under_dvc": _kills,
    "faults_at_writes": _writes,
}
