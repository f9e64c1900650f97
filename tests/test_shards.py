"""Training images in shards: the set, training on it, and both when the storage fails."""

import hashlib
import json
import math
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from threading import enumerate as enumerate_threads
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from benchmarks.presets import read_preset
from maskdm.data import prepared as module
from maskdm.data.inventory import shaped_by
from maskdm.data.prepared import (
    BLOCK_BYTES,
    PreparedSet,
    Sample,
    block_of,
    open_prepared,
    write_prepared,
)
from maskdm.evaluation.features.registry import EXTRACTORS
from maskdm.evaluation.yardsticks import mean_image
from maskdm.runtime import location
from maskdm.runtime.environment import CHECKPOINTS_REMOTE
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json
from maskdm.runtime.location import Location, StorageError
from maskdm.runtime.params import merge
from maskdm.runtime.shard_sender import sending
from maskdm.runtime.sharded import AHEAD, ShardedArray, Window
from maskdm.training.batches import Batches
from maskdm.training.order import Order
from maskdm.training.schedule import Schedule
from maskdm.training.setup import set_up
from stages import prepare as stage
from stages.check import check
from tests.support.clones import ROOT
from tests.support.preparing import params, save_images
from tests.support.s3 import BUCKET
from tests.support.training import IMAGES, Run, leg, masked, phase
from tests.support.workspaces import half_way, like

SIDE = 32
BLOCK = 4  # images in a shard
WINDOW = Window(images=12, block=BLOCK)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shards are small, the cache is of this test, and nobody waits for storage that fails."""
    monkeypatch.setattr(module, "BLOCK_BYTES", BLOCK * SIDE * SIDE * 3)
    monkeypatch.setenv("MASKDM_SHARDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(location, "WAIT", 0)


def samples(images: np.ndarray = IMAGES) -> Iterator[Sample]:
    """Yield the training images, and two that are held out."""
    for n, pixels in enumerate(images):
        yield Sample(pixels, n % 3, heldout=False)
    for n in range(2):
        yield Sample(images[n] + 1, n, heldout=True)


def write(folder: Path, given: Any = None, **changes: Any) -> PreparedSet:
    about = {"size": SIDE, "channels": 3, "classes": list("abc"), "source": "t", "licence": "none"}
    return write_prepared(folder, given or samples(), **about | changes)


def in_shards(folder: Path, given: Any = None) -> PreparedSet:
    return write(folder, given, window=12, shards=str(folder.parent / "there"))


# --- the set ---


def test_what_was_asked_for_before_is_fetched_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread ends the shard that it is at, and no new ones of those are begun."""
    array, begun, go = in_shards(tmp_path / "prepared").train, list[int](), Event()
    assert isinstance(array, ShardedArray)

    def fetched(shard: int, silent: bool = False) -> None:
        begun.append(shard)
        go.wait(60)

    monkeypatch.setattr(array, "_shard", fetched)
    array.fetch_ahead(range(100, 120))
    array.fetch_ahead(range(3))
    go.set()
    for thread in enumerate_threads():
        if thread.name == "shards ahead":
            thread.join(60)
    assert sorted(shard for shard in begun if shard < 100) == [0, 1, 2]
    assert sum(shard >= 100 for shard in begun) <= AHEAD


def test_a_set_in_shards_is_the_set_on_this_disk(tmp_path: Path) -> None:
    here, there = write(tmp_path / "here"), in_shards(tmp_path / "prepared")
    assert isinstance(there.train, ShardedArray)
    assert there.hash == here.hash
    assert there.train[:].tobytes() == here.train[:].tobytes()
    assert np.array_equal(there.heldout, here.heldout)
    assert there.window == WINDOW
    assert here.window is None
    assert {path.name for path in (tmp_path / "prepared").iterdir()} == {
        *("dataset.json", "shards.json", "heldout.npy", "heldout_labels.npy", "train_labels.npy"),
    }


def test_without_them_nothing_is_written_that_was_not_written_before(tmp_path: Path) -> None:
    write(tmp_path)
    about = json.loads((tmp_path / "dataset.json").read_text())
    assert not {"window", "shards"} & about.keys()
    assert not (tmp_path / "shards.json").exists()


def test_nothing_is_left_of_the_other_kind_of_set(tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    for _ in range(2):
        write(folder)
        assert not (folder / "shards.json").exists()
        in_shards(folder)
        assert not (folder / "train.npy").exists()


@pytest.mark.parametrize("when", ["reading", "sending"])
def test_a_prepare_that_fails_leaves_the_set_that_was_there(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "prepared"
    before = in_shards(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def broken() -> Iterator[Sample]:
        for n, sample in enumerate(samples(IMAGES[::-1])):
            if when == "reading" and n == 30:
                raise KeyboardInterrupt
            yield sample

    size, asked = Location.size, set[str]()

    def away(self: Location, name: str) -> int | None:
        asked.add(name)
        if len(asked) > 8:  # the last ones, which nobody has waited for when the last image comes
            raise OSError("away")
        return size(self, name)

    with monkeypatch.context() as patch:
        if when == "sending":
            patch.setattr(Location, "size", away)
        with pytest.raises((KeyboardInterrupt, UserError)):
            in_shards(folder, broken())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert open_prepared(folder).train[:].tobytes() == before.train[:].tobytes()


def test_a_prepare_that_was_killed_does_not_send_again_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed() -> Iterator[Sample]:
        for n, sample in enumerate(samples()):
            if n == 22:
                raise KeyboardInterrupt
            yield sample

    with pytest.raises(KeyboardInterrupt):
        in_shards(tmp_path / "prepared", killed())
    begun = len(list((tmp_path / "there").iterdir()))
    in_shards(tmp_path / "prepared")
    assert f"10 shards at {tmp_path / 'there'}, {10 - begun} of them new" in capsys.readouterr().out
    assert begun >= 1


def test_equal_shards_are_sent_once_however_many_are_under_way(tmp_path: Path) -> None:
    """Two copies of an image as large as a shard are two equal shards."""
    for attempt in range(5):
        with sending(str(tmp_path / f"{attempt}"), 1000) as sender:
            for _ in range(20):
                sender.append(bytes(1000))
            names = sender.finish()
        assert names == [hashlib.sha256(bytes(1000)).hexdigest()] * 20
        assert sender.sent == names[:1]
        assert [path.name for path in (tmp_path / f"{attempt}").iterdir()] == names[:1]


def test_two_machines_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    there, content = Location(str(tmp_path)), bytes(10**6)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: there.write("name", content), range(40)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"name": content}


def test_two_machines_may_remove_the_same_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Location(str(tmp_path))
    there.write("name", b"x")
    monkeypatch.setattr(there.system, "exists", lambda _: True)
    there.remove("name")
    there.remove("name")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Location(str(tmp_path))
    monkeypatch.setattr(there.system, "mv", Mock(side_effect=OSError("no")))
    with pytest.raises(OSError, match="no"):
        there.write("other", b"x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["a name less", "a name that is none", "no names", "no file"])
def test_an_index_that_is_damaged_is_refused(damage: str, tmp_path: Path) -> None:
    in_shards(tmp_path / "prepared")
    index = tmp_path / "prepared/shards.json"
    names = json.loads(index.read_text())["sha256"]
    if damage == "no file":
        index.unlink()
    else:
        other = {"a name less": names[1:], "a name that is none": ["../x", *names[1:]]}
        index.write_text(json.dumps({"sha256": other[damage]} if damage in other else {}))
    with pytest.raises(UserError, match=r"Run the prepare stage again: dvc repro -f -s prepare"):
        open_prepared(tmp_path / "prepared")


def test_the_mean_of_images_in_shards_is_that_of_images_in_memory(tmp_path: Path) -> None:
    mean = IMAGES.mean(axis=0, keepdims=True).round().astype(np.uint8)
    assert np.array_equal(mean_image(in_shards(tmp_path / "prepared").train), mean)
    assert np.array_equal(mean_image(IMAGES), mean)


# --- parameters ---


def test_what_acts_on_images_that_were_read_does_not_throw_them_away(tmp_path: Path) -> None:
    save_images(tmp_path / "photos", ["a.png", "b.png"])
    path = str(tmp_path / "photos")
    key = shaped_by(params(path=path))
    afterwards = {"duplicates": "near", "max_unreadable": 0.5, "window": 9, "shards": "/there"}
    assert shaped_by(params(path=path, **afterwards)) == key
    for change in ({"resolution": 24}, {"heldout": 0.4}, {"background": "black"}, {"channels": 1}):
        assert shaped_by(params(path=path, **change)) != key


NO_PLACES = {
    "memory://bucket": "memory:// is gone with the process",
    "data://x": "data:// is gone with the process",
    "file://relative": "no absolute path stands behind file://",
    "local://relative/x": "no absolute path stands behind local://",
    "file://": "no place stands behind file://",
    "s3://": "no place stands behind s3://",
    "://": "no protocol stands before ://",
    "://bucket": "no protocol stands before ://",
    "simplecache::s3://bucket/x": "simplecache::s3:// is no storage itself",
    "dir::file:///x": "dir::file:// is no storage itself",
    "generic://x": "generic:// is no storage itself",
    "zip://x": "nothing can be written to zip://",
    "https://host/x": "nothing can be written to https://",
    "file:relative": "neither an address nor an absolute path",
}
PLACES = [
    "s3://bucket/x",
    "gs://bucket",
    "ssh://host/x",
    "file:///x",
    "local:///x/y",
    "/x",
    "az://b",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_other_processes_see_is_taken(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert params(path="here", shards=place, window=9).shards == place
    monkeypatch.setenv(CHECKPOINTS_REMOTE.name, place)
    assert CHECKPOINTS_REMOTE.get() == place


@pytest.mark.parametrize("place", NO_PLACES)
def test_checkpoints_are_not_copied_where_they_would_vanish(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHECKPOINTS_REMOTE.name, place)
    with pytest.raises(UserError, match=r"must be an address such as s3://.*, or an absolute path"):
        CHECKPOINTS_REMOTE.get()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shards": "s3://bucket/x"}, r"data\.shards is .*shards need data\.window"),
        ({"shards": "there", "window": 9}, "neither an address nor an absolute path"),
        ({"shards": "", "window": 9}, "neither an address nor an absolute path"),
        ({"shards": "/a\0b", "window": 9}, "no place has this name"),
        *(({"shards": place, "window": 9}, fault) for place, fault in NO_PLACES.items()),
        ({"window": 0}, r"data\.window is 0"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        params(**changes)


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that checks the defaults with changes of the section data."""

    def checked(**changes: Any) -> None:
        path = tmp_path / "params.yaml"
        YAML().dump(merge(read_preset("tiny"), {"data": changes}), path)
        check(path)

    return checked


def test_check_sees_whether_shards_can_be_written(checked: Any, tmp_path: Path) -> None:
    checked(window=100, shards=str(tmp_path / "there"))
    (tmp_path / "file").touch()
    for url in (str(tmp_path / "file/below"), "nosuch://bucket"):
        with pytest.raises(UserError, match=r"data\.shards is .*cannot be used"):
            checked(window=100, shards=url)


def test_check_sees_whether_two_windows_fit_into_the_cache(
    checked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKDM_SHARDS_CACHE_GIB", "1")
    with pytest.raises(UserError, match=r"data\.window makes windows of 2\.9 GiB"):
        checked(window=10**6, shards=str(tmp_path / "there"))
    checked(window=10**6)  # a file of all images is mapped


# --- training ---


def run(root: Path, images: Any, window: Window | None = WINDOW, **given: Any) -> Run:
    """Train six steps of eight images, of which there are forty."""
    asked = phase()
    schedule = Schedule((leg(masked(0.5), asked),), 6, 0)

    def of(batches: Batches) -> Batches:
        return replace(batches, images=images, window=window)

    return Run(root, asked, schedule, spoil=of, **given)


def equal(one: Run, other: Run) -> bool:
    a, b = one.result(), other.result()
    return all(
        torch.equal(a["tensors"][name].nan_to_num(), b["tensors"][name].nan_to_num())
        for name in a["tensors"].keys() | b["tensors"].keys()
    )


@pytest.fixture
def array(tmp_path: Path) -> ShardedArray:
    found = in_shards(tmp_path / "prepared").train
    assert isinstance(found, ShardedArray)
    return found


@pytest.mark.parametrize("window", [None, WINDOW])
def test_training_on_shards_is_training_on_a_file_to_the_bit(
    window: Window | None, tmp_path: Path, array: ShardedArray
) -> None:
    here = run(tmp_path / "a", IMAGES, window)
    assert equal(run(tmp_path / "b", array, window), here)
    other = Window(8, 4) if window else WINDOW
    assert not equal(run(tmp_path / "c", IMAGES, other), here)


def test_a_run_that_was_stopped_goes_on_exactly(tmp_path: Path, array: ShardedArray) -> None:
    whole = run(tmp_path / "a", IMAGES)
    with pytest.raises(UserError, match="Stopped after step 3"):
        run(tmp_path / "b", array, stop=3)
    again = run(tmp_path / "b", array)
    assert again.computed == 3
    assert equal(again, whole)


def test_storage_that_goes_away_stops_a_run_with_a_checkpoint(
    tmp_path: Path, array: ShardedArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not in the cache by then cannot be had; the same command goes on where it stopped."""
    monkeypatch.setattr(ShardedArray, "fetch_ahead", lambda *_: None)
    whole, read, reads = run(tmp_path / "a", IMAGES), Location.read, []

    def away(self: Location, name: str) -> bytes:
        reads.append(name)
        if len(reads) > 6:
            raise OSError("the network is away")
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "read", away)
        with pytest.raises(StorageError, match=r"the network is away.*same command goes on"):
            run(tmp_path / "b", array)
    again = run(tmp_path / "b", array)
    assert 0 < again.computed < 6
    assert equal(again, whole)


def test_training_refuses_windows_that_the_cache_of_this_machine_cannot_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKDM_SHARDS_CACHE_GIB", "1")
    found = replace(in_shards(tmp_path / "prepared"), window=Window(10**6, BLOCK))
    anything: Any = None
    with pytest.raises(UserError, match=r"data\.window makes windows of 2\.9 GiB"):
        set_up("pretrain", anything, anything, found, anything, anything, "", anything)


# --- the stages ---


@pytest.mark.slow
def test_stages_on_shards_in_s3_write_what_they_write_on_a_file(
    prepared: Any, tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed half-way, with nothing left in the cache."""
    written = ("models", "reports/pretrain", "reports/masks.png")
    spaces = {}
    for name, url in (("here", None), ("there", f"s3://{BUCKET}/images")):
        space = like(
            prepared, tmp_path / name, data={"window": 12, "shards": url}, pretrain={"steps": 200}
        )
        monkeypatch.chdir(space.folder)
        stage.main()
        space.environment |= {"MASKDM_SHARDS_CACHE": str(tmp_path / f"cache of {name}"), **s3}
        spaces[name] = space
    here, there = spaces["here"], spaces["there"]
    assert not (there.folder / "data/prepared/train.npy").exists()
    assert not list(there.checkpoints.glob("prepare-*"))
    there.environment["MASKDM_CHECKPOINT_STEPS"] = "20"
    process = half_way(there)
    process.kill()
    process.wait()
    for path in (tmp_path / "cache of there").iterdir():
        path.unlink()
    assert "Going on from the checkpoint" in there.stage("pretrain")
    here.stage("pretrain")
    for space in (here, there):
        space.stage("masks")
    assert there.files(*written) == here.files(*written)
    one, other = ({path.name for path in space.checkpoints.iterdir()} for space in (here, there))
    assert one == other  # they would share them


# --- a set that no disk holds ---


def spaced(number: int) -> str:
    """Return a number as the documentation writes it."""
    return f"{number:,}".replace(",", " ")


def test_what_the_documentation_says_of_a_hundred_million_images_is_what_the_code_would_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    count, shape, window = 10**8, (32, 32, 3), 65_536
    image, block = math.prod(shape), block_of(shape)
    shards = -(-count // block)
    write_json(tmp_path / "few", {"sha256": ["0" * 64] * 10})
    write_json(tmp_path / "more", {"sha256": ["0" * 64] * 110})
    name = ((tmp_path / "more").stat().st_size - (tmp_path / "few").stat().st_size) / 100
    room = Window(window, block).room(shape)
    order = Order(count, 0, "paper", Window(window, block))
    tracemalloc.start()
    for epoch in range(2):
        order.indices(count * epoch + 5, count * epoch + 261)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 10**7
    for said in (
        "a file of 4 MiB of pixels (1 365 images",
        f"{count * image / 1e9:.1f} GB in {spaced(shards)} shards",
        f"a list of them of {shards * name / 1e6:.1f} MB",
        f"({spaced(image)} bytes each, so set",
        f"`data.heldout=0.0001`: {count * 1e-4 * image / 1e6:.0f} MB",
        f"A window of 65 536 is {-(-window // block)} shards, {room / 2e9:.1f} GB",
        f"{spaced(count // 256)} steps of 256 images",
        f"at 100 steps a second, {count * image / (count // 256) * 100 / 1e6:.0f} MB a second",
        "(with a window of 65 536: less than 10 MB)",
        f"the features, {spaced(4 * EXTRACTORS['efficientnet-lite0'].count)} bytes an image",
    ):
        assert said in page, said
    assert block == 1365
    assert BLOCK_BYTES == 2**22
