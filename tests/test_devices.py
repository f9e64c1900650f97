"""The device and other matters of the machine come from the environment."""

import pytest
import torch

from maskdm.runtime.devices import choose_device
from maskdm.runtime.environment import whole_number
from maskdm.runtime.errors import UserError


@pytest.mark.parametrize(("there", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_is_used_without_being_told(monkeypatch, there, chosen):
    monkeypatch.delenv("MASKDM_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device().type == chosen


def test_the_environment_overrides_the_choice(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("MASKDM_DEVICE", "cpu")
    assert choose_device().type == "cpu"


@pytest.mark.parametrize("wanted", ["gpu", "cuda:77", "tpu!"])
def test_a_device_that_is_not_there_is_refused_with_what_is_allowed(monkeypatch, wanted):
    monkeypatch.setenv("MASKDM_DEVICE", wanted)
    with pytest.raises(UserError, match=rf"MASKDM_DEVICE is '{wanted}'.*'cpu', 'cuda'"):
        choose_device()


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_a_micro_batch_must_be_a_positive_whole_number(monkeypatch, text):
    monkeypatch.setenv("MASKDM_MICRO_BATCH", text)
    with pytest.raises(UserError, match=rf"MASKDM_MICRO_BATCH is '{text}'.*whole number >= 1"):
        whole_number("MASKDM_MICRO_BATCH", 8)


def test_an_unset_or_empty_variable_is_the_default(monkeypatch):
    monkeypatch.delenv("MASKDM_MICRO_BATCH", raising=False)
    assert whole_number("MASKDM_MICRO_BATCH", 8) == 8
    monkeypatch.setenv("MASKDM_MICRO_BATCH", "3")
    assert whole_number("MASKDM_MICRO_BATCH", 8) == 3
