"""Packages that only some uses of maskdm need: extras of its installation."""

import importlib
from types import ModuleType

from maskdm.runtime.errors import UserError


def require_package(package: str, user: str, extra: str) -> ModuleType:
    """Import a package, or a module of one, that may not be installed.

    Args:
        package: its name, for import and for pip.
        user: what needs it, as the sentence begins.
        extra: the extra of maskdm that it belongs to.

    Raises:
        UserError: if it, or what it needs itself, is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        name = (error.name or package).partition(".")[0]
        raise UserError(
            f"{user} needs the package {name}, which is not installed: pip install {name} "
            f"(it is in maskdm's extra '{extra}', and make setup installs that)."
        ) from None
