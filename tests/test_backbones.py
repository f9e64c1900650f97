"""What every backbone promises: a function of a set of tokens with positions."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from maskdm.backbones.dit import DiT
from maskdm.backbones.layers import Attention, embed_positions, embed_time, resample_positions
from maskdm.backbones.uvit import UViT
from maskdm.runtime.errors import UserError
from tests.support.backbones import ALL, CLASSES, TOKENS, VALUES, shaken, small
from tests.support.graph import ROOT

pytestmark = pytest.mark.usefixtures("own_is_registered")


@pytest.fixture(params=sorted(ALL))
def name(request):
    return request.param


@pytest.fixture
def backbone(name):
    return shaken(small(name))


@pytest.fixture
def conditional(name):
    return shaken(small(name, classes=CLASSES))


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


def test_positions_and_times_and_neighbours_matter(backbone, inputs):
    tokens, positions, time = inputs
    output = backbone(tokens, positions, time)
    assert not torch.allclose(output, backbone(tokens, positions.flip(1), time), atol=1e-3)
    assert not torch.allclose(output, backbone(tokens, positions, 1 - time), atol=1e-3)
    changed = tokens.clone()
    changed[:, 0] += 1
    assert not torch.allclose(output[:, 1:], backbone(changed, positions, time)[:, 1:], atol=1e-3)


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_a_subset_equals_the_whole_with_the_hidden_tokens_masked_out_of_attention(
    name, classes, inputs, monkeypatch
):
    network = shaken(small(name, classes=classes))
    tokens, positions, time = inputs
    visible = torch.tensor([0, 3, 4, 9, 15])
    subset = network(tokens[:, visible], positions[:, visible], time)

    plain = functional.scaled_dot_product_attention

    def hiding(q, k, v, *_, **__):  # what stands before the patches (time, class) is never masked
        extras = k.shape[-2] - TOKENS
        allowed = torch.zeros(k.shape[-2], dtype=torch.bool)
        allowed[:extras] = True
        allowed[visible + extras] = True
        return plain(q, k, v, attn_mask=allowed.expand(q.shape[-2], -1))

    monkeypatch.setattr(functional, "scaled_dot_product_attention", hiding)
    whole = network(tokens, positions, time)[:, visible]
    torch.testing.assert_close(subset, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("visible", [1, 5, TOKENS])
def test_any_number_of_tokens_goes_in_and_comes_out(backbone, inputs, visible):
    tokens, positions, time = inputs
    output = backbone(tokens[:, :visible], positions[:, :visible], time)
    assert output.shape == (3, visible, VALUES)


def test_every_parameter_gets_a_gradient_in_a_masked_step(backbone, conditional, inputs):
    tokens, positions, time = (part[:, :5] if part.ndim > 1 else part for part in inputs)
    backbone(tokens, positions, time).square().mean().backward()
    conditional(tokens, positions, time, torch.tensor([0, 1, CLASSES])).square().mean().backward()
    for network in (backbone, conditional):
        assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_classes_matter_and_none_is_the_null_label(conditional, inputs):
    def says(*labels):
        return conditional(*inputs, torch.tensor(labels))

    null = CLASSES
    torch.testing.assert_close(conditional(*inputs), says(null, null, null))
    assert not torch.allclose(says(0, 1, 2)[0], says(1, 1, 2)[0], atol=1e-3)
    assert not torch.allclose(says(0, 1, 2)[0], says(null, 1, 2)[0], atol=1e-3)
    torch.testing.assert_close(says(0, 1, 2)[1:], says(1, 1, 2)[1:])


def test_an_unconditional_network_refuses_a_label(backbone, inputs):
    with pytest.raises(UserError, match="trained without classes"):
        backbone(*inputs, torch.zeros(3, dtype=torch.long))


def test_only_parameters_are_stored(backbone):
    assert set(backbone.state_dict()) == {name for name, _ in backbone.named_parameters()}


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_a_model_goes_on_at_three_times_the_resolution(name, classes):
    """A point of the image keeps its embedding: the middle of three patches is where one was."""
    before, after = shaken(small(name, 16, classes)), small(name, 48, classes).eval()
    weights = {n: p.detach() for n, p in before.named_parameters()}
    after.load_state_dict(after.fit_weights(weights))
    same = small(name, 16, classes).fit_weights(weights)
    assert all(torch.equal(tensor, weights[n]) for n, tensor in same.items())

    tokens, time = torch.randn(1, TOKENS, VALUES), torch.tensor([0.5])
    coarse = torch.arange(TOKENS)[None]
    fine = torch.arange(144).view(12, 12)[1::3, 1::3].reshape(1, TOKENS)
    torch.testing.assert_close(
        after(tokens, fine, time), before(tokens, coarse, time), atol=1e-4, rtol=1e-4
    )


def test_resampled_positions_are_a_smooth_field_on_the_new_grid():
    """A field linear in row and column is met exactly, away from the border."""

    def field(grid):
        middles = (torch.arange(grid) + 0.5) / grid
        rows, columns = torch.meshgrid(middles, middles, indexing="ij")
        return torch.stack([rows, columns, rows + 2 * columns], dim=2).view(grid**2, 3)

    fine = resample_positions(field(8), 256).view(16, 16, 3)[4:-4, 4:-4]
    torch.testing.assert_close(fine, field(16).view(16, 16, 3)[4:-4, 4:-4])
    assert torch.equal(resample_positions(field(8), 64), field(8))


def test_positions_of_one_extent_agree_between_grids():
    coarse, fine = embed_positions(8, 64, extent=16), embed_positions(24, 64, extent=16)
    thirds = fine.view(24, 24, 64)[1::3, 1::3].reshape(64, 64)  # the middle one of three
    torch.testing.assert_close(coarse, thirds, atol=1e-5, rtol=1e-5)


def test_a_dit_starts_as_nothing():
    """adaLN-zero: the head is zero, every block the identity."""
    network = small("dit", classes=CLASSES)
    tokens, positions = torch.randn(2, 5, VALUES), torch.arange(5).expand(2, 5)
    time = torch.tensor([0.3, 0.6])
    assert not network(tokens, positions, time).any()
    x = torch.randn(2, 5, 32)
    assert torch.equal(network.blocks[0](x, torch.randn(2, 32)), x)


def test_the_seed_decides_the_initial_weights_and_the_global_generator_is_left_alone(name):
    torch.manual_seed(5)
    first, after = small(name).state_dict(), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(first[key], tensor) for key, tensor in small(name).state_dict().items())


# The paper's networks; those of ImageNet-64 are U-ViT's, with 1 000 classes and a null label.
@pytest.mark.parametrize(
    ("size", "patch", "dim", "depth", "heads", "classes", "parameters"),
    [
        (64, 4, 512, 13, 8, 0, 44_292_144),
        (256, 4, 512, 13, 8, 0, 46_258_224),
        (256, 4, 768, 13, 12, 0, 102_417_456),
        (32, 2, 512, 13, 8, 0, 44_255_244),
        (64, 4, 768, 17, 12, 1000, 130_940_976),
        (64, 4, 1024, 21, 16, 1000, 286_828_592),
    ],
)
def test_parameter_counts_are_the_papers(size, patch, dim, depth, heads, classes, parameters):
    with torch.device("meta"):
        network = UViT(size, 3, patch, dim, depth, heads, classes=classes)
    assert sum(p.numel() for p in network.parameters()) == parameters
    # Written out: blocks (qkv without biases, projection, MLP, norms), merges of the skips, ends
    block = 3 * dim**2 + (dim**2 + dim) + (8 * dim**2 + 5 * dim) + 4 * dim
    positions, values = (size // patch) ** 2 + (2 if classes else 1), patch**2 * 3
    ends = (values + 1) * dim + 2 * dim + (dim + 1) * values
    labels = (classes + 1) * dim if classes else 0
    merges = (depth // 2) * (2 * dim**2 + dim)
    assert parameters == depth * block + merges + ends + positions * dim + labels


# DiT's paper, table 4, counts DiT-S/2 with its 1 000 classes at 33 M and DiT-B/2 at 130 M; theirs
# predicts 8 values a pixel of a 4-channel latent, ours 4, which is a difference of 0.02 %.
@pytest.mark.parametrize(("dim", "heads", "millions"), [(384, 6, 33.0), (768, 12, 130.5)])
def test_a_dit_has_the_parameters_of_its_paper(dim, heads, millions):
    with torch.device("meta"):
        network = DiT(32, 4, 2, dim, 12, heads, classes=1000)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("name", ["uvit", "dit", "vit"])
def test_it_is_built_on_the_meta_device_for_the_check(name):
    with torch.device("meta"):
        assert all(p.is_meta for p in small(name, classes=CLASSES).parameters())


def test_initialisation_is_truncated_normal_with_zero_biases():
    network = UViT(size=32, channels=3, patch=4, dim=192, depth=3, heads=3)
    weight = network.middle.mlp[0].weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not network.middle.mlp[0].bias.any()
    assert isinstance(network.middle.attention, Attention)
    assert network.middle.attention.qkv.bias is None


def test_a_spatial_start_makes_neighbours_alike_and_keeps_the_variance_of_activations():
    grid, dim = 8, 64
    positions = embed_positions(grid, dim)
    distance = torch.cdist(positions, positions)
    nearest = distance.fill_diagonal_(torch.inf).argsort(dim=1)[:, :2]
    steps = (nearest // grid - torch.arange(grid**2)[:, None] // grid).abs() + (
        nearest % grid - torch.arange(grid**2)[:, None] % grid
    ).abs()
    assert (steps == 1).all()
    network = UViT(size=32, channels=3, patch=4, dim=dim, depth=3, heads=2, init="spatial")
    torch.testing.assert_close(network.positions[1:], 0.5 * positions)
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
        ({"patch": 5}, r"model.patch is 5.*data.resolution 16.*Allowed: 1, 2, 4, 8, 16"),
        ({"dim": 30}, r"model.dim is 30.*multiple of 4 for 2 heads.*fits: 32"),
        ({"depth": 4}, r"model.depth is 4.*odd number, 3 or 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_what_does(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        small(**changes)


def test_an_outline_is_drawn_without_the_compiler():
    """Which takes a second to load, and every command that looks at a model would wait for it."""
    code = """
import sys
from maskdm.backbones.registry import ModelParams, backbone_without_weights
for name in ("uvit", "dit"):
    model = ModelParams(backbone=name, patch=4, dim=32, depth=3, heads=2, init="spatial")
    backbone = backbone_without_weights(model, 32, 3, classes=2)
    assert {tensor.device.type for tensor in backbone.parameters()} == {"meta"}
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
