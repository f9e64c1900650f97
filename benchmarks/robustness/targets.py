"""Where the bytes of strangers come in: each reader as a function of bytes, to be fed damaged ones.

A target knows files that are whole, what it does with any other, and which errors are refusals:
whatever else it raises is a defect.
"""

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from maskdm.runtime.errors import UserError

Feed = Callable[[bytes], Any]
SIDE, MOST_PIXELS, MOST_FILES = 16, 10**5, 20  # what a target reads of what it is given


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        seeds: returns whole files; the first is taken.
        opened: folder for files of its own → a function that reads a file of any bytes.
        refusals: what that function may raise.
    """

    seeds: Callable[[], list[bytes]]
    opened: Callable[[Path], Feed]
    refusals: tuple[type[Exception], ...] = (UserError,)

    def fed(self, folder: Path) -> Callable[[bytes], bool]:
        """Return a function that reads a file of any bytes and returns whether it was taken."""
        feed = self.opened(folder)

        def taken(content: bytes) -> bool:
            try:
                feed(content)
            except self.refusals:
                return False
            return True

        return taken


def _pictures() -> list[bytes]:
    from benchmarks.robustness import corpus

    whole = [corpus.encode(corpus.picture(), kind) for kind in corpus.DAMAGED]
    odd = [case.content for case in corpus.cases() if case.name.startswith("modes/")]
    return whole + [content for content in odd if content is not None]


def _read_picture(_: Path) -> Feed:
    from maskdm.data.images import fit, read_image

    return lambda content: fit(read_image(content, SIDE, "white", MOST_PIXELS), SIDE, 3)


def _archives() -> list[bytes]:
    pictures, made = _pictures()[:3], []
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", packing) as archive:
            for number, content in enumerate(pictures):
                archive.writestr(f"class/{number}.png", content)
            archive.writestr("./é.txt", b"left out")
        made.append(file.getvalue())
    return made


def _read_archive(folder: Path) -> Feed:
    from maskdm.data.files import open_files

    path = folder / "images.zip"

    def feed(content: bytes) -> None:
        path.write_bytes(content)
        files = open_files(path).images()
        for name in islice(files.names, MOST_FILES):
            # What one member raises is a picture that is skipped.
            with contextlib.suppress(Exception):
                files.read(name)

    return feed


def _pickles() -> list[bytes]:
    import pickle

    import numpy as np

    planes = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 12)
    batch = {"data": planes, "labels": [3, 9], "batch_label": "x", "more": (1.5, None, True, -1)}
    return [pickle.dumps(batch, protocol) for protocol in (4, 3, 2, 1, 0, 5)]


def _read_pickle(_: Path) -> Feed:
    from maskdm.data.pickled import read_pickle

    return read_pickle


def _model(folder: Path) -> Path:
    """Write a small model and return its folder."""
    from benchmarks.presets import read_preset
    from maskdm.backbones.model_folder import ModelConfig, save_model, save_moments
    from maskdm.runtime.params import merge, validate

    params = merge(read_preset("tiny"), {"model": {"dim": 8, "depth": 1, "heads": 1, "refine": 0}})
    config: dict[str, Any] = {"size": SIDE, "channels": 3, "classes": {"cat": 3}, "seed": 0}
    config |= {name: params[name] for name in ("model", "diffusion")} | {"training": []}
    parsed = validate(config, "config", ModelConfig)
    network = parsed.backbone()
    weights = {name: tensor.detach() for name, tensor in network.named_parameters()}
    save_model(folder, parsed, weights, {name: tensor.clone() for name, tensor in weights.items()})
    moments = {f"{kind}.{n}": t.clone() for n, t in weights.items() for kind in MOMENTS_OF_ADAM}
    save_moments(folder, moments | {f"step.{n}": t.new_zeros(()) for n, t in weights.items()})
    return folder


MOMENTS_OF_ADAM = ("exp_avg", "exp_avg_sq")


def _file_of_a_model(name: str) -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return [(_model(Path(folder)) / name).read_bytes()]


def _read_model(name: str) -> Callable[[Path], Feed]:
    """Return what reads a model one of whose files is given."""

    def opened(folder: Path) -> Feed:
        from maskdm.backbones.model_folder import MOMENTS, load_config, load_model, load_moments

        model = _model(folder / "model")
        network = load_config(model).backbone()

        def feed(content: bytes) -> None:
            (model / name).write_bytes(content)
            if name == MOMENTS:
                load_moments(model, network)
            else:
                load_model(model, "averaged")

        return feed

    return opened


def _params() -> list[bytes]:
    from benchmarks.presets import names, path_of, read_preset

    short = [json.dumps(read_preset(name)).encode() for name in names()]  # JSON is YAML
    return [*short, path_of("tiny").read_bytes()]


def _read_params(folder: Path) -> Feed:
    from stages.check import check

    path = folder / "params.yaml"

    def feed(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.redirect_stdout(io.StringIO()):
            check(path)

    return feed


TARGETS = {
    # What a decoder may raise for a damaged file: prepare lists it as unreadable.
    "images": Target(
        _pictures,
        _read_picture,
        (OSError, ValueError, SyntaxError, RuntimeError, MemoryError),
    ),
    "archives": Target(_archives, _read_archive),
    "pickles": Target(_pickles, _read_pickle, (ValueError,)),
    "configs": Target(lambda: _file_of_a_model("config.json"), _read_model("config.json")),
    "weights": Target(
        lambda: _file_of_a_model("model.safetensors"), _read_model("model.safetensors")
    ),
    "moments": Target(
        lambda: _file_of_a_model("optimiser.safetensors"), _read_model("optimiser.safetensors")
    ),
    "params": Target(_params, _read_params),
}
