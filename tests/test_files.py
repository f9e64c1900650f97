"""Files are written whole or not at all, and what is linked into a cache is never written to."""

import ast
import errno
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskdm import figures
from maskdm.data.prepared import Sample, write_prepared
from maskdm.runtime import files
from maskdm.runtime.command import _fault_of_the_machine
from maskdm.training import curves
from tests.support.clones import ROOT, Clone
from tests.support.models import saved
from tests.support.searching import searched

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def save_tensors(path: Path) -> None:
    with files.replacing(path) as begun:
        files.write_tensors({"a": torch.ones(10_000)}, begun)


def save_prepared(path: Path) -> None:
    """Write a prepared set with classes; ``path`` is one of its files."""
    samples = [Sample(NOISE, 0, heldout) for heldout in (False, True)]
    about = {"size": 64, "channels": 3, "classes": ["a"], "source": "", "licence": ""}
    write_prepared(path.parent, samples, **about)  # type: ignore[arg-type]


def save_curve(path: Path) -> None:
    curves._write(path, ("step", "loss"), [{"step": n, "loss": n / 7} for n in range(2000)])


def draw_curves(path: Path) -> None:
    row = {"flops": 1.0, "quantity": "loss", "value": 2.0, "curve": "a"}
    figures.curves([row, row | {"flops": 2.0}], {"loss": "loss"}, path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "train.npy": save_prepared,
    "heldout.npy": save_prepared,
    "dataset.json": save_prepared,
    "model.safetensors": lambda path: saved(path.parent) and None,
    "config.json": lambda path: saved(path.parent) and None,
    "training.tsv": save_curve,
    "7.png": lambda path: curves._write_previews(path.parent, {7: NOISE[None]}),
    "curves.png": draw_curves,
    "a.npy": lambda path: files.write_array(path, NOISE),
    "a.json": lambda path: files.write_json(path, {"a": list(range(5000))}),
    "a.txt": lambda path: files.write_text(path, "text" * 5000),
    "a.bin": lambda path: files.write_bytes(path, bytes(20_000)),
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
@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, OSError(28, "No space left")])
def test_whatever_ends_a_write_in_its_last_moment_leaves_nothing_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ending: BaseException
) -> None:
    path, replace = tmp_path / name, Path.replace

    def end(begun: Path, target: Path) -> Path:
        if target == path:
            raise ending
        return replace(begun, target)

    path.write_bytes(b"before")
    monkeypatch.setattr(Path, "replace", end)
    with pytest.raises(ending if isinstance(ending, type) else type(ending)):
        WRITERS[name](path)
    if name == "dataset.json":  # the old one would describe the new arrays, which are there
        assert not path.exists()
    else:
        assert path.read_bytes() == b"before"
    assert not [left for left in tmp_path.iterdir() if left.name.startswith(".")]


def test_a_folder_that_goes_while_it_is_searched_is_as_one_that_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/.1.piece", "b/2.piece", "b/2.other", "c/deep/3.piece"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert files.listed(tmp_path, "*/*.piece") == [tmp_path / "a/.1.piece", tmp_path / "b/2.piece"]
    assert len(files.listed(tmp_path, "**")) == 8
    scandir = os.scandir

    def going(path: Any) -> Any:
        if str(path).endswith("b"):
            shutil.rmtree(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", going)
    assert files.listed(tmp_path, "*/*.piece") == [tmp_path / "a/.1.piece"]
    assert files.listed(tmp_path / "b", "*") == []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk with room for two pages."""
    folder = tmp_path_factory.mktemp("small")
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root may mount a small tmpfs, and not in every container")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@each_writer
def test_a_disk_that_is_really_full_is_one_sentence_and_costs_nothing(
    small: Path, name: str
) -> None:
    path = small / name
    path.write_bytes(b"before" * 900)  # one page is left, or none
    try:
        with pytest.raises(OSError, match=r".+") as caught:
            WRITERS[name](path)
        assert "The disk is full" in (_fault_of_the_machine(caught.value) or "")
        assert path.read_bytes() == b"before" * 900
        assert list(small.iterdir()) == [path]
    finally:
        path.unlink()


@each_writer
def test_a_disk_that_is_read_only_is_one_sentence(small: Path, name: str) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    try:
        with pytest.raises(OSError, match=r".+") as caught:
            WRITERS[name](small / name)
        assert "Read-only file system" in (_fault_of_the_machine(caught.value) or "")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_dvc_links_files_and_no_folder_so_its_cache_is_never_written_to(
    tmp_path: Path, kind: str
) -> None:
    writers = {name: write for name, write in WRITERS.items() if name != "7.png"}  # removes others
    clone = Clone(tmp_path / "repository")
    folder = clone.path / "out"
    folder.mkdir(parents=True)
    clone.call("dvc", "init", "--no-scm", "--quiet")
    clone.call("dvc", "config", "cache.type", kind)
    for name in writers:
        (folder / name).write_text(f"before {name}")
    clone.call("dvc", "add", "--quiet", "out")

    def cached() -> dict[Path, bytes]:
        cache = clone.path / ".dvc/cache"
        return {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}

    before = cached()
    assert len(before) == len(writers) + 1
    assert not folder.is_symlink()
    for name, write in writers.items():
        path = folder / name
        if path.read_bytes() == f"before {name}".encode():
            assert path.is_symlink() if kind == "symlink" else path.stat().st_nlink == 2
        write(path)
        assert not path.is_symlink()
        assert path.read_bytes() != f"before {name}".encode()
    assert cached() == before


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
        (OSError(errno.EIO, "Input/output error", "a"), "Input/output error (a): the disk, or the"),
        (OSError(errno.ESTALE, "Stale file handle", "a"), "Stale file handle (a): the disk, or"),
        (OSError(errno.EMFILE, "Too many open files", "a"), "Too many files are open at once (a)"),
        (MemoryError(), "MASKDM_MICRO_BATCH"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "MASKDM_MICRO_BATCH"),
        (torch.OutOfMemoryError("CUDA out of memory."), "MASKDM_MICRO_BATCH"),
        (RuntimeError("a defect"), None),
        (FileNotFoundError(2, "No such file", "a"), "No such file (a): it is not there, or no"),
    ],
)
def test_what_the_machine_lacks_is_one_sentence(error: Exception, sentence: str | None) -> None:
    said = _fault_of_the_machine(error)
    assert (said is None) == (sentence is None)
    assert (sentence or "") in (said or "")


# Who waits for a lock is told who holds it: half of a name does no harm.
IN_PLACE = {"maskdm/training/checkpoints/store.py": {"self.folder / OWNER.write_text"}}
IN_MEMORY = (["begun"], ["buffer"])  # or beside its place
WRITING = ("write_text", "write_bytes", "tofile", "savez", "savez_compressed", "save_file")


def writes(code: str) -> Iterator[str]:
    """Yield the calls that write a file that is not one begun beside its place."""
    for node in ast.walk(ast.parse(code)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of, name = ast.unparse(node.func.value), node.func.attr
        given = [ast.unparse(argument) for argument in node.args]
        opened = name == "open" and any(mode[1:2] in "wax" for mode in given if mode[:1] in "'\"")
        image = name == "save" and (of == "np" or "'png'" in given) and given[:1] not in IN_MEMORY
        if of != "begun" and (name in WRITING or opened or image):
            yield f"{of}.{name}"


def test_no_module_writes_a_file_in_its_place() -> None:
    assert searched(("maskdm", "stages", "tools"), writes) == IN_PLACE


@pytest.mark.parametrize(
    "code",
    [
        "path.write_text(text)",
        "path.write_bytes(text)",
        "np.save(path, a)",
        "picture.save(path, 'png')",
        "path.open('w')",
        "path.open('ab')",
    ],
)
def test_a_write_in_place_is_found(code: str) -> None:
    assert list(writes(code))
