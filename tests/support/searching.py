"""Looking through the code for what should not be in it."""

from collections.abc import Callable, Iterable

from tests.support.clones import ROOT


def searched(folders: Iterable[str], finds: Callable[[str], Iterable[str]]) -> dict[str, set[str]]:
    """Return what is found in each Python file of some folders, where there is anything.

    Args:
        folders: of the repository.
        finds: the text of a file → what is in it.
    """
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if here := set(finds(path.read_text(encoding="utf-8"))):
                found[path.relative_to(ROOT).as_posix()] = here
    return found
