"""The averaged weights: a horizon in images, a start that is forgotten, a loan that ends."""

from contextlib import suppress
from math import exp

import pytest
import torch

from maskdm.training import ema


def test_the_average_has_its_horizon_in_images_not_in_steps():
    seen, horizon = 100_000, 5_000
    small = ema.decay(seen, 10, horizon) ** 4  # four small steps
    assert small == pytest.approx(ema.decay(seen, 40, horizon))
    assert ema.decay(seen, 10, horizon) == pytest.approx(exp(-10 / 5_000))


def test_the_average_forgets_the_start():
    average, weights = [torch.zeros(1)], [torch.ones(1)]
    for step in range(1, 200):
        ema.update(average, weights, 1 - ema.decay(step * 8, 8, horizon=10**9))
    assert average[0].item() > 0.99


def test_early_on_the_horizon_is_a_tenth_of_what_was_seen():
    assert ema.decay(800, 8, 10**9) == pytest.approx(exp(-8 / 80))
    assert ema.decay(8, 8, 10**9) == pytest.approx(exp(-10))


def test_the_average_of_constant_weights_is_exact_and_of_changing_ones_a_weighted_mean():
    average = [torch.full((3,), 2.0)]
    ema.update(average, [torch.full((3,), 2.0)], 0.1)
    assert torch.equal(average[0], torch.full((3,), 2.0))
    ema.update(average, [torch.full((3,), 4.0)], 0.25)
    torch.testing.assert_close(average[0], torch.full((3,), 2.5))


@pytest.mark.parametrize("fails", [False, True])
def test_averaged_weights_are_applied_for_a_while_only(fails):
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    averaged = {"b": torch.tensor([30.0]), "a": torch.tensor([10.0, 20.0])}

    def values(tensors):
        return {name: tensor.tolist() for name, tensor in sorted(tensors.items())}

    before = values(weights), values(averaged)
    with suppress(KeyboardInterrupt), ema.applied(weights, averaged):
        assert (values(averaged), values(weights)) == before
        if fails:
            raise KeyboardInterrupt
    assert (values(weights), values(averaged)) == before
