"""Interpolation: from one seed's image to another's, along a great circle."""

import numpy as np
import pytest
import torch

from maskdm.runtime.errors import UserError
from maskdm.sampling.interpolation import between, slerp
from maskdm.sampling.sampler import starting_noise
from tests.support.models import arrays


def test_the_ends_are_the_samples_of_the_two_seeds(model):
    images = arrays(model.interpolate(3, 8, 5, nfe=5)).astype(int)
    ends = arrays([*model.sample(1, seed=3, nfe=5), *model.sample(1, seed=8, nfe=5)])
    assert np.abs(images[[0, -1]] - ends).max() <= 1  # up to the rounding of other batches
    assert np.abs(np.diff(images, axis=0)).mean(axis=(1, 2, 3)).min() > 1


def test_both_ends_have_the_first_ones_class_or_the_one_asked_for(conditional):
    first, other = (conditional.labels(None, seed, range(1)).item() for seed in (9, 8))
    assert first != other
    for asked, label in ((None, first), ("dog", 1)):
        images = arrays(conditional.interpolate(9, 8, 4, label=asked, nfe=5)).astype(int)
        for image, seed in ((images[0], 9), (images[-1], 8)):
            (end,) = conditional.sample(1, seed=seed, label=label, nfe=5)
            assert np.abs(image - np.asarray(end)).max() <= 1


def test_many_are_drawn_in_batches(model, monkeypatch):
    whole = arrays(model.interpolate(0, 1, 5, nfe=4)).astype(int)
    monkeypatch.setenv("MASKDM_SAMPLE_BATCH", "2")
    sizes = []
    hook = model.backbone.register_forward_pre_hook(
        lambda network, given: sizes.append(len(given[0]))
    )
    few, samples = model.interpolate(0, 1, 5, nfe=4), model.sample(3, nfe=4)
    hook.remove()
    assert np.abs(whole - arrays(few)).max() <= 1
    assert sizes == [*[2] * 8, *[1] * 4, *[2] * 4, *[1] * 4]
    assert len(samples) == 3


def test_noise_between_two_noises_has_their_norm_and_lies_evenly():
    one, other = starting_noise(0, (16, 48), range(2))
    one, other = one / one.norm(), other / other.norm()
    noises = between(one, other, 7)
    assert torch.allclose(noises[0], one, atol=1e-6)
    assert torch.allclose(noises[-1], other, atol=1e-6)
    assert torch.allclose(noises.flatten(1).norm(dim=1), torch.ones(7), atol=1e-6)
    angles = torch.acos((noises[1:] * noises[:-1]).flatten(1).sum(1))
    assert torch.allclose(angles, angles.mean().expand(6), atol=1e-4)
    assert torch.allclose(slerp(one, other, 0.5), slerp(other, one, 0.5), atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"solver": "ddpm"}, r"ddpm adds noise on the way.*take dpmpp-2m, unipc, heun, ddim"),
        ({"solver": "ddim", "eta": 0.5}, "with eta 0"),
        ({"other": 3}, "Both seeds are 3"),
        ({"other": -1}, r"sample\.seed is -1"),
        ({"count": 0}, r"sample\.count is 0"),
    ],
)
def test_what_has_nothing_between_is_refused(model, asked, sentence):
    with pytest.raises(UserError, match=sentence):
        model.interpolate(**{"one": 3, "other": 4} | asked)
