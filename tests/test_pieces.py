"""A killed prepare goes on behind its last piece, to the same bytes, and never with another's."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.robustness.preparing import save_pictures, storm
from maskdm.data import files, inventory, pieces
from maskdm.data.contract import Picture
from maskdm.data.inventory import shaped_by
from maskdm.data.pieces import LOCK, PIECE, ChangedError, Outcome, Pieces, kept_pieces
from maskdm.data.prepared import Sample, Unreadable
from maskdm.data.registry import DataParams, open_source, read_samples
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import listed, replacing
from maskdm.runtime.locks import held
from tests.support.clones import SILENT, clone_tree
from tests.support.preparing import params, save_images

ROOT = Path(__file__).parent.parent
SHAPE = (8, 8, 3)
COUNT, LENGTH = 22, 4  # pictures of a set, and of a piece
BROKEN = 9  # a picture that cannot be read


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MOST", LENGTH)


PICTURES = [Picture(f"{n:02}\udc80.png", n % 5 == 0, n % 3) for n in range(COUNT)]


class Reader:
    """Reads pictures that are what their names say; stops before some."""

    def __init__(self, stop: int = COUNT) -> None:
        self.stop, self.read = stop, list[int]()

    def __call__(self, pictures: Sequence[Picture]) -> Iterator[Outcome]:
        for name, heldout, label in pictures:
            number = int(name[:2])
            if number == self.stop:
                raise KeyboardInterrupt
            self.read.append(number)
            if number == BROKEN:
                yield Unreadable(name, "broken")
            else:
                yield Sample(np.full(SHAPE, number, np.uint8), label, heldout)


def plain(samples: Iterator[Outcome]) -> list[Any]:
    """Return samples as what can be compared."""
    return [
        s if isinstance(s, Unreadable) else (s.pixels.tolist(), s.label, s.heldout) for s in samples
    ]


EXPECTED = plain(Reader()(PICTURES))


def begin(folder: Path, stop: int = COUNT, key: str = "key") -> Path:
    """Read up to a picture and no further; return the folder of what was kept."""
    reader = Reader(stop)
    try:
        plain(Pieces(folder, key, SHAPE).samples(PICTURES, reader))
    except KeyboardInterrupt:
        assert stop < COUNT
    assert reader.read == list(range(stop))
    return folder


@pytest.mark.parametrize("stop", range(COUNT + 1))
def test_wherever_it_stopped_it_goes_on_behind_the_last_piece(tmp_path: Path, stop: int) -> None:
    whole = stop if stop == COUNT else stop // LENGTH * LENGTH
    begun, reader = Pieces(begin(tmp_path, stop), "key", SHAPE), Reader()
    assert plain(begun.samples(PICTURES, reader)) == EXPECTED
    assert reader.read == list(range(whole, COUNT))
    assert begun.reused == whole


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "empty":
        content = bytearray()
    elif how == "cut":
        del content[-1]
    elif how == "longer":
        content += b"\0"
    elif how == "another piece":
        content = bytearray(path.with_name(f"{0:010}{PIECE}").read_bytes())
    else:
        at = {"hash": 3, "length": 39, "label": 60, "pixel": len(content) - 5}[how]
        content[at] ^= 1
    path.write_bytes(content)


DAMAGES = ("empty", "cut", "longer", "another piece", "hash", "length", "label", "pixel")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_piece_is_said_and_read_anew_and_no_other(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = begin(tmp_path) / f"{2 * LENGTH:010}{PIECE}"
    spoil(path, how)
    reader = Reader()
    assert plain(Pieces(tmp_path, "key", SHAPE).samples(PICTURES, reader)) == EXPECTED
    assert reader.read == list(range(2 * LENGTH, 3 * LENGTH))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"{path} is damaged")
    reader = Reader()  # and it is whole again
    assert plain(Pieces(tmp_path, "key", SHAPE).samples(PICTURES, reader)) == EXPECTED
    assert reader.read == []


def test_a_piece_that_is_missing_is_read_anew(tmp_path: Path) -> None:
    (begin(tmp_path) / f"{LENGTH:010}{PIECE}").unlink()
    reader = Reader()
    assert plain(Pieces(tmp_path, "key", SHAPE).samples(PICTURES, reader)) == EXPECTED
    assert reader.read == list(range(LENGTH, 2 * LENGTH))


def test_pieces_under_another_key_or_of_other_pictures_are_not_used(tmp_path: Path) -> None:
    begin(tmp_path)
    reader = Reader()
    assert plain(Pieces(tmp_path, "other", SHAPE).samples(PICTURES, reader)) == EXPECTED
    assert reader.read == list(range(COUNT))
    changed = [*PICTURES[:5], PICTURES[5]._replace(label=0), *PICTURES[6:]]
    reader = Reader()
    plain(Pieces(tmp_path, "other", SHAPE).samples(changed, reader))
    assert reader.read == list(range(LENGTH, 2 * LENGTH))


def test_large_images_make_short_pieces(tmp_path: Path) -> None:
    lengths = {side: Pieces(tmp_path, "", (side, side, 3)).length for side in (8, 1024, 8192)}
    assert lengths == {8: LENGTH, 1024: min(LENGTH, 2**24 // (3 * 2**20)), 8192: 1}


def test_memory_does_not_grow_with_the_number_of_pieces(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        few = [Picture(f"{n:02}", False, None) for n in range(count)]

        def read(pictures: Sequence[Picture]) -> Iterator[Outcome]:
            for _ in pictures:
                yield Sample(np.zeros((64, 64, 3), np.uint8), None, False)

        found = Pieces(tmp_path / str(count), "", (64, 64, 3))
        peaks = []
        for _ in ("read", "taken from the pieces"):
            tracemalloc.start()
            assert sum(1 for _ in found.samples(few, read)) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return max(peaks)

    assert peak(40 * LENGTH) - peak(10 * LENGTH) < 64 * 64 * 3 * LENGTH


# --- a folder of images, and what its pieces follow from ---


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 12 images, one of them broken."""
    save_images(tmp_path / "photos", [f"{kind}/{n}.png" for kind in "ab" for n in range(6)])
    (tmp_path / "photos/b/3.png").write_bytes(b"no image")
    return tmp_path / "photos"


def half(root: Path, asked: DataParams) -> None:
    """Prepare two pieces, then stop."""
    with (
        suppress(KeyboardInterrupt),
        kept_pieces(root, shaped_by(asked), (16, 16, 3)) as kept,
    ):
        samples = read_samples(open_source(asked, root), asked, kept)
        for _ in range(2 * LENGTH + 1):
            next(samples)
        raise KeyboardInterrupt


def whole(root: Path, asked: DataParams) -> tuple[list[Any], int]:
    """Prepare all; return the samples, and how many were there already."""
    with kept_pieces(root, shaped_by(asked), (16, 16, 3)) as kept:
        assert kept is not None
        return plain(read_samples(open_source(asked, root), asked, kept)), kept.reused


ASKED: dict[str, Any] = {"classes": True, "max_unreadable": 0.2}


def test_going_on_gives_the_samples_of_an_untouched_run(tmp_path: Path, photos: Path) -> None:
    asked = params(path=str(photos), **ASKED)
    half(tmp_path / "root", asked)
    found, reused = whole(tmp_path / "root", asked)
    assert found == whole(tmp_path / "other", asked)[0]
    assert reused == 2 * LENGTH
    assert not list((tmp_path / "root").iterdir())  # a whole set needs no pieces


@pytest.mark.parametrize(("error", "left"), [(ChangedError("files"), False), (OSError(), True)])
def test_pieces_of_files_that_changed_meanwhile_are_not_gone_on_with(
    error: Exception, left: bool, tmp_path: Path, photos: Path
) -> None:
    """They may hold what was there for a while, under the times of what was put back."""
    asked = params(path=str(photos), **ASKED)

    def interrupted() -> None:
        with kept_pieces(tmp_path / "root", shaped_by(asked), (16, 16, 3)) as kept:
            plain(read_samples(open_source(asked, tmp_path), asked, kept))
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert bool(list((tmp_path / "root").iterdir())) == left


CHANGES = {
    "resolution": 8,
    "channels": 1,
    "background": "black",
    "heldout": 0.4,
    "group": "folder",
    "classes": False,
    "limit": 11,
    "max_pixels": 1000,
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_parameter_makes_another_set(tmp_path: Path, photos: Path, name: str) -> None:
    asked = params(path=str(photos), **ASKED)
    assert shaped_by(asked) != shaped_by(asked.model_copy(update={name: CHANGES[name]}))


def test_every_parameter_of_the_section_was_tried() -> None:
    tried = {*CHANGES, "source", "path", *inventory.AFTERWARDS}
    assert set(DataParams.model_fields) == tried


def test_images_to_be_encoded_are_read_as_others_are(photos: Path) -> None:
    asked = params(path=str(photos), **ASKED)
    assert shaped_by(asked) == shaped_by(asked.model_copy(update={"autoencoder": "vae"}))


@pytest.mark.parametrize("what", ["image", "code", "package"])
def test_other_files_other_code_and_another_decoder_make_another_set(
    tmp_path: Path, photos: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = params(path=str(photos), **ASKED)
    half(tmp_path / "root", asked)
    if what == "image":
        os.utime(photos / "a/0.png", ns=(0, 1))
    elif what == "code":
        shutil.copytree(inventory.ROOM, tmp_path / "room")
        with (tmp_path / "room/images.py").open("a") as file:
            file.write("# changed\n")
        monkeypatch.setattr(inventory, "ROOM", tmp_path / "room")
    else:
        monkeypatch.setattr(inventory, "version", lambda name: f"{name} 0.0")
    assert whole(tmp_path / "root", asked)[1] == 0


def test_files_that_could_not_be_read_count_again_and_more_can_be_allowed(
    tmp_path: Path, photos: Path
) -> None:
    for name in ("b/1.png", "b/5.png"):
        (photos / name).write_bytes(b"no image")
    allowed = partial(params, path=str(photos))
    for share in (0.2, 0.2):
        with pytest.raises(UserError, match="At least 3 of 12 images cannot be read"):
            whole(tmp_path / "root", allowed(max_unreadable=share))
    found, reused = whole(tmp_path / "root", allowed(max_unreadable=0.3))
    assert reused == 2 * LENGTH
    assert sum(isinstance(sample, Unreadable) for sample in found) == 3


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError()])
def test_what_could_not_be_read_for_a_while_is_read_again(
    error: Exception, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither rights nor a disk that comes back change a file's time."""
    asked = params(path=str(photos), max_unreadable=0.2)
    read = files._content

    def closed(path: Path) -> bytes:
        if path.name in ("1.png", "5.png"):  # in the first piece and the second
            raise error
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(files, "_content", closed)
        with pytest.raises(UserError, match="At least 3 of 12 images cannot be read"):
            whole(tmp_path / "root", asked)
    found, reused = whole(tmp_path / "root", asked)
    assert sum(isinstance(sample, Unreadable) for sample in found) == 1
    assert reused == 0


def test_a_folder_that_its_holder_removes_is_made_anew_for_whoever_waits(tmp_path, monkeypatch):
    """Two experiments of a queue prepare the same set: the first to end removes its pieces."""

    def wait() -> bool:
        with kept_pieces(tmp_path, "key", SHAPE) as kept:
            return kept is not None

    monkeypatch.setattr(pieces, "PATIENCE", 600)
    folder = tmp_path / "prepare-key"
    with ThreadPoolExecutor() as pool:
        with held(folder / LOCK):
            waiting = pool.submit(wait)
            time.sleep(0.3)
            pieces._remove(folder)  # as the holder does
            time.sleep(0.2)  # it looks in between
        assert waiting.result()
    assert not folder.exists()


def test_who_comes_second_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PATIENCE", 0.01)
    with kept_pieces(tmp_path, "key", SHAPE) as first:
        with kept_pieces(tmp_path, "key", SHAPE) as second:
            assert second is None
        assert first is not None
        assert first.folder.exists()


def test_a_folder_without_a_piece_does_not_stay(tmp_path: Path) -> None:
    with pytest.raises(UserError), kept_pieces(tmp_path, "key", SHAPE):
        raise UserError("too few")
    assert not list(tmp_path.iterdir())


def test_clearing_removes_pieces_and_nothing_else(tmp_path: Path) -> None:
    folder = begin(tmp_path / "prepare-0123456789abcdef")
    (folder / LOCK).touch()
    with suppress(KeyError), replacing(folder / f"{0:010}{PIECE}") as begun:
        begun.touch()
        killed = begun.with_name(begun.name.replace(f"{os.getpid()}", "1"))
        begun.rename(killed)
        raise KeyError
    assert killed.exists()
    assert pieces.folders(tmp_path) == [folder]
    assert len(pieces.sizes(folder)) == -(-COUNT // LENGTH)
    (folder / "mine.piece").touch()
    assert pieces.clear(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.piece"]
    shutil.rmtree(folder)
    (tmp_path / "prepare-mine").mkdir()
    assert pieces.folders(tmp_path) == []


def test_pieces_are_listed_and_cleared_with_the_checkpoints(tmp_path: Path, photos: Path) -> None:
    asked = params(path=str(photos), **ASKED)
    half(tmp_path / "root", asked)
    (folder,) = (tmp_path / "root").iterdir()

    def checkpoints(*words: str) -> str:
        command = [sys.executable, "-m", "stages.checkpoints", *words]
        environment = os.environ | {"MASKDM_CHECKPOINTS": str(tmp_path / "root"), "DVC_ROOT": ""}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout

    assert checkpoints("list").startswith(f"{folder.name}\n       2 pieces ")
    with kept_pieces(tmp_path / "root", shaped_by(asked), (16, 16, 3)):
        assert checkpoints("list").startswith(f"{folder.name} (in use)\n")
        assert checkpoints("clear", "--all") == f"{folder.name} is in use and stays\n"
    half(tmp_path / "root", asked)
    assert checkpoints("clear", folder.name) == f"{folder.name} removed\n"
    assert checkpoints("list").startswith("0.0 MiB in ")


# --- the stage itself ---


def test_what_a_finished_set_removes_while_it_is_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"prepare-{0:016x}"
    folder.mkdir()
    for name in (LOCK, f"{0:010}{PIECE}", f"{1024:010}{PIECE}"):
        (folder / name).write_bytes(bytes(3))
    assert pieces.sizes(folder) == [3, 3]
    monkeypatch.setattr(pieces, "listed", lambda *of: [folder / "gone", *listed(*of)])
    assert pieces.sizes(folder) == [3, 3]
    shutil.rmtree(folder)
    assert pieces.sizes(folder) == []
    assert not pieces.in_use(folder)
    assert not folder.exists()  # looking makes nothing


def test_what_somebody_removes_while_a_set_is_prepared_is_not_missed(tmp_path: Path) -> None:
    with kept_pieces(tmp_path, "key", SHAPE) as kept:
        assert kept is not None
        shutil.rmtree(kept.folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_kills_at_random_moments_leave_the_bytes_of_an_untouched_run(tmp_path: Path) -> None:
    result = storm(tmp_path, images=6000, kills=8, seed=3)
    assert result["differing"] == []
    assert sum(result["signals"].values()) == 8
    assert result["started_with_pieces"] >= 3
    assert result["left_over"] == []


@pytest.mark.slow
def test_a_killed_dvc_repro_goes_on_behind_the_last_piece(tmp_path: Path) -> None:
    """DVC deletes what a stage writes, or checks it out anew, before the stage starts."""
    save_pictures(tmp_path / "images", 20000)  # so many that it is killed long before the end
    changes = {"data.source": "folder", "data.path": str(tmp_path / "images"), "data.limit": None}
    clone = clone_tree(tmp_path / "clone", changes)
    command = ["dvc", "repro", "prepare"]
    process = subprocess.Popen(
        command, cwd=clone.path, env=clone.environment, start_new_session=True, **SILENT
    )
    while len(listed(clone.path, f"checkpoints/prepare-*/*{PIECE}")) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    said = clone.call(*command)
    assert int(re.search(r"went on behind (\d+) images", said)[1]) >= 2 * 1024
    assert not list(clone.path.glob("checkpoints/*"))
