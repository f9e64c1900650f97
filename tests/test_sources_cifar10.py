"""CIFAR-10 in its true format, and pickles that are not what they seem."""

import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskdm.data.pickled import read_pickle
from maskdm.data.registry import open_source
from maskdm.data.sources import cifar10
from maskdm.runtime.errors import UserError
from tests.support.formats import python2_pickle
from tests.support.preparing import params, prepare, write


def cifar_batches(count: int = 6) -> dict[str, dict[str, Any]]:
    """Return six batches; a pixel tells its batch, image, channel and position."""
    batches = {}
    for number, batch in enumerate(cifar10.BATCHES):
        position = np.arange(1024) % 199
        data = np.stack(
            [
                np.concatenate(
                    [(position + 31 * channel + 7 * image + number) for channel in range(3)]
                )
                for image in range(count)
            ]
        )
        batches[batch] = {
            "batch_label": f"batch {number + 1}",
            "labels": [(number + image) % 10 for image in range(count)],
            "data": (data % 256).astype(np.uint8),
            "filenames": [f"{n}.png" for n in range(count)],
        }
    return batches


def cifar_files(folder: Path, content: dict[str, bytes], form: str) -> Path:
    """Write CIFAR-10 as it is found: its folder, a folder around it, or the archive."""
    for batch, pickled in content.items():
        write(folder / "cifar-10-batches-py" / batch, pickled)
    if form == "its folder":
        return folder / "cifar-10-batches-py"
    if form == "around":
        return folder
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    return folder / "cifar-10-python.tar.gz"


@pytest.mark.parametrize("form", ["its folder", "around", "archive"])
def test_cifar10_is_read_as_it_was_published(tmp_path: Path, form: str) -> None:
    batches = cifar_batches()
    content = {batch: python2_pickle(batches[batch]) for batch in batches}
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content["data_batch_1"]
    path = cifar_files(tmp_path / "in", content, form)
    kept = prepare(tmp_path, params(source="cifar10", path=str(path), resolution=32, classes=True))
    assert kept.train.shape == (30, 32, 32, 3)
    y, x, image = 3, 5, 4
    for channel in range(3):
        expected = (32 * y + x + 31 * channel + 7 * image + 1) % 256
        assert kept.train[6 + image, y, x, channel] == expected  # of data_batch_2
    assert kept.heldout_labels is not None
    assert kept.heldout_labels.tolist() == batches["test_batch"]["labels"]
    assert kept.classes is not None
    assert (len(kept.classes), kept.classes[3]) == (10, "cat")


def test_a_download_is_checked_against_its_published_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        asked.append((filename, md5))
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    with pytest.raises(UserError, match=r"no network.*let data\.path name"):
        open_source(params(source="cifar10"), tmp_path)
    assert asked == [("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")]


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_batch_is_refused_and_not_run(tmp_path: Path) -> None:
    batches = {batch: pickle.dumps(content) for batch, content in cifar_batches().items()}
    batches["data_batch_3"] = pickle.dumps({"data": Malicious(tmp_path / "ran"), "labels": []})
    path = cifar_files(tmp_path / "in", batches, "its folder")
    with pytest.raises(UserError, match=r"data_batch_3 in .*asks for posix\.mkdir"):
        open_source(params(source="cifar10", path=str(path)), tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(batches["data_batch_3"])  # whereas Python itself would have run it
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "numpy.load", "os.system", "numpy.core.os.system"]
)
def test_a_pickle_gets_no_other_name(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    with pytest.raises(ValueError, match=f"asks for {name}"):
        read_pickle(f"c{module}\n{attribute}\n(S'x'\ntR.".encode())


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("cut", "data_batch_2 in .* is no batch"),
        ("labels", r"data is uint8 \(6, 3072\) for 7 labels"),
        ("label", "a label is not one of 0 to 9"),
        ("no dict", "data_batch_2 in .* is no batch"),
        ("missing", r"holds no data_batch_2: data\.path must name cifar-10-python\.tar\.gz or"),
    ],
)
def test_damaged_cifar10_batches_are_refused(tmp_path: Path, damage: str, sentence: str) -> None:
    batches = cifar_batches()
    if damage == "labels":
        batches["data_batch_2"]["labels"].append(0)
    elif damage == "label":
        batches["data_batch_2"]["labels"][0] = 10
    content = {batch: python2_pickle(batches[batch]) for batch in batches}
    if damage == "cut":
        content["data_batch_2"] = content["data_batch_2"][:9000]
    elif damage == "no dict":
        content["data_batch_2"] = pickle.dumps([1, 2])
    elif damage == "missing":
        del content["data_batch_2"]
    path = cifar_files(tmp_path / "in", content, "its folder")
    with pytest.raises(UserError, match=sentence):
        open_source(params(source="cifar10", path=str(path)), tmp_path)


@pytest.mark.parametrize("damage", ["cut", "no archive", "missing"])
def test_a_damaged_cifar10_archive_is_refused(tmp_path: Path, damage: str) -> None:
    content = {batch: pickle.dumps(labels) for batch, labels in cifar_batches().items()}
    path = cifar_files(tmp_path / "in", content, "archive")
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"not an archive")
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz"):
        open_source(params(source="cifar10", path=str(path)), tmp_path)


# What would follow a stranger's pointers: arrays of objects whose bytes the pickle chooses.


def forged(state: tuple[Any, ...], dtype: str = "u1") -> bytes:
    """Return a pickle of an array that is given its state as ``numpy`` would give it."""
    from pickle import BINBYTES, BUILD, GLOBAL, MARK, NONE, PROTO, REDUCE, STOP, TUPLE

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    shape, content = state
    sides = MARK + b"".join(map(number, shape)) + TUPLE
    array = GLOBAL + b"numpy._core.multiarray\n_reconstruct\n" + MARK
    array += GLOBAL + b"numpy\nndarray\n" + MARK + number(0) + TUPLE + text("b") + TUPLE + REDUCE
    kind = GLOBAL + b"numpy\ndtype\n" + MARK + text(dtype) + TUPLE + REDUCE
    kind += MARK + number(3) + text("|") + NONE * 3 + number(-1) * 2 + number(63) + TUPLE + BUILD
    given = MARK + number(1) + sides + kind + b"\x89"
    given += BINBYTES + len(content).to_bytes(4, "little") + content + TUPLE
    return PROTO + b"\2" + MARK + text("data") + array + given + BUILD + b"d" + STOP


def test_a_forged_array_of_bytes_is_read() -> None:
    assert read_pickle(forged(((2, 2), b"abcd")))["data"].tolist() == [[97, 98], [99, 100]]


@pytest.mark.parametrize(
    ("state", "dtype"),
    [
        (((1,), b"\x10" * 8), "O8"),
        (((1,), b"\x10" * 8), "O"),
        (((1,), b"\x10" * 8), "i8"),
        (((9,), b"abcd"), "u1"),
        (((-1, -4), b"abcd"), "u1"),
        (((2**31 - 1, 2**31 - 1), b""), "u1"),
    ],
)
def test_a_forged_array_of_anything_else_is_refused(
    state: tuple[tuple[int, ...], bytes], dtype: str
) -> None:
    with pytest.raises(ValueError, match="an array in it"):
        read_pickle(forged(state, dtype))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02r" + b"\xff" * 4 + b".",  # a memo of four thousand million entries
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",  # a terabyte
        b"\x80\x02cnumpy\ndtype\n}b.",  # the state of a class itself
        b"(" * 10**6,
    ],
)
def test_a_pickle_that_asks_for_the_impossible_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_pickle(content)


@pytest.mark.parametrize("opcode", [pickle.BYTEARRAY8, pickle.BINBYTES8, pickle.BINUNICODE8])
def test_a_number_in_a_pickle_takes_no_memory(opcode: bytes) -> None:
    claimed = 2**26
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"."):
            read_pickle(b"\x80\x05" + opcode + claimed.to_bytes(8, "little") + b"few bytes")
        assert tracemalloc.get_traced_memory()[1] < claimed / 16
    finally:
        tracemalloc.stop()
