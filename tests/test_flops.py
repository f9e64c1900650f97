"""The cost model against counted operations."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maskdm.backbones.uvit import UViT
from maskdm.training.flops import training_flops
from tests.support.backbones import ALL

SLOW = pytest.mark.slow


@pytest.mark.parametrize("visible", [256, pytest.param(128, marks=SLOW), 26, 4])
@pytest.mark.parametrize(
    ("dim", "depth", "heads"), [(128, 7, 4), pytest.param(512, 13, 8, marks=SLOW)]
)
@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("name", sorted(ALL))
def test_the_cost_model_equals_counted_flops_within_2_percent(
    name, classes, visible, dim, depth, heads
):
    with torch.device("meta"):
        network = ALL[name](64, 3, 4, dim, depth, heads, classes=classes)
        tokens, time = torch.randn(2, visible, 48), torch.rand(2)
        positions = torch.zeros(2, visible, dtype=torch.long)
    # math attention: the counter does not see the CPU's flash attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        output = network(tokens, positions, time)
        forward = counted.get_total_flops()
        output.sum().backward()
    assert network.forward_flops(visible) * 2 == pytest.approx(forward, rel=0.02)
    assert training_flops(network, visible, 2) == pytest.approx(counted.get_total_flops(), rel=0.02)
    assert output.shape == tokens.shape


# docs/method.md, "Network", written out: N = 256, D = 512, 13 blocks
@pytest.mark.parametrize(("visible", "saving"), [(128, 2.07), (64, 4.17), (26, 10.0)])
def test_savings_are_those_of_the_closed_form(visible, saving):
    with torch.device("meta"):
        network = UViT(size=64, channels=3, patch=4, dim=512, depth=13, heads=8)
    ratio = network.forward_flops(256) / network.forward_flops(visible)
    assert ratio == pytest.approx(saving, rel=0.02)
