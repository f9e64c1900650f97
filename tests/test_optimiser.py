"""AdamW in one pass over memory is torch's AdamW, clipping and scaling included."""

import pytest
import torch

from maskdm.runtime.params import read_section
from maskdm.training import optimiser
from maskdm.training.optimiser import AdamW, LossScale, clipping
from maskdm.training.phases import FinetuneParams

PARAMS = read_section("presets/laptop.yaml", "finetune", FinetuneParams)
NO, YES = torch.tensor(False), torch.tensor(True)


@pytest.fixture(params=["in the kernel", "before it"])
def dividing(request, monkeypatch):
    """Where gradients are divided and steps skipped: as on CPUs and CUDA, or as elsewhere."""
    if request.param == "before it":
        monkeypatch.setattr(optimiser, "HEEDED", ())


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.GELU(), torch.nn.Linear(30, 7))


def backward(net, step, times=1.0):
    torch.manual_seed(step)
    (times * net(torch.randn(9, 40)).square().sum()).backward()


@pytest.mark.parametrize("clip", [None, 0.5, 1e9])
def test_steps_are_those_of_torch(clip, dividing):
    ours, theirs = network(), network()
    mine = AdamW(dict(ours.named_parameters()), PARAMS)
    other = torch.optim.AdamW(
        theirs.parameters(), betas=PARAMS.betas, weight_decay=PARAMS.weight_decay
    )
    for step in range(20):
        lr = 1e-2 / (step + 1)
        backward(ours, step, times=1024.0)
        norm = torch.nn.utils.get_total_norm(mine.gradients()) / 1024
        mine.step(lr, 1024 * clipping(norm, clip), NO)
        backward(theirs, step)
        before = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip or float("inf"))
        other.param_groups[0]["lr"] = lr
        other.step()
        other.zero_grad()
        torch.testing.assert_close(norm, before)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad is None
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_skipped_step_changes_nothing_but_lets_go_of_the_gradients(dividing):
    net = network()
    adamw = AdamW(dict(net.named_parameters()), PARAMS)
    backward(net, 0)
    adamw.step(1e-2, torch.tensor(1.0), NO)
    weights = [p.detach().clone() for p in net.parameters()]
    before = {name: tensor.clone() for name, tensor in adamw.tensors().items()}
    backward(net, 1, times=float("nan"))
    adamw.step(1e-2, torch.tensor(1.0), YES)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), weights, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in adamw.tensors().items())
    assert adamw.gradients() == []


def test_a_parameter_without_a_gradient_stays_as_it_is():
    net = network()
    adamw = AdamW(dict(net.named_parameters()), PARAMS)
    net[2].weight.requires_grad_(False)
    still = net[2].weight.clone()
    backward(net, 0)
    adamw.step(1e-2, torch.tensor(1.0), NO)
    assert torch.equal(net[2].weight, still)
    assert [adamw.steps[name].item() for name in ("0.weight", "2.weight")] == [1, 0]


def test_the_loss_scale_moves_as_torchs_does():
    ours, theirs = LossScale.for_precision("fp16", torch.device("cpu")), torch.amp.GradScaler("cpu")
    parameter = torch.nn.Parameter(torch.zeros(1))
    other = torch.optim.SGD([parameter], lr=0.0)
    for step in range(2100):
        overflows = step in (0, 5, 6)
        parameter.grad = torch.full((1,), float("inf") if overflows else 1.0)
        theirs.scale(torch.zeros(1))
        theirs.unscale_(other)
        theirs.step(other)
        theirs.update()
        ours.update(torch.tensor(overflows))
        assert ours.scale.item() == theirs.get_scale()
    assert ours.scale.item() == 2.0**14  # halved three times, doubled once
    assert LossScale.for_precision("bf16", torch.device("cpu")) is None
