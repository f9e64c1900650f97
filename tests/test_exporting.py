"""A model for diffusers: the same images where maskdm is not installed; a card that says it all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

import maskdm
from maskdm import cli
from maskdm.backbones.model_folder import TrainedLeg
from maskdm.backbones.registry import BACKBONES
from maskdm.exchange import exporting
from maskdm.exchange.bundle import Bundle, Module
from maskdm.exchange.exporting import export_to_diffusers
from maskdm.runtime.errors import UserError
from tests.support.commands import given, recorded
from tests.support.models import CLASSES, arrays, saved
from tests.support.training import DIFFUSION, MODEL

# Of a process that knows diffusers and not maskdm: draws from folders, writes what it drew.
ELSEWHERE = """
import sys, json
sys.modules["maskdm"] = sys.modules["pydantic"] = None  # importing them fails
import numpy as np
import torch
from diffusers import DiffusionPipeline
drawn = {}
for name, settings in json.loads(sys.argv[2]).items():
    pipeline = DiffusionPipeline.from_pretrained(sys.argv[1] + "/" + name, trust_remote_code=True)
    noise = settings.pop("latents", None)
    latents = None if noise is None else torch.tensor(noise)
    drawn[name] = pipeline(**settings, latents=latents, output_type="np").images
    pil = pipeline(num_images=1).images[0]
    assert pil.size == (16, 16), pil.size
np.savez(sys.argv[1] + "/drawn.npz", **drawn)
"""
FROM = ["from"], ["import"]
LEG = TrainedLeg(
    phase="pretrain",
    data="0123456789abcdef",
    mask="block",
    mask_rate=0.75,
    visible=4,
    batch_size=32,
    steps=5300,
    images=169600,
    full_images=0,
    flops=1234567890,
)


def elsewhere(folder: Path, settings: dict[str, dict[str, object]]) -> dict[str, np.ndarray]:
    """Return what a process without maskdm draws from the exported folders in ``folder``."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(folder), json.dumps(settings)],
        cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "might require" not in ended.stderr
    with np.load(folder / "drawn.npz") as drawn:
        return dict(drawn)


@pytest.mark.slow
def test_diffusers_draws_the_same_images_without_maskdm(tmp_path: Path) -> None:
    models = tmp_path / "models"
    saved(models / "plain", model=MODEL.model_copy(update={"refine": 4}).model_dump())
    saved(models / "dit", model=MODEL.model_copy(update={"backbone": "dit"}).model_dump())
    saved(models / "vit", model=MODEL.model_copy(update={"backbone": "vit"}).model_dump())
    saved(models / "classes", classes=CLASSES, channels=1)
    saved(models / "guide", classes=CLASSES, channels=1, seed=5)
    for name in ("plain", "dit", "vit"):
        export_to_diffusers(models / name, tmp_path / name)
    export_to_diffusers(models / "classes", tmp_path / "classes", models / "guide")
    export_to_diffusers(models / "plain", tmp_path / "noise", weights="raw")
    plain, raw = (maskdm.load(models / "plain", weights) for weights in ("averaged", "raw"))
    noise = np.random.default_rng(0).standard_normal((2, *plain.shape)).astype(np.float32)
    guided = {"guidance_scale": 2.0, "guide_class": "hidden"}
    drawn = elsewhere(
        tmp_path,
        {
            "plain": {"num_images": 3, "seed": 4},
            "dit": {"num_images": 2, "solver": "ddpm", "num_inference_steps": 5},
            "vit": {"num_images": 2, "solver": "unipc"},
            "classes": {"num_images": 4, "seed": 1, **guided},
            "noise": {"num_images": 2, "latents": noise.tolist()},
        },
    )
    import torch

    classes = maskdm.load(models / "classes")
    expected = {
        "plain": arrays(plain.sample(3, 4)),
        "dit": arrays(maskdm.load(models / "dit").sample(2, solver="ddpm", nfe=5)),
        "vit": arrays(maskdm.load(models / "vit").sample(2, solver="unipc")),
        "classes": arrays(classes.sample(4, 1, guide=models / "guide", **guided))[..., None],
        "noise": raw.draw(raw.settings(2), range(2), start=torch.from_numpy(noise)),
    }
    for name, images in expected.items():
        assert images.std() > 1
        difference = np.abs(drawn[name].astype(int) - images)
        assert difference.max() <= 1, name  # a rounding at most, and of few pixels
        assert (difference > 0).mean() < 0.01, name
    assert not np.array_equal(drawn["plain"][0], drawn["noise"][0])


def test_nothing_is_pickled_and_no_code_needs_maskdm(tmp_path: Path) -> None:
    export_to_diffusers(saved(tmp_path / "model"), tmp_path / "out")
    names = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert names == [
        "README.md",
        "denoiser/config.json",
        "denoiser/diffusion_pytorch_model.safetensors",
        "denoiser/maskdm_uvit.py",
        "model_index.json",
        "pipeline.py",
    ]
    for code in (tmp_path / "out").rglob("*.py"):
        lines = [line.split() for line in code.read_text().splitlines()]
        imported = {words[1].partition(".")[0] for words in lines if words[:1] in FROM}
        assert not imported & {"maskdm", "pydantic", "ruamel"}


def test_the_card_says_how_the_model_was_trained_and_measured(tmp_path: Path) -> None:
    saved(tmp_path / "model", training=[LEG.model_dump()])
    cost = {"steps": LEG.steps, "images": LEG.images, "flops": LEG.flops}
    metrics = {"fd_efficientnet_lite0": 71.9, "manifold": {"recall": 0.12}, "training": cost}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | {"network_passes": 34}))
    how = {"samples": {"count": 1500, "solver": "ddpm", "nfe": 25}}
    (tmp_path / "measured.json").write_text(json.dumps(how))
    export_to_diffusers(
        tmp_path / "model",
        tmp_path / "out",
        data="OpenMoji 17: emoji",
        licence="cc-by-sa-4.0",
        metrics=tmp_path / "metrics.json",
    )
    _, front, text = (tmp_path / "out/README.md").read_text().split("---\n", 2)
    header = YAML(typ="safe").load(front)
    assert header["license"] == "cc-by-sa-4.0"
    assert header["library_name"] == "diffusers"
    assert "OpenMoji 17: emoji" in text
    assert "| pretrain | 5300 | 32 | block, 75% hidden | 1.23e+09 | 0123456789ab |" in text
    assert "| fd_efficientnet_lite0 | 71.9 |" in text
    assert "| recall | 0.12 |" in text
    assert "Drawn with count 1500, solver ddpm, nfe 25" in text
    assert "network_passes" not in text


@pytest.mark.parametrize("where", ["beside models", "current folder", "of other images"])
def test_the_card_has_the_images_of_the_repository_if_the_model_learned_them(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(tmp_path / "models/own", training=[LEG.model_dump()])
    root = tmp_path / "other" if where == "current folder" else tmp_path
    (root / "data/prepared").mkdir(parents=True)
    about = {"source": "OpenMoji 17.0.0", "licence": "CC BY-SA 4.0", "hash": LEG.data}
    known = where != "of other images"
    text = json.dumps(about if known else about | {"hash": "another"})
    (root / "data/prepared/dataset.json").write_text(text)
    if where == "current folder":
        monkeypatch.chdir(root)
    export_to_diffusers(model, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert ("Trained on: OpenMoji 17.0.0." in card) == known
    assert ("Licence: CC BY-SA 4.0, that of the images." in card) == known
    assert "license" not in card  # that of the model is not known
    export_to_diffusers(model, tmp_path / "told", data="emoji", licence="mit")
    card = (tmp_path / "told/README.md").read_text()
    assert "Trained on: emoji.\n\nLicence: mit." in card


def test_measures_of_another_model_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model", training=[LEG.model_dump()])
    other = {"steps": 1, "images": 32, "flops": 99}
    for of in (other, None):
        (tmp_path / "metrics.json").write_text(json.dumps({"fd": 1.0, "training": of}))
        with pytest.raises(UserError, match="is of another model: what it says of training is"):
            export_to_diffusers(
                tmp_path / "model", tmp_path / "out", metrics=tmp_path / "metrics.json"
            )
    assert not (tmp_path / "out").exists()


def test_what_the_card_is_not_told_it_says_so(tmp_path: Path) -> None:
    export_to_diffusers(saved(tmp_path / "model"), tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "Trained on: not said when the model was exported" in text
    assert "Licence: not said" in text
    assert "license" not in text
    assert "Not measured" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"folder": "model"}, "is not empty: name a folder"),
        ({"model": "none"}, "is no model folder"),
        ({"guide": "other"}, "The guide does not fit the model: its path"),
        ({"weights": "best"}, "There are no weights 'best'"),
        ({"metrics": "model/model.safetensors"}, "is no file of metrics"),
        ({"metrics": "none.json"}, "is no file of metrics"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_no_folder(change, sentence, tmp_path):
    saved(tmp_path / "model")
    other = "vp-linear" if DIFFUSION.path == "flow" else "flow"
    saved(tmp_path / "other", diffusion=DIFFUSION.model_dump() | {"path": other})
    given = {"model": "model", "folder": "out"} | change
    words = {k: v if k == "weights" else tmp_path / v for k, v in given.items()}
    with pytest.raises(UserError, match=sentence):
        export_to_diffusers(**words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_every_backbone_is_bundled_as_it_is(backbone):
    network = BACKBONES[backbone]
    bundle = Bundle()
    bundle.add(network.__module__, network.__name__)
    space: dict[str, object] = {"__name__": "elsewhere"}
    exec(bundle.text("A network."), space)
    built, real = (
        kind(size=8, channels=3, patch=2, dim=16, depth=3, heads=2)
        for kind in (space[network.__name__], network)
    )
    assert type(built) is not network
    assert {n: p.shape for n, p in built.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }


def test_a_file_is_read_once_however_many_of_its_names_are_used(monkeypatch):
    read = []
    monkeypatch.setattr(
        "maskdm.exchange.bundle.Module", lambda name: read.append(name) or Module(name)
    )
    network = BACKBONES["uvit"]
    Bundle().add(network.__module__, network.__name__)
    assert len(read) > 1
    assert len(read) == len(set(read))


def test_a_network_that_has_no_source_here_is_refused(tmp_path, own_is_registered):
    saved(tmp_path / "model", model=MODEL.model_copy(update={"backbone": "own"}).model_dump())
    with pytest.raises(UserError, match="'own' is no class in a module of maskdm"):
        export_to_diffusers(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_exports(tmp_path):
    saved(tmp_path / "model")
    for target, code, said in (("diffusers", 0, "is a pipeline of diffusers"), ("onnx", 1, "--to")):
        words = ["export", tmp_path / "model", "--to", target, tmp_path / "out"]
        ended = subprocess.run(
            [sys.executable, "-m", "maskdm.cli", *words], capture_output=True, text=True
        )
        assert ended.returncode == code, ended.stderr
        assert said in ended.stdout + ended.stderr
    assert (tmp_path / "out/model_index.json").exists()


def test_every_option_of_the_command_reaches_the_export(tmp_path, monkeypatch):
    made = {}
    monkeypatch.setattr(exporting, "export_to_diffusers", recorded(export_to_diffusers, made))
    options = {"guide": tmp_path / "guide", "weights": "raw", "data": "drawings"}
    options |= {"licence": "cc0-1.0", "metrics": tmp_path / "metrics.json"}
    words = ["export", "model", "out", *given(options)]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    assert made == {"model": Path("model"), "folder": Path("out"), **options}
    made.clear()
    assert CliRunner().invoke(cli.app, ["export", "model", "out"]).exit_code == 0
    assert made["weights"] == "averaged"
    assert {made[name] for name in options if name != "weights"} == {None}
