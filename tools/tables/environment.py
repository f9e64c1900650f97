"""Every variable of the environment, its meaning and default: the table in docs/running.md."""

from maskdm.runtime.environment import VARIABLES, WORKER

# Torch reads this one, not maskdm.
OMP = (
    "OMP_NUM_THREADS",
    "threads of a process on CPUs",
    "torch's; with several processes the cores, shared",
)


def table() -> str:
    """Return the table, in Markdown; without the variable that the launcher sets."""
    rows = [(v.name, v.meaning, v.otherwise) for v in VARIABLES if v is not WORKER]
    lines = [f"| `{name}` | {meaning} | {default} |" for name, meaning, default in (*rows, OMP)]
    return "\n".join(["| variable | meaning | default |", "|---|---|---|", *lines])
