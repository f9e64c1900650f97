"""Arrays in shards elsewhere: what is written is what is read, whatever fails in between."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskdm.runtime import location as places
from maskdm.runtime import shard_cache
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import replacing
from maskdm.runtime.location import Location, StorageError
from maskdm.runtime.shard_cache import ShardCache, check_room
from maskdm.runtime.shard_sender import sending, usable
from maskdm.runtime.sharded import ShardedArray, Shards
from tests.support.clones import ROOT
from tests.support.s3 import BUCKET

ARRAY = np.random.default_rng(0).integers(0, 256, (47, 4, 4, 3), dtype=np.uint8)
LENGTH = 5
SIZE = LENGTH * 48  # bytes of a shard
MOST = 5 * SIZE


@pytest.fixture(autouse=True)
def cached(monkeypatch, tmp_path):
    """The folder of the cache; nobody waits for storage that fails."""
    monkeypatch.setenv("MASKDM_SHARDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MASKDM_SHARDS_CACHE_GIB", raising=False)
    monkeypatch.setattr(places, "WAIT", 0)
    return tmp_path / "cache"


def sent(url, array=ARRAY):
    """Return an array that was sent as shards, and how many of them were new."""
    with sending(str(url), SIZE) as sender:
        for element in array:
            sender.append(element.tobytes())
        names = sender.finish()
    return ShardedArray(Shards(str(url), LENGTH, names), array.shape), len(sender.sent)


def shards_in(folder):
    return {path.name for path in folder.iterdir() if len(path.name) == 64}


@pytest.mark.parametrize("url", ["{}/there", "file://{}/there"])
def test_what_is_sent_is_what_is_read(url, tmp_path):
    and_back(url.format(tmp_path))


@pytest.mark.slow
def test_what_is_sent_to_s3_is_what_is_read(s3):
    and_back(f"s3://{BUCKET}/images")


def and_back(url):
    array, new = sent(url)
    assert new == 10
    assert (len(array), array.shape, array.ndim, array.dtype) == (47, (47, 4, 4, 3), 4, np.uint8)
    assert array[:].tobytes() == ARRAY.tobytes()
    assert array[::-1].tobytes() == ARRAY[::-1].tobytes()
    assert sent(url)[1] == 0  # they are there
    changed = ARRAY.copy()
    changed[7] += 1
    assert sent(url, changed)[1] == 1


@given(data=st.data())
def test_it_is_indexed_as_an_array_in_memory_is(data, tmp_path_factory):
    if not hasattr(test_it_is_indexed_as_an_array_in_memory_is, "array"):
        folder = tmp_path_factory.mktemp("indexed")
        array, _ = sent(folder / "there")
        array._cache = ShardCache(str(folder / "there"), folder / "cache")
        test_it_is_indexed_as_an_array_in_memory_is.array = array
    array = test_it_is_indexed_as_an_array_in_memory_is.array
    index = st.integers(-47, 46)
    key = data.draw(
        index | st.lists(index, max_size=60).map(lambda k: np.array(k, int)) | st.slices(47)
    )
    assert array[key].dtype == np.uint8
    assert array[key].shape == ARRAY[key].shape
    assert array[key].tobytes() == ARRAY[key].tobytes()


@pytest.mark.parametrize("key", [47, -48, [3, 47]])
def test_an_index_beyond_it_is_an_error(key, tmp_path):
    with pytest.raises(IndexError):
        sent(tmp_path / "there")[0][key]


def test_a_shard_is_named_by_its_content(tmp_path):
    sent(tmp_path / "there")
    for name in shards_in(tmp_path / "there"):
        assert hashlib.sha256((tmp_path / "there" / name).read_bytes()).hexdigest() == name
    assert len(shards_in(tmp_path / "there")) == len(list((tmp_path / "there").iterdir())) == 10


def test_what_is_in_the_cache_is_read_without_the_storage(tmp_path):
    array, _ = sent(tmp_path / "there")
    array[:]
    (tmp_path / "there").rename(tmp_path / "away")
    again = ShardedArray(array.shards, array.shape)
    assert again[:].tobytes() == ARRAY.tobytes()


def test_several_arrays_share_the_cache(tmp_path, cached):
    one, _ = sent(tmp_path / "one")
    two, _ = sent(tmp_path / "two", np.concatenate([ARRAY[:40], ARRAY[:7] + 1]))
    one[:], two[:]
    assert len(shards_in(cached)) == 12  # eight are the same


# --- the cache is bounded ---


@pytest.fixture
def small(tmp_path, cached):
    """Shards, and a cache of at most five of them, which is full with four."""
    array, _ = sent(tmp_path / "there")
    cache = ShardCache(array.shards.url, cached, most=MOST)
    array._cache = cache
    return array


def size_of(folder):
    return sum((folder / name).stat().st_size for name in shards_in(folder))


def test_what_a_killed_process_had_begun_counts_and_can_go(small, cached):
    small[0]
    (name,) = shards_in(cached)
    with suppress(KeyError), replacing(cached / name) as begun:
        begun.write_bytes(b"x")
        begun.rename(begun.with_name(begun.name.replace(f".{os.getpid()}.", ".1.")))
        raise KeyError
    assert {path.name for _, _, path in small._cache._there()} == {name, f".{name}.1.begun"}


def test_the_cache_has_a_bound_and_what_was_used_last_stays(small, cached, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(
        shard_cache.os, "utime", lambda path: os_utime(path, ns=(0, next(clock) * 10**9))
    )
    names = small.shards.names
    for shard in (0, 1, 2, 0, 3, 0, 4):
        small[shard * LENGTH]
        small[shard * LENGTH]  # from the cache, which notes that it was used
        assert size_of(cached) <= MOST
    assert names[0] in shards_in(cached)
    assert names[1] not in shards_in(cached)
    assert names[4] in shards_in(cached)


os_utime = os.utime


def test_however_much_is_read_the_cache_keeps_to_its_bound(small, cached):
    random = np.random.default_rng(1)
    for _ in range(30):
        indices = random.integers(0, 47, 20)
        assert small[indices].tobytes() == ARRAY[indices].tobytes()
        assert size_of(cached) <= MOST


def test_what_is_none_of_its_business_stays_in_the_folder(small, cached):
    cached.mkdir()
    (cached / "letter.txt").write_text("dear" * 1000)
    small[:]
    assert (cached / "letter.txt").exists()


@pytest.mark.slow
def test_several_processes_share_a_cache_that_is_too_small(small, cached, tmp_path):
    """Each reads everything in an order of its own, while the others remove what it needs."""
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from maskdm.runtime.sharded import ShardedArray, Shards\n"
        "from maskdm.runtime.shard_cache import ShardCache\n"
        "url, seed, size, *names = sys.argv[1:]\n"
        f"array = ShardedArray(Shards(url, {LENGTH}, names), {ARRAY.shape})\n"
        f"array._cache = ShardCache(url, Path({str(cached)!r}), int(size))\n"
        "random = np.random.default_rng(int(seed))\n"
        "for _ in range(40):\n"
        "    indices = random.integers(0, 47, 10)\n"
        "    sys.stdout.buffer.write(array[indices].tobytes())\n"
    )
    command = [sys.executable, "-c", code, small.shards.url]
    processes = [
        subprocess.Popen(
            [*command, str(seed), str(MOST), *small.shards.names],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        for seed in range(3)
    ]
    for seed, process in enumerate(processes):
        random = np.random.default_rng(seed)
        expected = b"".join(ARRAY[random.integers(0, 47, 10)].tobytes() for _ in range(40))
        assert process.communicate()[0] == expected
        assert process.returncode == 0
    assert size_of(cached) <= MOST


def test_only_one_of_several_threads_fetches_a_shard(tmp_path, monkeypatch):
    array, _ = sent(tmp_path / "there")
    read, reads = Location.read, []

    def counted(self, name):
        reads.append(name)
        return read(self, name)

    monkeypatch.setattr(Location, "read", counted)
    array.fetch_ahead(range(10))
    array[:]
    array[:]
    assert sorted(reads) == sorted(array.shards.names)


def test_what_is_fetched_ahead_is_there_when_it_is_needed(tmp_path, cached):
    array, _ = sent(tmp_path / "there")
    array.fetch_ahead([3, 1, 8])
    wanted = {array.shards.names[shard] for shard in (3, 1, 8)}
    waited_for(lambda: cached.exists() and shards_in(cached) == wanted)


def waited_for(condition):
    import time

    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("gib", ["1", "16"])
def test_two_windows_must_fit_into_the_cache(gib, monkeypatch):
    monkeypatch.setenv("MASKDM_SHARDS_CACHE_GIB", gib)
    fits = int(gib) * 2**30 * 3 // 4
    check_room(fits)
    with pytest.raises(UserError, match=r"MASKDM_SHARDS_CACHE_GIB is .*data\.window .*lower"):
        check_room(fits + 1)


# --- faults ---


DAMAGES = {
    "cut": lambda path: os.truncate(path, SIZE - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "one bit flipped": lambda path: path.write_bytes(
        bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_is_damaged_there_is_named(damage, tmp_path, cached):
    array, _ = sent(tmp_path / "there")
    path = tmp_path / "there" / array.shards.names[2]
    DAMAGES[damage](path)
    assert array[:10].tobytes() == ARRAY[:10].tobytes()
    with pytest.raises(StorageError) as caught:
        array[12]
    assert f"{path}, which is shard 2 (10 to 14), is damaged: remove it there" in str(caught.value)
    assert path.name not in shards_in(cached)
    path.unlink()
    assert sent(tmp_path / "there")[1] == 1
    assert array[12].tobytes() == ARRAY[12].tobytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_is_damaged_in_the_cache_is_fetched_anew(damage, tmp_path, cached):
    array, _ = sent(tmp_path / "there")
    array[:]
    DAMAGES[damage](cached / array.shards.names[2])
    again = ShardedArray(array.shards, array.shape)
    assert again[:].tobytes() == ARRAY.tobytes()


def test_a_shard_that_is_not_there_is_named_at_once(tmp_path):
    array, _ = sent(tmp_path / "there")
    (tmp_path / "there" / array.shards.names[9]).unlink()
    with pytest.raises(StorageError, match=r"shard 9 \(45 to 46\): dvc repro -f -s prepare sends"):
        array[46]


class Failing:
    """Stands for a method of a location, which fails so often."""

    def __init__(self, monkeypatch, method, times, error=None):
        self.left, self.calls, self.lock = times, 0, threading.Lock()
        self.error = error or OSError("the network is away\nand more")
        real = getattr(Location, method)

        def fails(location, *given):
            with self.lock:  # several threads send
                self.calls += 1
                self.left -= 1
                away = self.left >= 0
            if away:
                raise self.error
            return real(location, *given)

        monkeypatch.setattr(Location, method, fails)


def test_storage_that_is_away_for_a_moment_is_waited_for(tmp_path, monkeypatch, capsys):
    array, _ = sent(tmp_path / "there")
    Failing(monkeypatch, "read", 2)
    assert array[:5].tobytes() == ARRAY[:5].tobytes()
    said = capsys.readouterr().err
    assert said.count("(the network is away); trying again") == 1
    assert "Reading shard 0 (0 to 4) from" in said


def test_storage_that_stays_away_is_one_sentence(tmp_path, monkeypatch):
    array, _ = sent(tmp_path / "there")
    Failing(monkeypatch, "read", 1000)
    with pytest.raises(StorageError) as caught:
        array[0]
    assert "fails (the network is away): once it works, the same command goes on" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError("Access Denied"), r"may not be read \(Access Denied\): check the cred"),
        (type("NoCredentialsError", (Exception,), {})("no keys"), r"fails \(no keys\)"),
    ],
)
def test_what_waiting_does_not_mend_is_not_waited_for(tmp_path, monkeypatch, error, sentence):
    array, _ = sent(tmp_path / "there")
    failing = Failing(monkeypatch, "read", 1000, error)
    with pytest.raises(StorageError, match=sentence):
        array[0]
    assert failing.calls == 1


def test_a_full_disk_of_the_cache_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, cached):
    array, _ = sent(tmp_path / "there")
    array[0]

    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match=r"The disk of .*cache is full: make room, set MASK"):
            array[20]
    assert len(shards_in(cached)) == 1
    assert not list(cached.glob(".*"))
    assert array[20].tobytes() == ARRAY[20].tobytes()


def test_sending_waits_for_storage_and_fails_with_a_sentence(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        Failing(patch, "write", 0)
        sent(tmp_path / "whole")
    usable(str(tmp_path / "there"))
    failing = Failing(monkeypatch, "size", 2)
    assert sent(tmp_path / "there")[1] == 10
    failing.left = 10**6
    with pytest.raises(StorageError, match=r"Writing .*there/[0-9a-f]{64} fails"):
        sent(tmp_path / "there", ARRAY[::-1])


@pytest.mark.parametrize("url", ["nosuch://bucket/folder", "{file}/below"])
def test_a_place_that_cannot_be_used_is_one_sentence(url, tmp_path):
    (tmp_path / "file").touch()
    url = url.format(file=tmp_path / "file")
    with pytest.raises(UserError) as caught:
        usable(url)
    assert f"data.shards is '{url}', which cannot be used (" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whether_a_place_can_be_used_leaves_nothing_there(tmp_path):
    usable(str(tmp_path / "there"))
    assert list((tmp_path / "there").iterdir()) == []
