"""Packages that only some sources need."""

import importlib
from types import ModuleType

from maskdm.runtime.errors import UserError


def require_package(package: str, source: str) -> ModuleType:
    """Import a package that a source needs.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise UserError(
            f"Source '{source}' needs the package {package}, which is not installed: pip install "
            f"{package} (it is in maskdm's extra 'sources', and make setup installs that)."
        ) from None
