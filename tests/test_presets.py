"""The paper's presets: networks of the right size, and a step of each on files of the true format.

The step is made by the stages themselves, at the preset's image size, path, mask and precision, on
one image; the network is narrower, so that a laptop does it in seconds.
"""

import json

import pytest
import torch
from tests.support.formats import FILES
from tests.support.graph import ROOT
from ruamel.yaml import YAML

from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import MaskParams
from maskdm.runtime.params import read_section
from maskdm.training.phases import PretrainParams, pretraining_schedule
from stages import check, finetune, prepare, pretrain, sample

PARAMETERS = {  # paper.md, "Backbone: U-ViT"
    "celeba64": 44_292_144,
    "celebahq256": 102_417_456,
    "church256": 46_258_224,
    "vggface2": 46_258_224,
    "transfer10": 46_258_224,
    "transfer1": 46_258_224,
    "cifar10": 44_255_244,
    "imagenet64-m": 130_940_976,
    "imagenet64-l": 286_828_592,
}
each_preset = pytest.mark.parametrize("name", PARAMETERS)


@each_preset
def test_its_network_has_exactly_the_parameters_of_the_table(name):
    preset = ROOT / f"presets/{name}.yaml"
    model, data = (
        read_section(preset, *section) for section in (("model", ModelParams), ("data", DataParams))
    )
    with torch.device("meta"):
        network = build_backbone(model, data.size, 3, 0, classes=1000 if data.classes else 0)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


def test_every_preset_of_the_paper_is_here():
    others = {"laptop", "long", "tiny", "fashion-mnist", "emoji-groups"}
    assert {path.stem for path in (ROOT / "presets").glob("*.yaml")} - others == set(PARAMETERS)


def test_the_progression_of_celebahq_is_the_papers():
    preset = ROOT / "presets/celebahq256.yaml"
    pretraining = read_section(preset, "pretrain", PretrainParams)
    schedule = pretraining_schedule(pretraining, read_section(preset, "mask", MaskParams), 64)
    assert [(leg.mask.asked, leg.batch_size, leg.warmup, leg.lr) for leg in schedule.legs] == [
        (0.9, 256, 0, 2e-4),
        (0.5, 64, 5000, 2e-4),
    ]
    tokens = [leg.mask.visible * leg.batch_size for leg in schedule.legs] + [64**2 * 32]
    assert max(tokens) / min(tokens) < 1.25


@each_preset
def test_it_makes_a_step_on_small_files_of_its_format(name, tmp_path, monkeypatch, capsys):
    files = tmp_path / "files"
    files.mkdir()
    FILES[name](files)
    params = YAML().load(ROOT / f"presets/{name}.yaml")
    params["data"]["path"] = str(files)
    params["data"]["heldout"] = 0.5
    params["data"]["limit"] = None
    params["model"].update(dim=16, depth=3, heads=2)
    for phase in ("pretrain", "finetune"):
        steps = min(1, params[phase]["steps"])
        small = {"batch_size": 1, "steps": steps, "warmup": 0, "log_every": 1, "validate_every": 1}
        params[phase].update(small)
    if params["pretrain"]["stages"]:
        for stage in params["pretrain"]["stages"]:
            stage.update(steps=1, batch_size=1, warmup=0)
        params["pretrain"]["steps"] = len(params["pretrain"]["stages"])
    params["sample"].update(count=1, nfe=3)
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKDM_DEVICE", "cpu")
    if params["finetune"]["init"] == "models/vggface2":
        params["finetune"]["init"] = "models/pretrain"  # where the transfer's model comes from
        with (tmp_path / "params.yaml").open("w") as file:
            YAML().dump(params, file)

    for stage in (check, prepare, pretrain, finetune, sample):
        stage.main()
    config = json.loads((tmp_path / "models/finetune/config.json").read_text())
    made = [(leg["phase"], leg["steps"]) for leg in config["training"]]
    stages = len(params["pretrain"]["stages"] or [1])
    expected = [("pretrain", 1)] * (stages if params["pretrain"]["steps"] else 0)
    assert made == expected + [("finetune", 1)] * params["finetune"]["steps"]
    assert bool(config["classes"]) == params["data"]["classes"]
