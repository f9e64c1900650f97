"""Writing an array as shards elsewhere while it grows, in threads beside whatever makes it grow."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from uuid import uuid4

from maskdm.runtime.errors import UserError, reason
from maskdm.runtime.location import Location, StorageError, patiently

SENDERS = 4  # threads, each with a shard


@contextmanager
def sending(url: str, size: int) -> Iterator["ShardSender"]:
    """Provide what writes shards of an array; those under way are left if the block fails.

    Args:
        url: where to.
        size: bytes of a shard.

    Raises:
        UserError: if nothing can be written there.
    """
    sender = ShardSender(usable(url), size)
    try:
        yield sender
    finally:
        sender.threads.shutdown(wait=True, cancel_futures=True)


class ShardSender:
    """Writes an array as shards while it grows; those that are there already are not sent again.

    Args:
        location: where to.
        size: bytes of a shard.

    Attributes:
        sent: the names of the shards that were not there.
    """

    def __init__(self, location: Location, size: int) -> None:
        self.location, self.size, self.sent = location, size, list[str]()
        self.threads = ThreadPoolExecutor(SENDERS, "shards")
        self._names, self._begun = list[str](), bytearray()
        self._under_way = deque[Future[None]]()
        self._known = set[str]()

    def append(self, content: bytes) -> None:
        """Add bytes to the array.

        Raises:
            StorageError: if shards cannot be written.
        """
        self._begun += content
        while len(self._begun) >= self.size:
            self._send(bytes(self._begun[: self.size]))
            del self._begun[: self.size]

    def finish(self) -> list[str]:
        """Write what is left; return the names of all shards once they are there.

        Raises:
            StorageError: if shards cannot be written.
        """
        if self._begun:
            self._send(bytes(self._begun))
            self._begun.clear()
        while self._under_way:
            self._under_way.popleft().result()
        return self._names

    def _send(self, content: bytes) -> None:
        name = hashlib.sha256(content).hexdigest()
        self._names.append(name)
        if name in self._known:  # as of two equal images; it may still be under way
            return
        self._known.add(name)
        if len(self._under_way) > SENDERS:  # so few are in memory
            self._under_way.popleft().result()
        self._under_way.append(self.threads.submit(self._write, name, content))

    def _write(self, name: str, content: bytes) -> None:
        def send() -> None:
            if self.location.size(name) != len(content):
                self.location.write(name, content)
                self.sent.append(name)

        what = f"Writing {self.location.url.rstrip('/')}/{name}"
        try:
            patiently(what, send)
        except PermissionError as error:
            raise StorageError(f"{what} is not allowed ({reason(error)}).") from None


def usable(url: str) -> Location:
    """Return a location, once a file was written there, read and removed.

    Raises:
        UserError: if that cannot be done.
    """
    name, content = f"maskdm-{uuid4().hex}", b"This file is written to see whether one can be."
    try:
        location = Location(url)
        location.write(name, content)
        found = location.read(name)
        location.remove(name)
        if found != content:
            raise OSError("what was written is not what is read")
    except Exception as error:  # every file system has errors of its own
        raise UserError(
            f"data.shards is '{url}', which cannot be used ({reason(error)}): see docs/data.md."
        ) from None
    return location
