"""Commands of former versions are refused with a sentence that names the new one."""

import sys
from collections.abc import Mapping


def refuse_renamed(modules: Mapping[str, str]) -> None:
    """End with a sentence if Python was asked to run a module that has another name now.

    Called by a package on import: ``python -m package.module`` imports the package first.

    Args:
        modules: former names → present names.
    """
    if sys.argv[:1] != ["-m"]:  # what sys.argv begins with until the module has been found
        return
    module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    if module in modules:
        new = modules[module]
        sys.exit(f"\nerror: python -m {module} is python -m {new} now.\n")
