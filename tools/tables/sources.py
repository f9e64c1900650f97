"""Every source of images, where its files come from and what its classes are: for docs/data.md."""

from maskdm.data.registry import SOURCES


def table() -> str:
    """Return the table, in Markdown, read from the registry."""
    lines = ["| `data.source` | `data.path` | if it is null | classes |", "|---|---|---|---|"]
    for name, kind in SOURCES.items():
        path = kind.path or "none: it comes from its package"
        null = "found or downloaded" if kind.fetch else "refused"
        origin = f" (from {kind.origin})" if kind.origin else ""
        lines.append(f"| `{name}` | {path}{origin} | {null} | {kind.classes or '–'} |")
    return "\n".join(lines)
