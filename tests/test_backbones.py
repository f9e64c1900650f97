"""What every backbone promises: a function of a set of tokens with positions."""

import pytest
import torch
from torch.nn import functional

from maskdm.backbones.registry import BACKBONES, ModelParams, build_backbone
from maskdm.backbones.uvit import Attention, UViT, embed_places, embed_time
from maskdm.errors import UserError

TOKENS, VALUES = 16, 48


def small(backbone="uvit", **changes):
    values = {"backbone": backbone, "patch": 4, "dim": 32, "depth": 3, "heads": 2, "init": "paper"}
    return build_backbone(ModelParams(**(values | changes)), size=16, channels=3, seed=0)


@pytest.fixture(params=sorted(BACKBONES))
def backbone(request):
    network = small(request.param)
    with torch.no_grad():  # away from the near-linear start, so that attention and places matter
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return network.eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(3, TOKENS, VALUES, generator=generator)
    positions = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(3)])
    return tokens, positions, torch.tensor([0.1, 0.5, 0.9])


def test_it_is_permutation_equivariant(backbone, inputs):
    tokens, positions, time = inputs
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
    output = backbone(tokens, positions, time)
    shuffled = backbone(tokens[:, order], positions[:, order], time)
    torch.testing.assert_close(shuffled, output[:, order], atol=1e-5, rtol=1e-5)


def test_places_and_times_and_neighbours_matter(backbone, inputs):
    tokens, positions, time = inputs
    output = backbone(tokens, positions, time)
    assert not torch.allclose(output, backbone(tokens, positions.flip(1), time), atol=1e-3)
    assert not torch.allclose(output, backbone(tokens, positions, 1 - time), atol=1e-3)
    changed = tokens.clone()
    changed[:, 0] += 1
    assert not torch.allclose(output[:, 1:], backbone(changed, positions, time)[:, 1:], atol=1e-3)


def test_a_subset_equals_the_whole_with_the_hidden_tokens_masked_out_of_attention(
    inputs, monkeypatch
):
    network = small().eval()
    tokens, positions, time = inputs
    visible = torch.tensor([0, 3, 4, 9, 15])
    subset = network(tokens[:, visible], positions[:, visible], time)

    seen = torch.cat([torch.tensor([0]), visible + UViT.EXTRAS])  # the time token is never masked
    allowed = torch.zeros(TOKENS + UViT.EXTRAS, dtype=torch.bool)
    allowed[seen] = True
    plain = functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional,
        "scaled_dot_product_attention",
        lambda q, k, v: plain(q, k, v, attn_mask=allowed.expand(q.shape[-2], -1)),
    )
    whole = network(tokens, positions, time)[:, visible]
    torch.testing.assert_close(subset, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("visible", [1, 5, TOKENS])
def test_any_number_of_tokens_goes_in_and_comes_out(backbone, inputs, visible):
    tokens, positions, time = inputs
    output = backbone(tokens[:, :visible], positions[:, :visible], time)
    assert output.shape == (3, visible, VALUES)


def test_every_parameter_gets_a_gradient_in_a_masked_step(backbone, inputs):
    tokens, positions, time = inputs
    backbone(tokens[:, :5], positions[:, :5], time).square().mean().backward()
    silent = [name for name, p in backbone.named_parameters() if p.grad is None]
    assert silent == []


def test_the_seed_decides_the_initial_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    first, after = small().state_dict(), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(first[name], tensor) for name, tensor in small().state_dict().items())


# paper.md, "Backbone: U-ViT"
@pytest.mark.parametrize(
    ("size", "patch", "dim", "heads", "parameters"),
    [
        (64, 4, 512, 8, 44_292_144),
        (256, 4, 512, 8, 46_258_224),
        (256, 4, 768, 12, 102_417_456),
        (32, 2, 512, 8, 44_255_244),
    ],
)
def test_parameter_counts_are_the_papers(size, patch, dim, heads, parameters):
    with torch.device("meta"):
        network = UViT(size=size, channels=3, patch=patch, dim=dim, depth=13, heads=heads)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_initialisation_is_truncated_normal_with_zero_biases():
    network = UViT(size=32, channels=3, patch=4, dim=192, depth=3, heads=3)
    weight = network.middle.mlp[0].weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not network.middle.mlp[0].bias.any()
    assert isinstance(network.middle.attention, Attention)
    assert network.middle.attention.qkv.bias is None


def test_a_spatial_start_makes_neighbours_alike_and_keeps_the_variance_of_activations():
    grid, dim = 8, 64
    places = embed_places(grid, dim)
    distance = torch.cdist(places, places)
    nearest = distance.fill_diagonal_(torch.inf).argsort(dim=1)[:, :2]
    steps = (nearest // grid - torch.arange(grid**2)[:, None] // grid).abs() + (
        nearest % grid - torch.arange(grid**2)[:, None] % grid
    ).abs()
    assert (steps == 1).all()
    network = UViT(size=32, channels=3, patch=4, dim=dim, depth=3, heads=2, init="spatial")
    torch.testing.assert_close(network.positions[1:], 0.5 * places)
    assert network.middle.mlp[2].weight.std().item() == pytest.approx((0.5 / 256) ** 0.5, rel=0.05)
    assert not network.middle.mlp[2].bias.any()
    assert network.positions.requires_grad


def test_the_time_embedding_tells_close_times_apart_and_is_cos_then_sin():
    time = torch.tensor([0.0, 0.5, 0.501])
    embedding = embed_time(time, 64)
    assert embedding.shape == (3, 64)
    torch.testing.assert_close(embedding[0], torch.cat([torch.ones(32), torch.zeros(32)]))
    torch.testing.assert_close(embedding[1, 0], torch.tensor(500.0).cos(), atol=1e-4, rtol=0)
    assert (embedding[1] - embedding[2]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patch": 5}, r"model.patch is 5.*data.size 16.*Allowed: 1, 2, 4, 8, 16"),
        ({"dim": 30}, r"model.dim is 30.*multiple of 4 for 2 heads.*fits: 32"),
        ({"depth": 4}, r"model.depth is 4.*odd number, 3 or 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_what_does(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        small(**changes)
