"""Every parameter, what is allowed and what the default is: the table in docs/parameters.md."""

import json
from typing import Any

from benchmarks.presets import DEFAULTS, read_preset
from maskdm.runtime.params import Section
from stages.check import SECTIONS


def table() -> str:
    """Return a table a section, in Markdown, read from the classes that validate them."""
    defaults = read_preset(DEFAULTS)
    parts = []
    for name, kind in SECTIONS.items():
        if isinstance(kind, type) and issubclass(kind, Section):
            rows = "\n".join(_rows(kind, defaults[name], ""))
            parts.append(f"### `{name}`\n\n| key | allowed | default |\n|---|---|---|\n{rows}")
        else:
            parts.append(f"### `{name}`\n\nA whole number >= 0; default {defaults[name]}.")
    return "\n\n".join(parts)


def _rows(kind: type[Section], defaults: dict[str, Any], prefix: str) -> list[str]:
    """Return the rows of a section and of the sections in it."""
    rows = []
    for key, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            rows += _rows(inner, defaults[key], f"{prefix}{key}.")
            continue
        default = defaults[key]
        shown = default if isinstance(default, str) else json.dumps(default)
        rows.append(f"| `{prefix}{key}` | {field.description} | `{shown}` |")
    return rows
