"""The device is chosen from what is there, and from the environment."""

import pytest
import torch

from maskdm.runtime import devices
from maskdm.runtime.devices import choose_device
from maskdm.runtime.distributed import Worker
from maskdm.runtime.errors import UserError


@pytest.mark.parametrize(("there", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_is_used_without_being_asked_for(monkeypatch, there, chosen):
    monkeypatch.delenv("MASKDM_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device().type == chosen


def test_the_environment_overrides_the_choice(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("MASKDM_DEVICE", "cpu")
    assert choose_device().type == "cpu"


@pytest.mark.parametrize(("rank", "number"), [(0, 0), (1, 1), (2, 0), (3, 1)])
def test_processes_take_the_visible_gpus_by_turns(monkeypatch, rank, number):
    monkeypatch.delenv("MASKDM_DEVICE", raising=False)
    taken = []
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "set_device": taken.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(devices, "worker", lambda: Worker(rank, 4, rank))
    assert choose_device() == torch.device("cuda", number)
    assert taken == [torch.device("cuda", number)]


WRONG = ["gpu", "cuda:77", "cuda:1234", "tpu!", "meta", "cpu:0", "CPU", "vulkan", "privateuseone"]


@pytest.mark.parametrize("wanted", WRONG)
def test_a_device_that_is_not_there_or_is_none_is_refused_with_what_is_allowed(monkeypatch, wanted):
    with pytest.raises(UserError, match=rf"The device is '{wanted}'.*'cpu', 'cuda'"):
        choose_device(wanted)
    monkeypatch.setenv("MASKDM_DEVICE", wanted)
    with pytest.raises(UserError, match=rf"MASKDM_DEVICE is '{wanted}'.*'cpu', 'cuda'"):
        choose_device()
