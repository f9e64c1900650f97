"""A trained model in Python: the same images for the same settings, wherever it is installed."""

import os
import re
import shutil
import subprocess
import sys
import weakref
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

import maskdm
from maskdm.backbones.model_folder import load_config, save_model
from maskdm.runtime.errors import UserError
from maskdm.sampling.images import GAP, SIDE, Images
from maskdm.sampling.model import sample_batches
from tests.support.graph import ROOT
from tests.support.models import arrays, drawing, saved


@pytest.mark.slow
def test_the_page_works_from_anywhere_with_the_package_as_it_is_installed(tmp_path):
    """What docs/python.md shows, run from another folder on a wheel's files alone."""
    source, site, elsewhere = (tmp_path / name for name in ("source", "site", "elsewhere"))
    for name in ("maskdm", "pyproject.toml", "README.md", "LICENSE"):
        item, ignored = ROOT / name, shutil.ignore_patterns("__pycache__")
        copy = shutil.copytree if item.is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(item, source / name, **({"ignore": ignored} if item.is_dir() else {}))
    install = "-m pip install --quiet --no-deps --no-build-isolation --no-index --target"
    subprocess.run([sys.executable, *install.split(), site, source], check=True)
    assert (site / "maskdm/py.typed").exists()

    for name in ("finetune", "pretrain"):
        saved(elsewhere / f"models/{name}")
    shown = re.search(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    code = f"{shown[1]}\nprint(maskdm.__file__, len(images), images[0].size)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site), "MASKDM_DEVICE": "cpu"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert said.split() == [str(site / "maskdm/__init__.py"), "16", "(16,", "16)"]
    assert (elsewhere / "first.png").exists()


@pytest.mark.slow
def test_importing_the_package_imports_no_torch():
    code = "import sys, maskdm; print('torch' in sys.modules, maskdm.load, 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.startswith("False <function load")
    assert said.stdout.endswith("True\n")


def test_what_the_package_offers_can_be_listed_and_is_there():
    assert dir(maskdm) == ["__version__", "load"]
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", maskdm.__version__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = maskdm.lod


def test_a_model_says_what_it_draws(model, conditional):
    assert re.fullmatch(
        r"<TrainedModel: 16x16 pixels, 3 channels; \w+ of width \d+ and depth \d+, [\d,]+ weights, "
        r"on cpu>",
        repr(model),
    )
    assert f"{len(conditional.classes)} classes" in repr(conditional)
    assert repr(model.guided_by(model)).endswith("on cpu, guided>")


def test_an_image_is_the_same_in_any_count_and_another_with_another_seed(model, monkeypatch):
    images = arrays(model.sample(5, seed=3, nfe=4))
    monkeypatch.setenv("MASKDM_SAMPLE_BATCH", "2")
    assert np.array_equal(arrays(model.sample(3, seed=3, nfe=4)), images[:3])
    assert not np.array_equal(arrays(model.sample(3, seed=4, nfe=4)), images[:3])


def test_a_notebook_shows_images_as_a_grid(model):
    images = model.sample(3, nfe=2)
    with Image.open(BytesIO(images._repr_png_())) as shown:
        pixels = np.asarray(shown)
    scale, step = SIDE // 16, 16 + GAP
    assert pixels.shape == ((step + GAP) * scale, (3 * step + GAP) * scale, 3)
    for number, image in enumerate(images):
        first = (GAP + number * step) * scale
        part = pixels[GAP * scale :: scale, first::scale][:16, :16]
        assert np.array_equal(part, np.asarray(image))
    assert (pixels[:, : GAP * scale] == 255).all()
    assert images.grid(columns=1).height > 2 * images.grid().height
    assert Images()._repr_png_() is None
    for few, columns in ((images, 0), (images, -1), (Images(), 8)):
        with pytest.raises(UserError, match="at least one of each"):
            few.grid(columns)


def test_grey_models_give_grey_images(tmp_path):
    (image,) = maskdm.load(saved(tmp_path, channels=1), device="cpu").sample(1, nfe=2)
    assert (image.mode, image.size) == ("L", (16, 16))
    assert Images([image]).grid().mode == "L"


def test_a_class_is_asked_for_by_name_or_number(conditional):
    assert conditional.classes == ["cat", "dog", "owl"]
    by_name, by_number, by_numpy = (
        arrays(conditional.sample(2, label=c, seed=s, nfe=4))
        for c, s in (("owl", 0), (2, 0), (np.int64(2), np.int64(0)))
    )
    assert np.array_equal(by_name, by_number)
    assert np.array_equal(by_name, by_numpy)
    assert not np.array_equal(by_name, arrays(conditional.sample(2, label="cat", nfe=4)))
    drawn = conditional.labels(None, 0, range(400)).bincount(minlength=3)
    assert drawn.tolist() == pytest.approx([300, 0, 100], abs=40)  # as often as in training


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"label": "cow"}, r"no class 'cow'.*0 to 2: cat, dog, owl"),
        ({"label": 3}, r"no class 3"),
        ({"label": -1}, r"no class -1"),
        ({"label": True}, r"no class True"),
        ({"label": False}, r"no class False"),
        ({"seed": 2**31}, r"sample\.seed is 2147483648"),
        ({"seed": True}, r"sample\.seed is True"),
        ({"count": True}, r"sample\.count is True"),
        ({"solver": "euler"}, r"sample\(\): sample\.solver is 'euler'.*Allowed: dpmpp-2m"),
        ({"nfe": 1}, r"sample\.nfe is 1"),
        ({"solver": "heun", "nfe": 4}, r"odd number"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_what_can(conditional, asked, sentence):
    with pytest.raises(UserError, match=sentence):
        conditional.sample(**{"count": 1} | asked)


def test_a_guide_has_the_weights_that_its_model_has(tmp_path):
    """As the pipeline and the command have it: both raw, or both averaged."""
    folder, worse = saved(tmp_path / "a"), saved(tmp_path / "b")
    config = load_config(worse)
    raw = {name: tensor.detach() * 0.5 for name, tensor in config.backbone().named_parameters()}
    averaged = {name: tensor * 0.1 for name, tensor in raw.items()}
    save_model(worse, config, raw, averaged)
    how = {"count": 2, "nfe": 3, "solver": "ddpm", "guide_scale": 3}
    for weights in ("raw", "averaged"):
        model = maskdm.load(folder, weights, device="cpu")
        by_name = arrays(model.sample(**how, guide=worse))
        given = maskdm.load(worse, weights, device="cpu")
        assert np.array_equal(by_name, arrays(model.sample(**how, guide=given)))
        assert model.guided_by(given).weights == weights
        other = maskdm.load(worse, {"raw": "averaged", "averaged": "raw"}[weights], device="cpu")
        assert not np.array_equal(by_name, arrays(model.sample(**how, guide=other)))
        assert model.settings(1).weights == weights


def test_loading_refuses_other_weights_and_devices(tmp_path):
    folder = saved(tmp_path)
    with pytest.raises(UserError, match=r"no weights 'average': take 'averaged' or 'raw'"):
        maskdm.load(folder, "average")
    with pytest.raises(UserError, match=r"The device is 'gpu'.*'cpu', 'cuda'"):
        maskdm.load(folder, device="gpu")


def test_a_model_without_classes_takes_no_label_and_no_guidance(model):
    with pytest.raises(UserError, match=r"no class 0: .*without classes"):
        model.sample(1, label=0)
    with pytest.raises(UserError, match="guidance_scale is 2"):
        model.sample(1, guidance_scale=2.0)


@pytest.mark.parametrize("count", [1, 4, 5, 8, 9])
def test_samples_are_drawn_in_batches_that_cover_all_of_them_once(count, monkeypatch):
    monkeypatch.setenv("MASKDM_SAMPLE_BATCH", "4")
    batches = list(sample_batches(count))
    assert [index for indices in batches for index in indices] == list(range(count))
    assert all(len(indices) == 4 for indices in batches[:-1])
    assert 1 <= len(batches[-1]) <= 4


def test_the_path_leads_to_the_samples_through_every_level(model):
    path = list(model.estimates(drawing(), range(3)))
    drawn = model.draw(drawing(), range(3))
    assert [images.shape for images in path] == [drawn.shape] * 5
    assert np.array_equal(path[-1], drawn)
    assert not np.array_equal(path[0], drawn)


def test_drawing_keeps_one_estimate_at_a_time_and_makes_one_image_of_each(model, monkeypatch):
    """250 evaluations of 64 images of 256 pixels would be gigabytes."""
    made, kept = [], []

    def estimate():
        kept.append(sum(tensor() is not None for tensor in made))
        tensor = torch.zeros(2, *model.shape)
        made.append(weakref.ref(tensor))
        return tensor

    def estimates(*_):
        for _ in range(20):
            yield estimate()

    monkeypatch.setattr("maskdm.sampling.model.estimates", estimates)
    images = []
    images_of = maskdm.sampling.model.images_of
    monkeypatch.setattr(
        "maskdm.sampling.model.images_of", lambda *all_: images.append(1) or images_of(*all_)
    )
    model.draw(drawing(), range(2))
    assert kept == [0] + [1] * 19
    assert len(images) == 1
    kept.clear()
    for _ in model.estimates(drawing(), range(2)):
        pass
    assert max(kept) <= 1
