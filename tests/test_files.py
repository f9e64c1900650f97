"""Files are written whole or not at all, and what is linked into a cache is never written to."""

import json
import math
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskdm import figures
from maskdm.data.prepared import Sample, write_prepared
from maskdm.runtime import files
from maskdm.runtime.command import _fault_of_the_machine
from tests.support.graph import ROOT

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def save_tensors(path: Path) -> None:
    with files.replacing(path) as begun:
        files.write_tensors({"a": torch.ones(10_000)}, begun)


def save_prepared(path: Path) -> None:
    """Write a prepared set; ``path`` is its train.npy."""
    samples = [Sample(NOISE, None, heldout) for heldout in (False, True)]
    about = {"size": 64, "channels": 3, "classes": None, "source": "", "licence": ""}
    write_prepared(path.parent, samples, **about)  # type: ignore[arg-type]


WRITERS: dict[str, Callable[[Path], None]] = {
    "train.npy": save_prepared,
    "a.npy": lambda path: files.write_array(path, NOISE),
    "a.json": lambda path: files.write_json(path, {"a": list(range(5000))}),
    "a.txt": lambda path: files.write_text(path, "text" * 5000),
    "a.png": lambda path: figures.save(Image.fromarray(NOISE), path),
    "a.safetensors": save_tensors,
}
each_writer = pytest.mark.parametrize("name", WRITERS)


@contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """Let no file of this process become longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)


@each_writer
@pytest.mark.parametrize("bytes_left", [0, 1000])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, name: str, bytes_left: int
) -> None:
    path = tmp_path / name
    path.write_bytes(b"before")
    with full_disk(bytes_left), pytest.raises(OSError, match=r"large|file") as caught:
        WRITERS[name](path)
    assert caught.value.errno  # without it nobody could tell a full disk from a defect
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@each_writer
@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_a_link_into_the_cache_is_replaced_and_the_cache_is_as_it_was(
    tmp_path: Path, name: str, kind: str
) -> None:
    cached, path = tmp_path / "cached", tmp_path / "here" / name
    cached.write_bytes(b"cached")
    path.parent.mkdir()
    path.symlink_to(cached) if kind == "symlink" else os.link(cached, path)
    WRITERS[name](path)
    assert cached.read_bytes() == b"cached"
    assert not path.is_symlink()
    assert path.read_bytes() != b"cached"


def test_arrays_are_those_of_numpy(tmp_path: Path) -> None:
    for values in (NOISE, np.zeros(0), np.asfortranarray(NOISE[..., 0]), np.float32(3.0)):
        files.write_array(tmp_path / "a.npy", np.asarray(values))
        np.save(tmp_path / "b.npy", values)
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_a_report_holds_no_number_that_json_does_not_have(tmp_path: Path) -> None:
    content = {"a": math.inf, "b": [1.5, math.nan, (math.inf,)], "c": {"d": -math.inf, "e": 1}}
    files.write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": None, "b": [1.5, None, [None]], "c": {"d": None, "e": 1}}


def test_every_report_in_git_is_json_to_the_letter() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no number of JSON")

    reports = list((ROOT / "reports").rglob("*.json"))
    assert reports
    for path in reports:
        json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_a_report_is_written_by_the_one_function_that_knows_what_json_lacks() -> None:
    own = {"store.py", "images.py", "train.py"}  # no reports: what only these modules read again
    for folder in ("stages", "maskdm", "benchmarks", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "json.dump(" not in text, path
            assert "write_text(json.dumps(" not in text or path.name in own, path


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device", "a"), "disk is full (a)"),
        (OSError(30, "Read-only file system", "a"), "Read-only file system (a)"),
        (PermissionError(13, "Permission denied", "a"), "Permission denied (a)"),
        (MemoryError(), "MASKDM_MICRO_BATCH"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "MASKDM_MICRO_BATCH"),
        (torch.OutOfMemoryError("CUDA out of memory."), "MASKDM_MICRO_BATCH"),
        (RuntimeError("a defect"), None),
        (FileNotFoundError(2, "No such file", "a"), None),
    ],
)
def test_what_the_machine_lacks_is_one_sentence(error: Exception, sentence: str | None) -> None:
    said = _fault_of_the_machine(error)
    assert (said is None) == (sentence is None)
    assert (sentence or "") in (said or "")
