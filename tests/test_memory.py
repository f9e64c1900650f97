"""What cannot fit into memory is refused before anything is computed; what can, is not."""

import pytest

from benchmarks.presets import names, read_preset
from maskdm.backbones.registry import backbone_without_weights
from maskdm.runtime.errors import UserError
from maskdm.training.memory import check_memory, least_bytes, machine_bytes
from maskdm.training.schedule import Schedule
from stages import check as stage
from tests.support.training import MODEL, leg, masked, phase


def test_the_least_is_less_than_what_training_takes_and_more_than_its_weights():
    network = backbone_without_weights(MODEL, 32, 3)
    schedule = Schedule((leg(masked(0.75), phase(steps=1)),), 1)
    weights = sum(parameter.numel() for parameter in network.parameters())
    least = least_bytes(network, schedule, MODEL.dim, MODEL.depth)
    assert 20 * weights < least < 40 * weights + 2**25


def test_what_does_not_fit_is_refused_with_both_sizes():
    with pytest.raises(UserError, match=r"pretrain needs at least 20\.0 GiB .* there are 10\.0"):
        check_memory("pretrain", 20 * 2**30, 10 * 2**30, sharded=False)
    check_memory("pretrain", 20 * 2**30, 10 * 2**30, sharded=True)
    check_memory("pretrain", 20 * 2**30, None, sharded=False)
    check_memory("pretrain", 10 * 2**30, 20 * 2**30, sharded=False)


def test_a_network_that_no_machine_holds_is_refused_by_the_check(tmp_path, monkeypatch):
    params = read_preset("laptop")
    params["model"] |= {"dim": 16384, "depth": 255, "heads": 128}
    monkeypatch.setattr(stage, "read_params", lambda _: params)
    read = stage.read_section
    monkeypatch.setattr(stage, "read_section", lambda _, *given: read(params, *given))
    with pytest.raises(UserError, match=r"needs at least .* GiB of memory"):
        stage.check(tmp_path / "params.yaml")


def test_no_preset_is_refused_on_a_machine_of_eight_gibibytes():
    assert machine_bytes()
    for name in names():
        params = read_preset(name)
        model = stage.read_section(params, "model", stage.ModelParams)
        data = stage.read_section(params, "data", stage.DataParams)
        network = backbone_without_weights(model, data.resolution, data.channels, 1)
        finetune = stage.read_section(params, "finetune", stage.FinetuneParams)
        schedule = stage.finetuning_schedule(finetune, data.resolution // model.patch)
        least = least_bytes(network, schedule, model.dim, model.depth)
        check_memory(name, least, 2**33, sharded=False)
