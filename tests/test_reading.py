"""Pictures read by several processes or threads at once."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdm.data import reading
from maskdm.data.contract import Picture, Source
from maskdm.data.files import open_zip
from maskdm.data.prepared import Sample, Unreadable
from maskdm.data.reading import AHEAD, TOGETHER, once_per_process, read_in_order
from maskdm.data.registry import read_samples
from maskdm.data.sources.openmoji import OPENMOJI
from maskdm.runtime.errors import UserError
from tests.support.preparing import params

CORES = 3


@pytest.fixture(params=["processes", "threads"], autouse=True)
def readers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Processes or threads, on ``CORES`` cores: all tests hold for both."""
    if request.param == "processes" and not reading.FORKS:
        pytest.skip("processes cannot be forked here")
    monkeypatch.setattr(reading, "FORKS", request.param == "processes")
    monkeypatch.setattr(os, "cpu_count", lambda: CORES)
    return str(request.param)


def read_all(
    paint: Callable[[str], Image.Image], count: int, **changes: object
) -> Iterator[Sample | Unreadable]:
    """Read ``count`` pictures called 00000, 00001, …"""
    pictures = [Picture(f"{n:05}", n % 2 == 0, None) for n in range(count)]
    return read_samples(Source("test", "none", None, pictures, paint), params(path=".", **changes))


def values(samples: Iterator[Sample | Unreadable]) -> list[int]:
    """Return the first value of each picture, all of which must be readable."""
    found = list(samples)
    assert all(isinstance(sample, Sample) for sample in found)
    return [int(sample.pixels[0, 0, 0]) for sample in found if isinstance(sample, Sample)]


def grey(name: str) -> Image.Image:
    return Image.new("RGB", (16, 16), (int(name) % 256,) * 3)


@pytest.mark.parametrize("count", [1, TOGETHER, 300])
def test_pictures_come_in_order(count: int) -> None:
    assert values(read_all(grey, count)) == [n % 256 for n in range(count)]


def test_as_many_read_as_there_are_cores(readers: str, tmp_path: Path) -> None:
    until = time.monotonic() + (60 if readers == "processes" else 0)

    def paint(name: str) -> Image.Image:
        (tmp_path / str(os.getpid())).touch()
        while len(list(tmp_path.iterdir())) < CORES and time.monotonic() < until:
            time.sleep(0.002)  # all of them must have come
        return grey(name)

    values(read_all(paint, 50 * TOGETHER))
    found = {int(path.name) for path in tmp_path.iterdir()}
    assert (found == {os.getpid()}) == (readers == "threads")
    assert len(found) == (CORES if readers == "processes" else 1)
    for process in found - {os.getpid()}:
        with pytest.raises(ProcessLookupError):  # none outlives the reading
            os.kill(process, 0)


def test_reading_stays_a_bounded_number_of_pictures_ahead(tmp_path: Path) -> None:
    def paint(name: str) -> Image.Image:
        (tmp_path / name).touch()
        return grey(name)

    samples = read_all(paint, 150 * CORES)
    for taken in range(1, 60 * CORES):
        next(samples)
        if taken in (1, 50 * CORES):
            time.sleep(0.3)  # long enough to read all of them
            assert len(list(tmp_path.iterdir())) <= taken + TOGETHER + AHEAD * CORES


def test_a_slow_picture_holds_up_no_other(tmp_path: Path) -> None:
    """Pictures come in order, and no batch has to end before the next begins."""
    last = AHEAD * CORES - 1  # the last that is started before one is taken

    def paint(name: str) -> Image.Image:
        if int(name) == last:
            until = time.monotonic() + 60
            while not (tmp_path / "overtaken").exists():
                assert time.monotonic() < until
        if int(name) == last + TOGETHER:
            (tmp_path / "overtaken").touch()
        return grey(name)

    assert values(read_all(paint, 200)) == list(range(200))


def test_nothing_is_read_any_more_once_nobody_takes_it(tmp_path: Path) -> None:
    def paint(name: str) -> Image.Image:
        (tmp_path / name).touch()
        time.sleep(0.02)
        return grey(name)

    samples = read_all(paint, 1000)
    next(samples)
    samples.close()  # as an error or Ctrl-C in the consumer does
    # Pictures that were requested already are still read.
    assert len(list(tmp_path.iterdir())) <= (AHEAD + TOGETHER) * CORES


def test_what_the_user_must_mend_is_no_unreadable_file() -> None:
    def paint(name: str) -> Image.Image:
        raise UserError("The disk is gone.")

    with pytest.raises(UserError, match="The disk is gone"):
        list(read_all(paint, 9, max_unreadable=0.9))


def test_a_process_that_is_killed_is_reported(readers: str, tmp_path: Path) -> None:
    if readers == "threads":
        pytest.skip("a thread cannot be killed")

    def paint(name: str) -> Image.Image:
        if name == "00020" and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return grey(name)

    with pytest.raises(UserError, match=r"A process that read pictures was killed.*memory"):
        list(read_all(paint, 100))
    assert values(read_all(paint, 100)) == list(range(100))


FOREVER = """
import os, time
from maskdm.data.reading import read_in_order

def read(_picture):
    os.write(1, b"%d\\n" % os.getpid())  # a line at once; print may write its end separately
    time.sleep(60)

next(read_in_order(read, [str(n) for n in range(99)]))
"""


def test_the_processes_end_with_one_that_is_killed(readers: str) -> None:
    if readers == "threads":
        pytest.skip("threads end with their process")
    command = [sys.executable, "-c", FOREVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
    until = time.monotonic() + 10
    while lives(child):
        assert time.monotonic() < until, "it reads for nobody"
        time.sleep(0.05)


def lives(process: int) -> bool:
    """Return whether a process still runs; a zombie does not."""
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_all_read_one_archive_and_none_disturbs_another(tmp_path: Path) -> None:
    """A forked process shares the offset of an open file unless it opens the file again."""
    random = np.random.default_rng(0)
    contents = {f"{n:05}": random.bytes(50_000) for n in range(200)}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    files = open_zip(tmp_path / "a.zip")

    def read(picture: Picture) -> Unreadable:
        return Unreadable(picture.name, files.read(picture.name).hex())

    pictures = [Picture(name, False, None) for name in files.names]
    found = {each.name: each.reason for each in read_in_order(read, pictures)}
    assert found == {name: content.hex() for name, content in contents.items()}


def test_once_per_process_opens_once() -> None:
    opened = once_per_process(object)
    assert opened() is opened()


# OpenMoji, whose renderer holds Python's lock


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """A folder of SVG files, each in its own grey."""
    for n in range(40):
        level = f"{6 * n:02x}" * 3
        (tmp_path / f"1F6{n:02}.svg").write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">'
            f'<rect width="9" height="9" fill="#{level}"/></svg>'
        )
    return tmp_path


def test_drawings_come_in_order(drawings: Path) -> None:
    asked = params(source="openmoji")
    samples = read_samples(OPENMOJI.listing(asked, drawings), asked)
    assert values(samples) == [6 * n for n in range(40)]


def test_a_damaged_drawing_is_unreadable(drawings: Path) -> None:
    asked = params(source="openmoji", max_unreadable=0.2)
    (drawings / "1F605.svg").write_text("<svg")
    (drawings / "1F606.svg").write_bytes(b"\xff\xfe")
    samples = list(read_samples(OPENMOJI.listing(asked, drawings), asked))
    skipped = [sample for sample in samples if isinstance(sample, Unreadable)]
    assert [file.name for file in skipped] == ["1F605", "1F606"]
    assert all(file.reason for file in skipped)
    assert len(samples) == 40


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), ImportError("sem_open")]
)
def test_where_there_are_no_semaphores_threads_read(error, monkeypatch):
    def refused(*_, **__):
        raise error

    monkeypatch.setattr(reading, "ProcessPoolExecutor", refused)
    pictures = [Picture(f"{n}", False, None) for n in range(30)]
    found = reading.read_in_order(lambda picture: Unreadable(picture.name, ""), pictures)
    assert [sample.name for sample in found] == [picture.name for picture in pictures]
