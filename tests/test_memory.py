"""What cannot fit into memory is refused before anything is computed; what can, is not."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.presets import names, read_preset
from maskdm.backbones.registry import backbone_without_weights
from maskdm.diffusion.masking import MaskParams, make_mask, nothing_masked
from maskdm.runtime.errors import UserError
from maskdm.training import memory
from maskdm.training.batches import Batches
from maskdm.training.memory import Memory, batch_bytes, check_memory, least_bytes
from maskdm.training.schedule import Schedule
from stages import check as stage
from tests.support.training import GRID, MODEL, leg, masked, phase


def test_the_least_is_less_than_what_training_takes_and_more_than_its_weights():
    network = backbone_without_weights(MODEL, 32, 3)
    schedule = Schedule((leg(masked(0.75), phase(steps=1)),), 1)
    weights = sum(parameter.numel() for parameter in network.parameters())
    least = least_bytes(network, schedule, MODEL.dim, MODEL.depth)
    assert 20 * weights < least < 40 * weights + 2**25


def test_blocks_that_see_fewer_patches_need_less():
    network, params = backbone_without_weights(MODEL, 32, 3), phase(steps=1)

    def least(mask, **changes):
        return least_bytes(network, Schedule((leg(mask, params),), 1, **changes), 32, 9)

    middle = make_mask(MaskParams(strategy="patch", rate=0.75, block_size=1, scope="middle"), GRID)
    weights = least(masked(0.75)) - 32 * 32 * 9 * 16
    assert least(nothing_masked(GRID)) == weights + 32 * 32 * 9 * 64
    assert least(middle) == weights + 32 * 32 * (2 * 64 + 7 * 16)
    assert least(masked(0.75), full_share=0.1) == least(nothing_masked(GRID))


def test_a_batch_holds_its_visible_patches_and_their_noise(emoji):
    params = phase(steps=1)
    for mask in (masked(0.75), nothing_masked(GRID)):
        schedule = Schedule((leg(mask, params),), 1)
        batch = Batches(emoji, schedule, 4, 0.0, 0, "test").at(0)
        held = batch.tokens.numel() * batch.tokens.itemsize + batch.noise.nbytes
        assert batch_bytes(schedule, 48) == held
    mixture = Schedule((leg(masked(0.75), params),), 1, full_share=0.1)
    assert batch_bytes(mixture, 48) == held


def test_what_does_not_fit_is_refused_with_both_sizes_and_what_to_do():
    with pytest.raises(UserError, match=r"pretrain needs at least 20\.0 GiB .* are 10\.0: rest\."):
        check_memory("pretrain", 20 * 2**30, 10 * 2**30, "rest")
    check_memory("pretrain", 20 * 2**30, None, "rest")
    check_memory("pretrain", 10 * 2**30, 20 * 2**30, "rest")


@pytest.mark.parametrize(
    ("variables", "device", "host"),
    [
        ({}, 80, 20),
        ({"MASKDM_DEVICE": "cuda"}, 80, 20),
        ({"MASKDM_DEVICE": "cuda:1"}, 40, 20),
        ({"MASKDM_DEVICE": "cuda:7"}, 20, 20),
        ({"MASKDM_DEVICE": "cpu"}, 20, 20),
        ({"MASKDM_SHARD": "1"}, None, 20),
        ({"MASKDM_LAUNCHER": "srun"}, None, None),
    ],
)
def test_memory_is_that_of_the_device_asked_for(monkeypatch, variables, device, host):
    for name in ("DEVICE", "SHARD", "LAUNCHER"):
        monkeypatch.delenv(f"MASKDM_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cards = [SimpleNamespace(total_memory=size) for size in (80, 40)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    monkeypatch.setattr(memory, "_host_bytes", lambda: 20)
    assert Memory.of_this_machine() == Memory(device, host)


@pytest.mark.parametrize(
    ("section", "changes", "sentence"),
    [
        (
            "model",
            {"dim": 16384, "depth": 255, "heads": 128},
            r"pretrain needs .*: lower model\.dim",
        ),
        ("finetune", {"batch_size": 10**6}, r"A batch of finetune .*: lower finetune\.batch_size"),
        ("sample", {"count": 10**7}, r"sample\.count needs .*: lower it from 10000000"),
    ],
)
def test_what_no_machine_holds_is_refused_by_the_check(
    tmp_path, monkeypatch, section, changes, sentence
):
    monkeypatch.setattr(memory, "_host_bytes", lambda: 2**33)
    params = read_preset("laptop")
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    stage.check(tmp_path / "params.yaml")
    params[section] |= changes
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    with pytest.raises(UserError, match=sentence):
        stage.check(tmp_path / "params.yaml")


def test_no_preset_is_refused_on_a_machine_of_eight_gibibytes():
    assert Memory.of_this_machine().host
    for name in names():
        params = read_preset(name)
        model = stage.read_section(params, "model", stage.ModelParams)
        data = stage.read_section(params, "data", stage.DataParams)
        network = backbone_without_weights(model, data.resolution, data.channels, 1)
        finetune = stage.read_section(params, "finetune", stage.FinetuneParams)
        schedule = stage.finetuning_schedule(finetune, data.resolution // model.patch)
        least = least_bytes(network, schedule, model.dim, model.depth)
        check_memory(name, least, 2**33, "")
