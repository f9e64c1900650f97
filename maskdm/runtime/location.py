"""A folder anywhere that fsspec knows: another disk, ``s3://bucket/folder``, ``gs://…``, ``ssh://…``.

Networks fail for seconds, so whoever cannot do without an answer asks several times.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from maskdm.runtime.errors import UserError, reason
from maskdm.runtime.files import BEGUN

ATTEMPTS = 6
WAIT = 1  # second before another attempt, then 2, 4, …
IN_VAIN = FileNotFoundError, PermissionError  # what waiting does not mend

Found = TypeVar("Found")


# File systems of fsspec that are no storage, or none that maskdm can write to.
OF_ONE_PROCESS = {"memory", "data", "pyscript"}
OF_ANOTHER = {
    *("async_wrapper", "asyncwrapper", "asynclocal", "blockcache", "cached", "dask", "dir"),
    *("filecache", "generic", "reference", "simplecache"),
}
READ_ONLY = {"gist", "git", "github", "http", "https", "libarchive", "tar", "zip"}
OF_THIS_MACHINE = {"file", "local"}


def fault_of_place(url: str) -> str | None:
    """Return why nothing can be kept at an address or path, from its text alone, None if it may.

    Other processes must find it there, whatever folder they run in.

    Args:
        url: an address such as ``s3://bucket/folder``, or a path.

    Returns:
        What to say after the address, such as "no protocol stands before ://".
    """
    if "\0" in url:
        return "no place has this name"
    protocol, separator, rest = url.partition("://")
    if not separator:
        return None if Path(url).is_absolute() else "neither an address nor an absolute path"
    kind = protocol.lower()
    if not kind:
        return "no protocol stands before ://"
    if "::" in protocol or kind in OF_ANOTHER:
        return f"{protocol}:// is no storage itself: name the one behind it"
    if kind in OF_ONE_PROCESS:
        return f"what is written to {protocol}:// is gone with the process that wrote it"
    if kind in READ_ONLY:
        return f"nothing can be written to {protocol}://"
    if not rest.strip("/"):
        return f"no place stands behind {protocol}://"
    if kind in OF_THIS_MACHINE and not Path(rest).is_absolute():
        return f"no absolute path stands behind {protocol}://"
    return None


class StorageError(UserError):
    """Storage elsewhere does not do what it must; once it does, the same command goes on."""


class Location:
    """A folder.

    Args:
        url: where.
        made: whether it is made if it is missing.

    Raises:
        Exception: of any kind, if fsspec does not know such a location, or cannot reach it.

    Attributes:
        system: fsspec's file system.
        folder: the folder's path in it.
    """

    def __init__(self, url: str, made: bool = True) -> None:
        import fsspec

        self.url = url
        self.system, self.folder = fsspec.core.url_to_fs(url)
        protocols = self.system.protocol
        names = {protocols} if isinstance(protocols, str) else set(protocols)
        # Object stores show a file once it is whole; elsewhere a move does.
        self.atomic = bool(names & {"s3", "gs", "gcs", "abfs", "az", "oss"})
        if made:
            self.system.makedirs(self.folder, exist_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Write a file that has its name only once it is whole."""
        target = f"{self.folder}/{name}"
        if self.atomic:
            self.system.pipe_file(target, content)
        else:
            begun = f"{target}.{uuid4().hex}{BEGUN}"  # another machine may write the same file
            try:
                self.system.pipe_file(begun, content)
                self.system.mv(begun, target)
            except BaseException:
                with suppress(Exception):  # the first error says what is wrong
                    self.system.rm_file(begun)
                raise

    def read(self, name: str) -> bytes:
        """Return what is in a file.

        Raises:
            FileNotFoundError: if there is none.
        """
        return bytes(self.system.cat_file(f"{self.folder}/{name}"))

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, None if there is none, whatever was known of it before."""
        try:
            self.system.invalidate_cache(self.folder)
            return int(self.system.info(f"{self.folder}/{name}")["size"])
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.system.exists(f"{self.folder}/{name}"):
            with suppress(FileNotFoundError):  # another machine has removed it
                self.system.rm_file(f"{self.folder}/{name}")


def patiently(what: str, work: Callable[[], Found], silent: bool = False) -> Found:
    """Do ``work``; if it fails, wait and try again, longer each time, for half a minute.

    Args:
        what: is being done and where, as the message begins.
        work: what to do.
        silent: whether not to say that it is tried again.

    Raises:
        FileNotFoundError, PermissionError: at once.
        StorageError: if it fails to the end, with the reason.
    """
    import tenacity

    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        if error and state.attempt_number == 1 and not silent:
            print(f"{what} fails ({reason(error)}); trying again", file=sys.stderr, flush=True)

    trying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(WAIT),
        retry=tenacity.retry_if_exception(_may_pass),
        before_sleep=tell,
        reraise=True,
    )
    try:
        return trying(work)
    except IN_VAIN:
        raise
    except Exception as error:  # every file system has errors of its own
        raise StorageError(
            f"{what} fails ({reason(error)}): once it works, the same command goes on."
        ) from None


def _may_pass(error: BaseException) -> bool:
    """Return whether waiting may mend an error."""
    hopeless = isinstance(error, IN_VAIN) or "Credential" in type(error).__name__
    return isinstance(error, Exception) and not hopeless
