"""Downloads that never hang and fail in one sentence; packages that only some sources need."""

import http.client
import importlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from maskdm.runtime.errors import UserError

PATIENCE = 30  # seconds that a server may say nothing


@contextmanager
def download(what: str, otherwise: str) -> Iterator[None]:
    """Bound how long a server may hang, and turn a failure into one sentence.

    Bounded is what leaves timeouts to the sockets, as urllib does; requests does not.

    Args:
        what: the name of what is downloaded.
        otherwise: what to do if that fails.

    Raises:
        UserError: for whatever a download can fail with.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} could not be downloaded ({reason}): {otherwise}") from None
    finally:
        socket.setdefaulttimeout(before)


def optional(package: str, source: str) -> ModuleType:
    """Import a package that only some sources need.

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
