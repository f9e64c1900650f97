"""A trained model in Python, and the pictures that the stages draw with it."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from graph import ROOT
from test_model_folder import config

import maskdm
from maskdm.backbones.model_folder import save_model
from maskdm.runtime.errors import UserError
from maskdm.sampling.sampler import SampleParams, starting_noise
from stages import pictures

CLASSES = {"cat": 30, "dog": 0, "owl": 10}


def saved(folder, **changes):
    """Write a model folder of random weights and return it."""
    about = config().model_copy(update=changes)
    network = about.backbone()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    weights = dict(network.named_parameters())
    save_model(folder, about, weights, {name: t.clone() for name, t in weights.items()})
    return folder


@pytest.fixture
def model(tmp_path):
    return maskdm.load(saved(tmp_path), device="cpu")


@pytest.fixture
def conditional(tmp_path):
    return maskdm.load(saved(tmp_path, classes=CLASSES), device="cpu")


def drawing(**changes):
    values = {"count": 4, "solver": "dpmpp-2m", "nfe": 5, "eta": 0.0, "seed": 0}
    guidance = {"guidance_scale": 1.0, "guidance_interval": [0.0, 1.0], "weights": "averaged"}
    return SampleParams(**(values | guidance | changes))


def arrays(images):
    return np.stack([np.asarray(image) for image in images])


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

    saved(elsewhere / "models/finetune")
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


def test_importing_the_package_imports_no_torch():
    code = "import sys, maskdm; print('torch' in sys.modules, maskdm.load, 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.startswith("False <function load")
    assert said.stdout.endswith("True\n")


def test_an_image_is_the_same_in_any_count_and_another_with_another_seed(model, monkeypatch):
    images = arrays(model.sample(5, seed=3, nfe=4))
    monkeypatch.setenv("MASKDM_SAMPLE_BATCH", "2")
    assert np.array_equal(arrays(model.sample(3, seed=3, nfe=4)), images[:3])
    assert not np.array_equal(arrays(model.sample(3, seed=4, nfe=4)), images[:3])


def test_grey_models_give_grey_images(tmp_path):
    (image,) = maskdm.load(saved(tmp_path, channels=1), device="cpu").sample(1, nfe=2)
    assert (image.mode, image.size) == ("L", (16, 16))


def test_a_class_is_asked_for_by_name_or_number(conditional):
    assert conditional.classes == ["cat", "dog", "owl"]
    by_name, by_number, by_numpy = (
        arrays(conditional.sample(2, label=c, seed=s, nfe=4))
        for c, s in (("owl", 0), (2, 0), (np.int64(2), np.int64(0)))
    )
    assert np.array_equal(by_name, by_number)
    assert np.array_equal(by_name, by_numpy)
    assert not np.array_equal(by_name, arrays(conditional.sample(2, label="cat", nfe=4)))
    told = conditional.labels(None, 0, range(400)).bincount(minlength=3)
    assert told.tolist() == pytest.approx([300, 0, 100], abs=40)  # as often as in training


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"label": "cow"}, r"no class 'cow'.*0 to 2: cat, dog, owl"),
        ({"label": 3}, r"no class 3"),
        ({"label": -1}, r"no class -1"),
        ({"label": True}, r"no class True"),
        ({"seed": 2**31}, r"sample\.seed is 2147483648"),
        ({"solver": "euler"}, r"sample\(\): sample\.solver is 'euler'.*Allowed: dpmpp-2m"),
        ({"nfe": 1}, r"sample\.nfe is 1"),
        ({"solver": "heun", "nfe": 4}, r"odd number"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_what_can(conditional, asked, sentence):
    with pytest.raises(UserError, match=sentence):
        conditional.sample(1, **asked)


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


def test_denoising_ends_in_the_samples(model):
    strip = pictures.denoising(model, drawing())
    last = strip.reshape(pictures.ROWS, pictures.COLUMNS, 16, 16, 3)[:, -1]
    assert np.array_equal(last, arrays(model.sample(pictures.ROWS, nfe=5)))


@pytest.mark.parametrize("fixture", ["model", "conditional"])
def test_interpolation_goes_from_a_sample_to_another_on_the_sphere(fixture, request):
    model = request.getfixturevalue(fixture)
    images = pictures.interpolation(model, drawing()).astype(int)
    rows = images.reshape(pictures.ROWS, pictures.COLUMNS, 16, 16, 3)
    label = model.labels(None, 0, range(1))
    ends = arrays(model.sample(2, nfe=5, label=None if label is None else label.item()))
    assert abs(rows[0, [0, -1]] - ends).max() <= 1  # up to the rounding of other batches
    one, other = starting_noise(0, model.shape, range(2))
    half = pictures.slerp(one, other, 0.5)
    assert half.norm() == pytest.approx(float((one.norm() + other.norm()) / 2), rel=0.02)
    assert torch.allclose(half, pictures.slerp(other, one, 0.5), atol=1e-6)


def test_classes_are_rows_and_a_column_is_one_noise(conditional, model):
    rows = pictures.by_class(conditional, drawing())
    assert [name for name, _ in rows] == ["cat", "dog", "owl"]
    expected = arrays(conditional.sample(pictures.COLUMNS, nfe=5, label="owl"))
    assert np.array_equal(rows[2][1], expected)
    ((name, images),) = pictures.by_class(model, drawing())
    assert (name, len(images)) == ("", pictures.COLUMNS)


def test_many_classes_are_shown_in_part(tmp_path):
    many = maskdm.load(saved(tmp_path, classes={f"c{n}": 1 for n in range(50)}), device="cpu")
    names = [name for name, _ in pictures.by_class(many, drawing(nfe=2))]
    assert len(names) == pictures.MOST_CLASSES
    assert (names[0], names[-1]) == ("c0", "c49")
