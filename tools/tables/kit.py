"""What was measured on GPUs by ``make gpu``: tables of docs/speed.md and docs/running.md."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.tables.measured import in_markdown, number

REPORTS = Path("reports/gpu")
STEPS = re.compile(r"steps, (?P<size>.+), (?P<rate>\d+%), (?P<precision>\w+), (?P<way>.+)")

OTHERS = ("attention", "weights", "compiling")


def reports() -> Iterator[dict[str, Any]]:
    """Yield the report of every device that was measured."""
    for path in sorted(REPORTS.glob("*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def speed() -> str:
    """Return the rates of training steps, a table a device."""
    return "\n\n".join(map(_speed_of, reports()))


def _speed_of(report: dict[str, Any]) -> str:
    pieces = report["pieces"]
    rows = []
    for name, found in pieces.items():
        matched = STEPS.fullmatch(name)
        if matched is None or "failed" in found:
            continue
        size, rate, precision, way = matched.groups()
        made, best = (
            pieces.get(piece) for piece in (f"batches, {size}, {rate}", f"multiply, {precision}")
        )
        rows.append(
            (
                size,
                rate,
                f"{found['images a step']}",
                way,
                number(found["steps/s"]),
                number(found["images/s"]),
                number(found["FLOP/s"] / 1e12),
                f"{found['FLOP/s'] / best:.2g}" if isinstance(best, float) else "",
                number(peak / 2**30) if (peak := found["peak memory, bytes"]) else "",
                number(made) if isinstance(made, float) else "",
            )
        )
    head = (
        "network", "masked", "images a step", "launches", "steps/s", "images/s", "TFLOP/s",
        "of the best multiply", "GiB", "batches/s that the CPU makes",
    )  # fmt: skip
    fastest = ", ".join(
        f"{number(pieces[f'multiply, {precision}'] / 1e12)} TFLOP/s in {precision}"
        for precision in ("fp32", "bf16", "fp16")
        if isinstance(pieces.get(f"multiply, {precision}"), float)
    )
    reached = f"; a large multiply reaches {fastest}" if fastest else ""
    return f"{_device(report)}{reached}:\n\n{in_markdown(head, rows)}"


def exactness() -> str:
    """Return what holds to the last bit, and to which digit the rest, a table a device."""
    found = []
    for report in reports():
        names = [name for name in report["pieces"] if name.startswith("exactness")]
        keys = list(dict.fromkeys(key for name in names for key in report["pieces"][name]))
        rows = [(key, *(_said(report["pieces"][n].get(key)) for n in names)) for key in keys]
        head = ("", *(name.removeprefix("exactness, ") for name in names))
        found.append(f"{_device(report)}:\n\n{in_markdown(head, rows)}")
    return "\n\n".join(found)


def others() -> str:
    """Return what else was measured, a table a device: the pieces that are neither of the above."""
    found = []
    for report in reports():
        rows = [
            (name, ", ".join(_figure(key, value) for key, value in measured.items()))
            for name, measured in report["pieces"].items()
            if name.startswith(OTHERS) or re.match(r"\d+ GPUs", name)
        ]
        if rows:
            found.append(f"{_device(report)}:\n\n{in_markdown(('', 'measured'), rows)}")
    return "\n\n".join(found) or "Nothing yet: `make gpu` measures it."


def _figure(key: str, value: object) -> str:
    return f"{key}: {number(value) if isinstance(value, float) else value}"


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return "" if value is None else f"{value:.1g}" if isinstance(value, float) else str(value)


def _device(report: dict[str, Any]) -> str:
    return f"{report['device']}, torch {report['torch']}, CPU {report['cpu']}"
