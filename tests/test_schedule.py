"""Which mask, batch size and learning rate at which step; and how the phases' parameters say so."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskdm.backbones.uvit import UViT
from maskdm.diffusion.masking import MaskParams, make_mask, nothing_masked
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import read_section
from maskdm.training.flops import flops_before, training_flops
from maskdm.training.phases import (
    FinetuneParams,
    PretrainParams,
    finetuning_schedule,
    pretraining_schedule,
)
from maskdm.training.schedule import Leg, Schedule

MASK = MaskParams(strategy="patch", rate=0.9, block_size=1)
GRID = 8
with torch.device("meta"):
    NETWORK = UViT(size=32, channels=3, patch=4, dim=32, depth=3, heads=2)
DEFAULTS = read_section("presets/laptop.yaml", "pretrain", PretrainParams).model_dump()
# The paper's progression on CelebA-HQ in small: the batch grows as the mask does.
LEGS = [
    {"rate": 0.9, "steps": 10, "batch_size": 40},
    {"rate": 0.5, "steps": 6, "batch_size": 8, "lr": 0.1, "warmup": 2},
    {"rate": 0.0, "steps": 4, "batch_size": 4, "lr": 0.05, "warmup": 0},
]


def pretrain(**changes):
    changes = {"steps": 20, "lr": 0.2, "warmup": 0, "legs": LEGS} | changes
    return PretrainParams.model_validate(DEFAULTS | changes)


def of_legs(**changes):
    return pretraining_schedule(pretrain(**changes), MASK, GRID)


def plain(rate=0.5, steps=10, batch_size=4, **changes):
    mask = make_mask(MASK.model_copy(update={"rate": rate}), GRID)
    return Schedule((Leg(mask, steps, batch_size, 0.3, warmup=0),), steps, **changes)


def test_one_leg_is_the_common_case():
    schedule = of_legs(legs=None, steps=7, batch_size=3, warmup=2)
    assert [schedule.mask(step).visible for step in range(7)] == [7] * 7
    assert schedule.images_before(7) == 21
    np.testing.assert_allclose(
        [schedule.learning_rate(s) for s in range(3)], [0.2 / 3, 0.4 / 3, 0.2]
    )


def test_legs_follow_each_other_with_their_own_rate_batch_and_learning_rate():
    schedule = of_legs()
    assert [schedule.mask(step).visible for step in range(20)] == [7] * 10 + [32] * 6 + [64] * 4
    assert [schedule.leg(step)[0].batch_size for step in (0, 9, 10, 15, 16)] == [40, 40, 8, 8, 4]
    assert schedule.images_before(20) == 400 + 48 + 16
    rates = [schedule.learning_rate(step) for step in range(20)]
    assert rates[:10] == [0.2] * 10  # what a leg leaves out is the section's
    np.testing.assert_allclose(rates[10:16], [0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1, 0.1])
    assert rates[16:] == [0.05] * 4


def test_a_batch_that_grows_with_the_mask_keeps_the_tokens_per_step_near_constant():
    """The paper's CelebA-HQ at 256 pixels (docs/method.md, "Schedule"): 256, 64 and 32 images."""
    grid, blocks = 64, MaskParams(strategy="block", rate=0.9, block_size=4)
    tokens = [
        make_mask(blocks.model_copy(update={"rate": rate}), grid).visible * batch
        for rate, batch in ((0.9, 256), (0.5, 64), (0.0, 32))
    ]
    assert tokens == [106_496, 131_072, 131_072]


def test_the_learning_rate_warms_up_holds_and_cools_down_to_zero():
    schedule = of_legs(legs=None, steps=10, warmup=2, cooldown=4, lr=0.3)
    rates = [schedule.learning_rate(step) for step in range(11)]
    np.testing.assert_allclose(rates[:3], [0.1, 0.2, 0.3])
    assert rates[3:6] == [0.3] * 3
    np.testing.assert_allclose(rates[6:], [0.24, 0.18, 0.12, 0.06, 0.0])


@given(st.integers(0, 20), st.integers(0, 20))
def test_a_shorter_run_is_a_prefix_of_a_longer_one(step, steps):
    short, long = of_legs(steps=steps), of_legs()
    if step < steps:
        assert short.learning_rate(step) == long.learning_rate(step)
        assert short.mask(step).visible == long.mask(step).visible
    assert short.images_before(min(step, steps)) == long.images_before(min(step, steps))


@given(st.floats(0, 0.99), st.integers(1, 200))
def test_a_mixture_shows_its_share_of_whole_images_evenly(share, steps):
    schedule = plain(steps=steps, full_share=share)
    full = [schedule.mask(step).visible == GRID**2 for step in range(steps)]
    for n in range(steps + 1):
        assert abs(sum(full[:n]) - share * n) < 1
        (stretch,) = schedule.stretches(n) or (None,)
        assert sum(full[:n]) == (stretch.full if stretch else 0)


@given(st.integers(0, 20), st.sampled_from([0.0, 0.1, 0.5]))
def test_images_and_flops_are_the_sums_over_the_steps(step, share):
    schedule = of_legs(full_share=share)
    images = [schedule.leg(k)[0].batch_size for k in range(step)]
    flops = [training_flops(NETWORK, schedule.mask(k).visible, n) for k, n in enumerate(images)]
    assert schedule.images_before(step) == sum(images)
    assert flops_before(NETWORK, schedule, step) == sum(flops)


def test_finetuning_shows_everything():
    params = read_section("presets/laptop.yaml", "finetune", FinetuneParams)
    schedule = finetuning_schedule(params, GRID)
    assert schedule.mask(0).visible == nothing_masked(GRID).visible
    assert schedule.steps == params.steps
    assert schedule.learning_rate(params.steps) == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 21}, r"pretrain\.steps is 21, but pretrain\.legs hold only 20 steps"),
        ({"legs": LEGS[1:], "steps": 10}, r"mask\.rate is 0\.9, but .* begins with 0\.5"),
        ({"legs": None, "warmup": 15, "cooldown": 6}, r"warmup \(15\).*cooldown \(6\).*20 steps"),
        ({"cooldown": 5}, r"cooldown \(5\).*4 steps"),
        ({"steps": 12, "cooldown": 1}, r"warmup \(2\).*the 2 steps"),
        ({"legs": [{"rate": 0.9, "steps": 20, "warmup": 21}]}, r"warmup \(21\).*the 20 steps"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        of_legs(**changes)


def test_masked_legs_are_shifted_by_how_few_tokens_they_show_and_whole_images_are_not():
    assert of_legs().shift(0) is None
    schedule = of_legs(noise_shift=1.0)
    shifts = [schedule.shift(step) for step in (0, 10, 16)]
    visible = [leg.mask.visible for leg in schedule.legs]
    assert shifts == pytest.approx([0.5 * np.log(GRID**2 / seen) for seen in visible])
    assert shifts[2] == 0
    mixed = of_legs(noise_shift=2.0, full_share=0.5)
    for step in range(10):
        expected = 0 if mixed.is_full(step) else 2 * shifts[0]
        assert mixed.shift(step) == pytest.approx(expected)


def test_a_middle_costs_less_than_the_whole_and_more_than_a_masked_image():
    sparse = MASK.model_copy(update={"scope": "middle"})
    costs = [
        flops_before(NETWORK, pretraining_schedule(pretrain(legs=None, steps=3), mask, GRID), 3)
        for mask in (MASK, sparse)
    ]
    whole = training_flops(NETWORK, GRID**2, 3 * pretrain().batch_size)
    assert costs[0] < costs[1] < whole
