"""A handful of random images in the true format of each of the paper's sets."""

import io
import pickle
import struct
from typing import Any, ClassVar

import lmdb
import numpy as np
from PIL import Image


class Python2Pickler(pickle._Pickler):
    """Pickle as Python 2 did when CIFAR-10 was made: byte strings, numpy's modules of that time."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)

    def save_string(self, text: str | bytes) -> None:
        content = text.encode("latin1") if isinstance(text, str) else text
        short = len(content) < 256
        self.write(
            b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content))
        )
        self.write(content)
        self.memoize(text)

    dispatch[bytes] = dispatch[str] = save_string

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(b"c" + f"{module}\n{name or obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch[type] = dispatch[type(lambda: 0)] = dispatch[type(len)] = save_global


def python2_pickle(content: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file).dump(content)
    return file.getvalue()


RANDOM = np.random.default_rng(0)


def picture(width, height):
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(path, width=40, height=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(width, height).save(path)


def celeba(root):
    names = [f"{number:06}.jpg" for number in range(1, 7)]
    for name in names:
        save(root / "img_align_celeba" / name, 178, 218)
    lines = (f"{name} {number // 2}" for number, name in enumerate(names))
    (root / "list_eval_partition.txt").write_text("\n".join(lines))


def celebahq(root):
    for number in range(8):
        save(root / f"{number:05}.png", 64, 64)


def church(root):
    with (
        lmdb.open(str(root / "church_outdoor_train_lmdb")) as database,
        database.begin(write=True) as transaction,
    ):
        for number in range(8):
            content = io.BytesIO()
            picture(50, 40).save(content, "webp")
            transaction.put(b"%040x" % number, content.getvalue())


def vggface2(root):
    for person in range(8):
        save(root / f"train/n{person:06}/0001_01.jpg")


def cifar10(root):
    for batch in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        content = {
            "data": RANDOM.integers(0, 256, (2, 3072), dtype=np.uint8),
            "labels": [3, 7],
        }
        path = root / "cifar-10-batches-py" / batch
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(python2_pickle(content))


def imagenet(root):
    for part, count in (("train", 3), ("val", 2)):
        for synset in ("n01440764", "n01443537"):
            for number in range(count):
                save(root / part / synset / f"{synset}_{number}.JPEG")


FILES = {
    "celeba64": celeba,
    "celebahq256": celebahq,
    "church256": church,
    "vggface2": vggface2,
    "transfer10": celebahq,
    "transfer1": celebahq,
    "cifar10": cifar10,
    "imagenet64-m": imagenet,
    "imagenet64-l": imagenet,
}
