"""Downloads that never hang and fail in one sentence."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from maskdm.runtime.errors import UserError

TIMEOUT = 30.0  # seconds that a server may stay silent


@contextmanager
def download(what: str, otherwise: str) -> Iterator[float]:
    """Bound how long a server may stay silent, and turn a failure into one sentence.

    The bound is the default of new sockets, which urllib keeps to. A client that sets its own
    (gdown, requests) must be given the time-out.

    Args:
        what: the name of what is downloaded.
        otherwise: what to do if that fails.

    Yields:
        The time-out in seconds.

    Raises:
        UserError: if the download fails.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield TIMEOUT
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} could not be downloaded ({reason}): {otherwise}") from None
    finally:
        socket.setdefaulttimeout(before)
