"""Copies of checkpoints elsewhere, in case the machine itself is lost.

Any location that fsspec knows: another disk, ``s3://bucket/folder``, ``gs://…``, ``ssh://…``. A
remote that fails is reported once and costs nothing else: the checkpoints on the disk are the ones
that count.
"""

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from maskdm.runtime.environment import CHECKPOINTS_REMOTE
from maskdm.runtime.errors import UserError, reason
from maskdm.runtime.files import BEGUN
from maskdm.runtime.location import Found, Location, patiently


class Remote:
    """The files of one folder of checkpoints, elsewhere.

    Args:
        url: the folder, which is made if need be.

    Attributes:
        begun: whether training has begun, which a remote is not to hold up.

    Raises:
        UserError: if fsspec does not know such a location, or cannot reach it.
    """

    def __init__(self, url: str) -> None:
        self.url, self.failed, self.begun = url, False, False
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="remote")
        self.sending: Future[None] = Future()
        self.sending.set_result(None)
        try:
            self.location = Location(url)
        except Exception as error:  # every file system has errors of its own
            raise UserError(
                f"{CHECKPOINTS_REMOTE.name} leads to {url}, which cannot be used "
                f"({reason(error)}): see docs/running.md, or unset it."
            ) from None
        self.system, self.folder = self.location.system, self.location.folder

    def names(self, suffix: str = "") -> list[str]:
        """Return the names of the remote's files that end in ``suffix``."""
        self.system.invalidate_cache()

        def look() -> list[str]:
            try:
                return list(self.system.ls(self.folder, detail=False))
            except FileNotFoundError:  # an object store has no folder before it has a file
                return []

        found = self._try("list", partial(self._patiently, "list", look)) or []
        return sorted(Path(name).name for name in found if name.endswith(suffix))

    def fetch(self, name: str, folder: Path) -> None:
        """Copy a file of the remote into ``folder``."""
        begun = folder / f"{name}{BEGUN}"

        def copy() -> None:
            self.system.get_file(f"{self.folder}/{name}", str(begun))
            begun.replace(folder / name)

        self._try("read", partial(self._patiently, "read", copy))

    def clear(self, ours: Callable[[str], bool]) -> None:
        """Remove files from the remote, and its folder if nothing else is in it.

        Args:
            ours: whether a file is one to remove, by its name.
        """
        for name in filter(ours, self.names()):
            self._try("clear", partial(self.location.remove, name))
        if not self.names() and not self.failed:

            def remove_folder() -> None:
                if self.system.isdir(self.folder):  # object stores have none without files
                    self.system.rmdir(self.folder)

            self._try("clear", remove_folder)

    def send(
        self,
        files: Mapping[str, bytes],
        superfluous: Callable[[list[str]], list[str]],
        wait: bool,
        required: bool = False,
    ) -> None:
        """Write files to the remote, in their order, then remove what is superfluous.

        Args:
            files: content by name.
            superfluous: names in the remote → names to remove.
            wait: until it is done, and what was begun before; else it goes on in the background.
            required: whether it is done even if the one before is not; else it is left out then.
        """
        if not (wait or required or self.sending.done()):
            return
        self.sending = self.thread.submit(self._send, dict(files), superfluous)
        if wait:
            self.sending.result()

    def _send(
        self, files: Mapping[str, bytes], superfluous: Callable[[list[str]], list[str]]
    ) -> None:
        for name, content in files.items():
            if not self._try("write", partial(self._write, name, content)):
                return  # nothing old goes before the new has come
        for name in superfluous(self.names()):
            self._try("clear", partial(self.location.remove, name))

    def _write(self, name: str, content: bytes) -> bool:
        """Write a file; return True."""
        self.location.write(name, content)
        return True

    def _patiently(self, what: str, work: Callable[[], Found]) -> Found:
        """Do ``work``, again and again for half a minute before the first step.

        What a remote cannot give for a moment would be computed again, for days.
        """
        if self.begun:
            return work()
        return patiently(f"The remote of checkpoints at {self.url} ({what})", work)

    def _try(self, what: str, work: Callable[[], Any]) -> Any:
        """Do ``work``; if it fails, say so once."""
        try:
            return work()
        except Exception as error:
            if not self.failed:
                print(
                    f"The remote of checkpoints at {self.url} fails ({what}: "
                    f"{reason(error)}); going on with those on this machine.",
                    file=sys.stderr,
                )
            self.failed = True
            return None
