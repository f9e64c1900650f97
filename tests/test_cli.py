"""The command maskdm: the same images as in Python, in files; one sentence for what is wrong."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
from PIL import Image

import maskdm
from maskdm import cli
from maskdm.sampling.images import Images, pictures
from maskdm.sampling.model import GUIDE_CLASS, GUIDE_INTERVAL, GUIDE_SCALE
from maskdm.sampling.solvers import SOLVERS
from tests.support.models import saved


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two untrained models with classes, finetune and pretrain."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("finetune", "pretrain")):
        saved(folder / name, seed=seed, classes={"cat": 3, "dog": 5})
    return folder


def call(*words: object, code: int = 0) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "maskdm.cli", *map(str, words)], capture_output=True, text=True
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_the_images_are_those_of_python(models: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"solver": "ddpm", "nfe": 3, "guide_scale": 1.5}
    settings |= {"guidance_scale": 1.2, "guide_class": "hidden"}
    words = [w for key, value in settings.items() for w in (f"--{key.replace('_', '-')}", value)]
    guide = models / "pretrain"
    call(
        *("sample", models / "finetune", "--count", 3, "--seed", 5, "--label", "dog"),
        *("--guide", guide, "--guide-interval", 0.1, 0.8, "--out", tmp_path / "out", *words),
    )
    drawn = maskdm.load(models / "finetune").sample(
        3, 5, label="dog", guide=guide, guide_interval=(0.1, 0.8), **settings
    )
    for number, image in enumerate(drawn):
        with Image.open(tmp_path / f"out/{number:05}.png") as written:
            assert np.array_equal(np.asarray(written), np.asarray(image))
    about = json.loads((tmp_path / "out/samples.json").read_text())
    assert (about["label"], about["nfe"], about["guide_interval"]) == ("dog", 3, [0.1, 0.8])
    assert about["guide"] == str(guide)
    assert (tmp_path / "out/grid.png").exists()


def test_every_option_of_drawing_is_used(models: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"solver": "ddim", "nfe": 4, "eta": 0.5, "guidance_scale": 1.5}
    settings |= {"guidance_interval": (0.1, 0.9)}
    drawn = maskdm.load(models / "finetune", "raw").sample(2, 3, label="cat", **settings)
    words = [w for key, value in settings.items() for w in (f"--{key.replace('_', '-')}", value)]
    words = [w for word in words for w in (word if isinstance(word, tuple) else (word,))]
    call(
        *("sample", models / "finetune", "--count", 2, "--seed", 3, "--label", "cat"),
        *("--weights", "raw", "--out", tmp_path / "out", *words),
    )
    for number, image in enumerate(drawn):
        with Image.open(tmp_path / f"out/{number:05}.png") as written:
            assert np.array_equal(np.asarray(written), np.asarray(image))
    about = json.loads((tmp_path / "out/samples.json").read_text())
    assert about["weights"] == "raw"
    assert {key: about[key] for key in settings} == settings | {"guidance_interval": [0.1, 0.9]}


def test_what_was_not_said_is_written_down_as_it_was_used(models: Path, tmp_path: Path) -> None:
    call(
        "sample",
        models / "finetune",
        "--count",
        1,
        "--out",
        tmp_path,
        "--guide",
        models / "pretrain",
    )
    about = json.loads((tmp_path / "samples.json").read_text())
    assert about["nfe"] == SOLVERS["dpmpp-2m"].nfe
    assert about["guide_scale"] == GUIDE_SCALE
    assert about["guide_interval"] == list(GUIDE_INTERVAL)
    assert about["guide_class"] == GUIDE_CLASS
    assert about["weights"] == "averaged"


def test_inpainting_is_that_of_python(models: Path, tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
    mask = Image.new("1", (16, 16))
    mask.paste(1, (5, 3, 12, 11))
    image.save(tmp_path / "image.png")
    mask.save(tmp_path / "mask.png")
    words = ("inpaint", models / "finetune", tmp_path / "image.png", tmp_path / "mask.png")
    said = call(
        *(*words, "--count", 2, "--seed", 5, "--label", "1", "--nfe", 3),
        *("--guide", models / "pretrain", "--guide-scale", 1.5, "--out", tmp_path / "out"),
    )
    assert "2 images, grid.png and samples.json" in said
    guide = models / "pretrain"
    drawn = maskdm.load(models / "finetune").inpaint(
        image, mask, 2, 5, label="dog", nfe=3, guide=guide, guide_scale=1.5
    )
    for number, expected in enumerate(drawn):
        with Image.open(tmp_path / f"out/{number:05}.png") as written:
            assert np.array_equal(np.asarray(written), np.asarray(expected))
    about = json.loads((tmp_path / "out/samples.json").read_text())
    assert (about["solver"], about["nfe"], about["mask"]) == ("ddpm", 3, str(tmp_path / "mask.png"))


def test_a_grid_has_the_first_samples_however_many_there_are(tmp_path: Path) -> None:
    """All of 10 000 images of 256 pixels would be one of 322 502 pixels' height."""
    drawn = np.random.default_rng(0).integers(0, 256, (85, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "samples.npy", drawn)
    (tmp_path / "samples.json").write_text("{}")
    assert "85 images" in call("unpack", tmp_path, "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("000*.png"))) == 85
    with Image.open(tmp_path / "out/grid.png") as written:
        assert np.array_equal(np.asarray(written), np.asarray(Images.of(drawn[:80]).grid()))


def test_written_images_are_not_kept(tmp_path: Path) -> None:
    """Ten thousand of 256 pixels are 2 GB."""
    drawn: list[ref[Image.Image]] = []

    def images() -> Iterator[Image.Image]:
        for array in pictures(np.zeros((90, 8, 8, 1), np.uint8)):
            drawn.append(ref(array))
            yield array
            assert sum(image() is not None for image in drawn) <= cli.SHOWN + 1

    cli._write(images(), tmp_path, {})
    assert len(drawn) == 90


@pytest.mark.parametrize("channels", [1, 3])
def test_the_samples_of_the_pipeline_become_images(channels: int, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (3, 8, 8, channels), dtype=np.uint8)
    folder = tmp_path / "samples"
    folder.mkdir()
    assert "There is no" in call("unpack", folder, "--out", tmp_path / "out", code=1)
    np.save(folder / "samples.npy", drawn)
    (folder / "samples.json").write_text('{"solver": "ddpm"}')
    call("unpack", folder, "--out", tmp_path / "out")
    for number, pixels in enumerate(drawn):
        with Image.open(tmp_path / f"out/{number:05}.png") as written:
            assert np.array_equal(np.asarray(written).reshape(pixels.shape), pixels)
    assert json.loads((tmp_path / "out/samples.json").read_text()) == {"solver": "ddpm"}
    assert "is not empty" in call("unpack", folder, "--out", tmp_path / "out", code=1)
    (folder / "samples.npy").write_bytes(b"no array")
    assert "is damaged" in call("unpack", folder, "--out", tmp_path / "new", code=1)


def test_info_says_what_a_model_is(models: Path) -> None:
    said = call("info", models / "finetune")
    assert "classes: cat, dog" in said
    assert json.loads(call("info", models / "finetune", "--json"))["classes"] == {
        "cat": 3,
        "dog": 5,
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("sample", "{}/none"), "is no model folder"),
        (("sample", "{}/finetune", "--label", "cow"), "There is no class 'cow'"),
        (("sample", "{}/finetune", "--solver", "magic"), "there is no such solver"),
        (("sample", "{}/finetune", "--count", "0"), "sample.count is 0"),
        (("sample", "{}/finetune", "--weights", "best"), "There are no weights 'best'"),
        (("sample", "{}/finetune", "--label", "7"), "There is no class 7"),
        (("sample", "{}/finetune/config.json"), "give its folder"),
        (("info", "{}/finetune/model.safetensors"), "give its folder"),
        (("inpaint", "{}/finetune", "{}/none.png", "{}/none.png"), "is no image that can be read"),
        (("inpaint", "{}/finetune", "{}", "{}/none.png"), "is no image that can be read"),
        (
            ("inpaint", "{}/finetune", "{}/finetune/config.json", "{}/none.png"),
            "config.json is no image that can be read",
        ),
        (
            ("sample", "{}/finetune", "--out", "{}/finetune/config.json"),
            "is not empty: name a folder",
        ),
        (("sample", "{}/finetune", "--out", "{}"), "is not empty: name a folder"),
        (
            ("inpaint", "{}/finetune", "{}/none.png", "{}/none.png", "--out", "{}"),
            "is not empty: name a folder",
        ),
        (("sample", "{}/finetune", "--out", ""), "A path is empty"),
        (("sample", ""), "A path is empty"),
        (("info", ""), "A path is empty"),
        (("export", "{}/finetune", ""), "A path is empty"),
        (("push", "", "me/emoji"), "A path is empty"),
    ],
)
def test_what_is_wrong_is_one_sentence(models: Path, words: tuple[str, ...], sentence: str) -> None:
    said = call(*(word.format(models) for word in words), code=1)
    assert sentence in said
    assert "Traceback" not in said


def test_it_says_which_version_it_is() -> None:
    assert call("--version") == f"maskdm {maskdm.__version__}\n"


@pytest.mark.parametrize(
    "example",
    [
        "sample models",
        "inpaint models",
        "info models",
        "export models",
        "import cifar10",
        "push emoji",
    ],
)
def test_help_has_an_example(example: str) -> None:
    said = call(example.split()[0], "--help")
    assert f"maskdm {example}" in " ".join(said.split())
