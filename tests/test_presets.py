"""Presets: overlays that merge to whole params; those of the paper, and a step of each.

The step is made by the stages themselves on files of the true format, at the preset's image size,
path, mask and precision, on one image; the network is narrower, so that a laptop does it in
seconds.
"""

import json
import re
import runpy
import sys
from io import StringIO

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from benchmarks.presets import DEFAULTS, PRESETS, names, read_preset
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import MaskParams
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json
from maskdm.runtime.params import merge, read_params, read_section
from maskdm.training.phases import PretrainParams, pretraining_schedule
from stages import check, finetune, prepare, pretrain, sample
from tests.support.formats import FILES
from tests.support.graph import ROOT
from tools.preset import main, whole_text

PARAMETERS = {  # of the networks in the public code of the paper and of U-ViT
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
SECTIONS = ["seed", "data", "model", "diffusion", "mask", "pretrain", "finetune", "sample", "fid"]
each_name = pytest.mark.parametrize("name", names())
each_preset = pytest.mark.parametrize("name", PARAMETERS)


def loaded(text):
    return YAML(typ="safe", pure=True).load(text)


def leaves(section, prefix=""):
    """Return the values of nested sections by dotted names."""
    found = {}
    for key, value in section.items():
        inner = leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
        found |= inner or {f"{prefix}{key}": value}
    return found


# Overlays


trees = st.recursive(
    st.integers() | st.none() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
sections = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


@given(sections, sections, sections)
def test_merging_changes_nothing_that_is_given_and_takes_overlays_in_turn(base, one, other):
    before = json.dumps([base, one, other])
    merged = merge(base, one, other)
    assert json.dumps([base, one, other]) == before
    assert merged == merge(merge(base, one), other)
    assert merge(base) == base
    assert merge(base, base) == base


def test_sections_are_merged_key_by_key_and_lists_are_replaced():
    base = {"a": {"x": 1, "y": {"p": 1, "q": [1, 2]}}, "b": 0}
    overlay = {"a": {"y": {"q": [3]}}, "b": {"z": 1}}
    assert merge(base, overlay) == {"a": {"x": 1, "y": {"p": 1, "q": [3]}}, "b": {"z": 1}}


def test_the_defaults_are_the_laptop_preset():
    assert (PRESETS / "laptop.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    assert DEFAULTS == "laptop"
    assert read_preset("laptop") == read_params(ROOT / "params.yaml")


@pytest.mark.parametrize("name", sorted(set(names()) - {DEFAULTS}))
def test_an_overlay_holds_only_what_differs_from_the_defaults(name):
    defaults, overlay = leaves(read_preset(DEFAULTS)), leaves(read_params(PRESETS / f"{name}.yaml"))
    assert overlay.keys() <= defaults.keys()
    assert [key for key, value in overlay.items() if value == defaults[key]] == []
    assert leaves(read_preset(name)) == defaults | overlay


@each_name
def test_a_preset_is_written_whole_with_a_comment_a_key_and_its_own_header(name):
    text, overlay = whole_text(name), (PRESETS / f"{name}.yaml").read_text()
    assert loaded(text) == read_preset(name)
    assert list(loaded(text)) == SECTIONS
    keys = [line for line in text.splitlines() if re.match(r" *\w+:", line)]
    assert [line for line in keys if "#" not in line and not line.endswith(":")] == []
    assert text.startswith(overlay.partition("\n\n")[0])
    assert "docs/running.md" in text.partition("\n\n")[0]
    # The overlay's own comments, and else those of the defaults.
    for comment in re.findall(r"\S +(# .*)", overlay):
        assert comment in text
    assert text.count("peak learning rate (AdamW)") == 2
    # Sections stand apart, as in the defaults.
    assert len(text.split("\n\n")) == len((PRESETS / "laptop.yaml").read_text().split("\n\n"))


@each_name
def test_a_written_preset_survives_the_round_trip_that_dvc_makes_of_it(name):
    yaml, text = YAML(), StringIO()
    yaml.dump(yaml.load(whole_text(name)), text)
    assert loaded(text.getvalue()) == read_preset(name)


@each_name
def test_a_preset_is_accepted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(name)
    params = read_params("params.yaml")
    start = tmp_path / params["finetune"]["init"]
    if start.name == "vggface2":  # the model of another preset's run
        other = read_preset("vggface2")
        about = {
            "size": other["data"]["resolution"],
            "channels": other["data"]["channels"],
            "classes": None,
            "seed": other["seed"],
            "model": other["model"],
            "diffusion": other["diffusion"],
            "training": [],
        }
        write_json(start / "config.json", about)
    check.check(tmp_path / "params.yaml")


def test_the_command_writes_params_and_refuses_an_unknown_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tools.preset")
    monkeypatch.setattr(sys, "argv", ["tools.preset", "tiny"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("tools.preset", run_name="__main__")
    assert end.value.code == 0
    written = (tmp_path / "params.yaml").read_text()
    assert written == whole_text("tiny")
    assert "  dim: 32                     # width\n" in written
    monkeypatch.setattr(sys, "argv", ["tools.preset", "tinny"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("tools.preset", run_name="__main__")
    assert end.value.code == 1
    said = capsys.readouterr().err.strip()
    assert said == f"error: There is no preset 'tinny'. There are: {', '.join(names())}."
    assert (tmp_path / "params.yaml").read_text() == written
    with pytest.raises(UserError, match=r"no preset '\.\./params'"):
        read_preset("../params")


# The paper's


@each_preset
def test_its_network_has_exactly_the_parameters_of_the_table(name):
    preset = read_preset(name)
    model, data = (
        read_section(preset, *section) for section in (("model", ModelParams), ("data", DataParams))
    )
    with torch.device("meta"):
        network = build_backbone(model, data.resolution, 3, 0, classes=1000 if data.classes else 0)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


def test_every_preset_of_the_paper_is_here():
    others = {"laptop", "long", "hero", "tiny", "fashion-mnist", "paper64"}
    assert set(names()) - others == set(PARAMETERS)


def test_the_progression_of_celebahq_is_the_papers():
    preset = read_preset("celebahq256")
    pretraining = read_section(preset, "pretrain", PretrainParams)
    schedule = pretraining_schedule(pretraining, read_section(preset, "mask", MaskParams), 64)
    assert [(leg.mask.asked, leg.batch_size, leg.warmup, leg.lr) for leg in schedule.legs] == [
        (0.9, 256, 0, 2e-4),
        (0.5, 64, 5000, 2e-4),
    ]
    tokens = [leg.mask.visible * leg.batch_size for leg in schedule.legs] + [64**2 * 32]
    assert max(tokens) / min(tokens) < 1.25


@pytest.mark.slow
@each_preset
def test_it_makes_a_step_on_small_files_of_its_format(name, tmp_path, monkeypatch, capsys):
    files = tmp_path / "files"
    files.mkdir()
    FILES[name](files)
    params = read_preset(name)
    params["data"]["path"] = str(files)
    params["data"]["heldout"] = 0.5
    params["data"]["limit"] = None
    params["model"].update(dim=16, depth=3, heads=2)
    for phase in ("pretrain", "finetune"):
        steps = min(1, params[phase]["steps"])
        small = {"batch_size": 1, "steps": steps, "warmup": 0, "log_every": 1, "validate_every": 1}
        # Previews of 256 pixels would take most of the time; they are tested with smaller ones.
        params[phase].update(small, preview_every=0)
    if params["pretrain"]["legs"]:
        for leg in params["pretrain"]["legs"]:
            leg.update(steps=1, batch_size=1, warmup=0)
        params["pretrain"]["steps"] = len(params["pretrain"]["legs"])
    params["sample"].update(count=1, nfe=3)
    params["fid"]["features"]["extractor"] = "efficientnet-lite0"  # the others are downloaded
    if params["finetune"]["init"] == "models/vggface2":
        params["finetune"]["init"] = "models/pretrain"  # where the transfer's model comes from
    write_json(tmp_path / "params.yaml", params)  # JSON is YAML too
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKDM_DEVICE", "cpu")

    for stage in (check, prepare, pretrain, finetune, sample):
        stage.main()
    config = json.loads((tmp_path / "models/finetune/config.json").read_text())
    made = [(leg["phase"], leg["steps"]) for leg in config["training"]]
    legs = len(params["pretrain"]["legs"] or [1])
    expected = [("pretrain", 1)] * (legs if params["pretrain"]["steps"] else 0)
    assert made == expected + [("finetune", 1)] * params["finetune"]["steps"]
    assert bool(config["classes"]) == name.startswith("imagenet")
