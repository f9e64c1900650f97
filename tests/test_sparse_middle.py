"""A sparse middle: the blocks between the outer ones see some of the tokens, and none is lost."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maskdm.backbones.registry import BACKBONES
from maskdm.runtime.errors import UserError
from tests.support.backbones import CLASSES, TOKENS, VALUES, shaken, small
from tests.support.pretended import HostToDevice

BATCH = 3


@dataclass(frozen=True)
class Inputs:
    tokens: Tensor
    positions: Tensor
    time: Tensor
    middle: Tensor

    @property
    def hidden(self) -> Tensor:
        """Which tokens the middle does not see, ``(batch, tokens)``."""
        all_hidden = torch.ones(self.tokens.shape[:2], dtype=torch.bool)
        return all_hidden.scatter(1, self.middle, False)

    def say(self, network, **changes):
        given = {**vars(self), **changes}
        return network(given["tokens"], given["positions"], given["time"], middle=given["middle"])


def draw(visible=TOKENS, seen=5, seed=1):
    """Return noisy patches at random positions; the middle sees other ones of each image."""
    generator = torch.Generator().manual_seed(seed)

    def permutations(count):
        return torch.stack([torch.randperm(count, generator=generator) for _ in range(BATCH)])

    return Inputs(
        tokens=torch.randn(BATCH, visible, VALUES, generator=generator),
        positions=permutations(TOKENS)[:, :visible],
        time=torch.tensor([0.1, 0.5, 0.9]),
        middle=permutations(visible)[:, :seen].sort(dim=1).values,
    )


def ends(network):
    """Return the first and the last block."""
    if hasattr(network, "in_blocks"):
        return network.in_blocks[0], network.out_blocks[-1]
    return network.blocks[0], network.blocks[-1]


@pytest.fixture(params=sorted(BACKBONES))
def name(request):
    return request.param


@pytest.fixture
def network(name):
    return shaken(small(name, depth=5))


@pytest.mark.parametrize("classes", [0, CLASSES])
@pytest.mark.parametrize("depth", [3, 5])
def test_a_middle_that_sees_all_tokens_is_none(name, depth, classes):
    network, inputs = shaken(small(name, depth=depth, classes=classes)), draw(seen=TOKENS)
    torch.testing.assert_close(
        inputs.say(network), inputs.say(network, middle=None), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("classes", [0, CLASSES])
@pytest.mark.parametrize("depth", [3, 5, 7])
def test_it_equals_all_tokens_hidden_from_attention_there_and_as_before_afterwards(
    name, depth, classes, monkeypatch
):
    network, inputs = shaken(small(name, depth=depth, classes=classes)), draw()
    wanted = [inputs.tokens.requires_grad_(), *network.parameters()]
    sparse = inputs.say(network)

    extras = network.extras
    hidden = functional.pad(inputs.hidden, (extras, 0), value=False)  # time and class never are
    plain, before, inside = functional.scaled_dot_product_attention, [], False

    def hiding(q, k, v, *_, **__):
        return plain(q, k, v, attn_mask=~hidden[:, None, None] if inside else None)

    def enter(_, given, output):
        nonlocal inside
        inside = True
        before.append(output)

    def leave(_, given):
        nonlocal inside
        inside = False
        return torch.where(hidden[:, :, None], before[0], given[0]), *given[1:]

    first, last = ends(network)
    first.register_forward_hook(enter)
    last.register_forward_pre_hook(leave)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", hiding)
    dense = inputs.say(network, middle=None)
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(o.square().mean(), wanted) for o in (sparse, dense)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_a_hidden_token_reaches_others_through_the_outer_blocks_alone(network):
    """With the attention of the outer blocks shut it changes its own prediction and no other."""
    inputs = draw()
    hidden = inputs.hidden
    changed = inputs.tokens + hidden[:, :, None]

    def change():
        return (inputs.say(network, tokens=changed) - inputs.say(network)).abs().amax(dim=2)

    assert (change() > 1e-3).all()
    for block in ends(network):
        attention = block.attn if hasattr(block, "attn") else block.attention
        for parameter in attention.proj.parameters():
            torch.nn.init.zeros_(parameter)
    assert (change()[hidden] > 1e-3).all()
    assert not change()[~hidden].any()


def test_the_tokens_of_the_middle_are_those_chosen(network):
    inputs, other = draw(), draw(seed=2)
    assert not torch.equal(inputs.middle, other.middle)
    changed = (
        (inputs.say(network) - inputs.say(network, middle=other.middle)).abs().amax(dim=(1, 2))
    )
    assert (changed > 1e-3).all()


def test_it_is_permutation_equivariant(network):
    inputs = draw()
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
    moved = order.argsort()[inputs.middle].sort(dim=1).values
    shuffled = inputs.say(
        network,
        tokens=inputs.tokens[:, order],
        positions=inputs.positions[:, order],
        middle=moved,
    )
    torch.testing.assert_close(shuffled, inputs.say(network)[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("visible", "seen"), [(TOKENS, 1), (TOKENS, 15), (7, 3), (1, 1)])
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_a_prediction_for_every_token_comes_out(name, classes, visible, seen):
    inputs = draw(visible, seen)
    output = inputs.say(shaken(small(name, classes=classes)))
    assert output.shape == (BATCH, visible, VALUES)
    assert output.isfinite().all()


def test_every_parameter_gets_a_gradient(name):
    network, inputs = shaken(small(name, depth=5, classes=CLASSES)), draw()
    inputs.say(network).square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_works_in_mixed_precision(network):
    """The outer and the inner blocks of a U-ViT then answer in different precisions."""
    inputs = draw()
    exact = inputs.say(network)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = inputs.say(network)
    mixed.float().square().mean().backward()
    assert (mixed.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("depth", "classes", "visible", "seen"),
    [(7, 0, 256, 64), (7, 10, 26, 4), (3, 10, 256, 16)],
)
def test_the_cost_model_equals_counted_flops_within_2_percent(name, depth, classes, visible, seen):
    with torch.device("meta"):
        network = BACKBONES[name](64, 3, 4, 128, depth, 4, classes=classes)
        tokens, time = torch.randn(2, visible, 48), torch.rand(2)
        positions = torch.zeros(2, visible, dtype=torch.long)
        middle = torch.zeros(2, seen, dtype=torch.long)
    # math attention: the counter does not see the CPU's flash attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        output = network(tokens, positions, time, middle=middle)
        forward = counted.get_total_flops()
        output.sum().backward()
    flops = network.forward_flops(visible, seen)
    assert flops * 2 == pytest.approx(forward, rel=0.02)
    assert 3 * flops * 2 == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_a_middle_that_sees_all_tokens_costs_what_none_costs(name):
    network = small(name, depth=5, classes=CLASSES)
    assert network.forward_flops(TOKENS, TOKENS) == network.forward_flops(TOKENS)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_network_without_a_middle_refuses_one(name, depth):
    if name == "uvit" and depth == 2:
        pytest.skip("a U-ViT's depth is odd")
    network, inputs = small(name, depth=depth), draw()
    sentence = rf"model.depth is {depth}, .* no blocks between .* take a depth of 3 or more"
    with pytest.raises(UserError, match=sentence):
        inputs.say(network)
    with pytest.raises(UserError, match=sentence):
        network.forward_flops(TOKENS, 5)
    assert inputs.say(network, middle=None).shape == inputs.tokens.shape
    assert network.forward_flops(TOKENS) > 0


def test_a_cuda_graph_can_capture_it(name, monkeypatch):
    """It reads no value and copies nothing from the host, on a GPU that is only pretended."""
    monkeypatch.setattr(BACKBONES[name], "initialise", lambda *_: None)  # reads values
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda:0"):
            network = BACKBONES[name](16, 3, 4, 32, 5, 2, classes=CLASSES)
            tokens, time = torch.rand(BATCH, TOKENS, VALUES), torch.rand(BATCH)
            positions = torch.zeros(BATCH, TOKENS, dtype=torch.long)
            labels = torch.zeros(BATCH, dtype=torch.long)
            middle = torch.zeros(BATCH, 5, dtype=torch.long)
        with HostToDevice() as noted:
            output = network(tokens, positions, time, labels, middle)
    assert output.device.type == "cuda"
    assert noted.copies == []
