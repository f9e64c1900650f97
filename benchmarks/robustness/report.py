"""Where the figures of robustness stand: one file, in which each command has a part of its own."""

import json
from pathlib import Path
from typing import Any

from maskdm.runtime.files import write_json

REPORT = Path("reports/robustness.json")


def read_report() -> dict[str, Any]:
    """Return all parts by their names; none if nothing was measured yet."""
    return dict(json.loads(REPORT.read_text(encoding="utf-8"))) if REPORT.exists() else {}


def write_report(**parts: Any) -> None:
    """Write parts of the report; the others stay."""
    write_json(REPORT, read_report() | parts)
