"""An array of bytes in shards of fixed size elsewhere, read through a cache on this disk.

A shard is the bytes of consecutive elements in a file that is named by their SHA-256. So nothing
is sent twice, what comes back is checked, and arrays that have a shard in common share it, in the
storage and in the cache.
"""

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from threading import Thread
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskdm.runtime.errors import UserError
from maskdm.runtime.shard_cache import ShardCache

FETCHERS = 8  # threads that fetch what is needed now
AHEAD = 4  # threads that fetch what is needed next


class Window(NamedTuple):
    """How images are shuffled together: block-wise, whether their blocks are shards or not."""

    images: int  # that are shuffled among each other, up to a block
    block: int  # images in a row that are in one window

    def room(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of two windows of images of a shape (H, W, C)."""
        return 2 * -(-self.images // self.block) * self.block * math.prod(shape)


@dataclass(frozen=True)
class Shards:
    """Where an array is.

    Attributes:
        url: of the folder of its shards.
        length: elements in each, but for the last one.
        names: of the shards in their order, the SHA-256 of their bytes.
    """

    url: str
    length: int
    names: Sequence[str]


class ShardedArray:
    """An array of uint8 in shards, which are fetched when they are needed.

    It is indexed by an integer, a slice or an array of indices, and gives arrays in memory.

    Args:
        shards: where it is.
        shape: ``(count, ...)``.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, shards: Shards, shape: tuple[int, ...]) -> None:
        self.shards, self.shape, self.ndim = shards, shape, len(shape)
        self._asked: tuple[int, ...] = ()  # what is being fetched ahead

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice | ArrayLike) -> NDArray[np.uint8]:
        """Return elements, ``(...)`` for an integer, else ``(chosen, ...)``.

        Raises:
            StorageError: if a shard cannot be fetched.
        """
        if isinstance(key, slice):
            indices = np.arange(*key.indices(len(self)))
            taken = self._taken(indices)
            if len(indices):  # whoever reads in order needs what follows
                following = int(indices[-1]) // self.shards.length + 1
                there = len(self.shards.names)
                self.fetch_ahead(range(following, min(following + 2 * AHEAD, there)))
            return taken
        indices = np.asarray(key)
        if indices.ndim == 0:
            one: NDArray[np.uint8] = self[indices[None]][0]
            return one
        if not len(indices):
            return self._taken(indices.astype(np.int64))
        if indices.min() < -len(self) or indices.max() >= len(self):
            raise IndexError(f"the array has {len(self)} elements")
        return self._taken(np.where(indices < 0, indices + len(self), indices))

    def _taken(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        taken = np.empty((len(indices), *self.shape[1:]), np.uint8)
        shards, rows = np.divmod(indices, self.shards.length)
        needed = np.unique(shards).tolist()
        missing = [s for s in needed if not self._cache.has(self.shards.names[s])]
        if missing:  # several at once
            deque(self._fetchers.map(self._shard, missing), maxlen=0)
        for shard in needed:
            here = shards == shard
            taken[here] = self._shard(shard)[rows[here]]
        return taken

    def fetch_ahead(self, shards: Sequence[int]) -> None:
        """Begin to fetch shards into the cache, in this order; what was asked for before is left.

        What fails is not said: it will be, once it is needed.

        Args:
            shards: their indices.
        """
        asked = tuple(shards)
        if asked == self._asked:
            return
        self._asked = asked
        waiting = deque(asked)

        def fetch() -> None:
            with suppress(IndexError, UserError, OSError):  # no more to do; no more to be had
                while self._asked is asked:
                    self._shard(waiting.popleft(), silent=True)

        for _ in range(min(AHEAD, len(asked))):
            Thread(target=fetch, daemon=True, name="shards ahead").start()

    def _shard(self, shard: int, silent: bool = False) -> NDArray[np.uint8]:
        """Return the elements of a shard, mapped."""
        first = shard * self.shards.length
        count = min(self.shards.length, len(self) - first)
        what = f"shard {shard} ({first} to {first + count - 1})"
        size = count * int(np.prod(self.shape[1:]))
        content = self._cache.get(self.shards.names[shard], size, what, silent)
        return content.reshape(count, *self.shape[1:])

    @cached_property
    def _cache(self) -> ShardCache:
        return ShardCache(self.shards.url)

    @cached_property
    def _fetchers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(FETCHERS, "shards")


Images = NDArray[np.uint8] | ShardedArray  # (count, H, W, C)
