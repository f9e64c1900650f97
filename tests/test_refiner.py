"""The convolution on whole images: a function of the set, that begins as the identity."""

import pytest
import torch

from maskdm.backbones.refiner import Refiner
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.diffusion.tokens import to_images, to_tokens

GRID, PATCH, CHANNELS = 4, 4, 3
TOKENS, VALUES = GRID**2, PATCH**2 * CHANNELS


@pytest.fixture(params=["uvit", "dit", "vit"])
def network(request):
    params = {"backbone": request.param, "patch": PATCH, "dim": 32, "depth": 3, "heads": 2}
    built = ModelParams(**params, refine=8, init="spatial")
    return build_backbone(built, GRID * PATCH, CHANNELS, seed=0).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(3, TOKENS, VALUES, generator=generator)
    return tokens, torch.arange(TOKENS).expand(3, -1), torch.tensor([0.1, 0.5, 0.9])


def shake(module):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def without_refiner(network, *inputs):
    refiner, network.refiner = network.refiner, None
    try:
        return network(*inputs)
    finally:
        network.refiner = refiner


def test_it_begins_as_the_identity_and_then_changes_whole_images_alone(network, inputs):
    tokens, positions, time = inputs
    part = tokens[:, :9], positions[:, :9], time
    assert torch.equal(network(*inputs), without_refiner(network, *inputs))
    shake(network.refiner)
    assert not torch.allclose(network(*inputs), without_refiner(network, *inputs))
    assert torch.equal(network(*part), without_refiner(network, *part))


def test_a_pixel_depends_on_its_neighbours_across_the_seam_and_on_no_pixel_further_away():
    refiner = Refiner(GRID, PATCH, CHANNELS, 8)
    shake(refiner)
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (1, 16, 16, 3), generator=generator, dtype=torch.uint8)
    tokens = to_tokens(image, PATCH).requires_grad_()
    positions, time = torch.arange(TOKENS)[None], torch.tensor([0.3])
    refined = refiner(tokens, tokens.detach(), positions, time)
    field = refiner.image(refined)
    field[0, 0, 3, 3].backward()  # the corner of the first patch
    reached = refiner.image(tokens.grad)[0].abs().sum(0).nonzero()
    assert reached.min(0)[0].tolist() == [1, 1]
    assert reached.max(0)[0].tolist() == [5, 5]  # two convolutions of 3 pixels


def test_it_sees_the_prediction_and_the_noisy_image_and_is_steered_by_time(inputs):
    refiner = Refiner(GRID, PATCH, CHANNELS, 8)
    shake(refiner)
    prediction, positions, time = inputs
    noisy = prediction.flip(0)

    def change(prediction, noisy, time):
        return refiner(prediction, noisy, positions, time) - prediction

    before = change(prediction, noisy, time)
    assert not torch.allclose(change(2 * prediction, noisy, time), before, atol=1e-3)
    assert not torch.allclose(change(prediction, 2 * noisy, time), before, atol=1e-3)
    assert not torch.allclose(change(prediction, noisy, time / 2), before, atol=1e-3)


def test_images_and_tokens_are_those_of_the_rest_of_the_library():
    refiner = Refiner(GRID, PATCH, CHANNELS, 8)
    image = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    tokens = to_tokens(image, PATCH)
    assert torch.equal(refiner.tokens(refiner.image(tokens)), tokens)
    assert torch.equal(to_images(tokens, PATCH, CHANNELS), image)
    as_image = ((refiner.image(tokens) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(as_image.permute(0, 2, 3, 1), image)


def test_the_order_of_the_patches_does_not_matter(network, inputs):
    shake(network)
    tokens, positions, time = inputs
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
    output = network(tokens[:, order], positions[:, order], time)
    torch.testing.assert_close(output, network(*inputs)[:, order], atol=1e-4, rtol=1e-4)


def test_masked_training_gives_it_zero_gradients_and_no_missing_ones(network, inputs):
    """Processes that average gradients expect one of every parameter."""
    shake(network.refiner)
    tokens, positions, time = inputs
    network(tokens[:, :4], positions[:, :4], time).square().mean().backward()
    assert all(p.grad is not None and not p.grad.any() for p in network.refiner.parameters())
    network(*inputs).square().mean().backward()
    assert all(p.grad.any() for p in network.refiner.parameters())


def test_its_cost_is_counted_on_whole_images_alone(network):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    def counted(visible):
        tokens = torch.zeros(1, visible, VALUES)
        positions = torch.arange(visible)[None]
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            network(tokens, positions, torch.zeros(1))
        return counter.get_total_flops()

    for visible in (4, TOKENS):
        assert network.forward_flops(visible) == pytest.approx(counted(visible), rel=0.02)
    refined, network.refiner = network.forward_flops(TOKENS), None
    assert refined > 1.03 * network.forward_flops(TOKENS)
