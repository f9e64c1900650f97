"""The presets, read: presets/laptop.yaml, the defaults, is whole, all others are overlays of it."""

from pathlib import Path

from maskdm.runtime.errors import UserError
from maskdm.runtime.params import Params, merge, read_params, read_section
from stages.check import SECTIONS

PRESETS = Path(__file__).parent.parent / "presets"
DEFAULTS = "laptop"


def names() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset(name: str) -> Params:
    """Return the whole params of a preset.

    Raises:
        UserError: if there is no such preset.
    """
    return merge(read_params(path_of(DEFAULTS)), read_params(path_of(name)))


def same(some: Params, other: Params) -> bool:
    """Return whether two sets of whole params mean the same.

    What was kept before a parameter existed has its default, which changes nothing.
    """

    def complete(params: Params) -> Params:
        return {name: read_section(params, name, kind) for name, kind in SECTIONS.items()}

    return complete(some) == complete(other)


def path_of(name: str) -> Path:
    """Return the file of a preset.

    Raises:
        UserError: if there is no such preset.
    """
    if name not in names():
        raise UserError(f"There is no preset '{name}'. There are: {', '.join(names())}.")
    return PRESETS / f"{name}.yaml"
