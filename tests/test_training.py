"""The loop: what it learns on real images, and what may change its result and what may not."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from maskdm.backbones.registry import build_backbone
from maskdm.diffusion.masking import nothing_masked
from maskdm.runtime.errors import UserError
from maskdm.runtime.execution import Execution
from maskdm.training import loop, optimiser
from maskdm.training.batches import Batches
from maskdm.training.loop import train
from maskdm.training.schedule import Schedule
from maskdm.training.state import State
from maskdm.training.validation import HeldOutValidator
from tests.support.backbones import ALL
from tests.support.training import CPU, DIFFUSION, GRID, MODEL, leg, masked, phase

SLOW = pytest.mark.slow


def run(
    images, params, mask=None, *, micro_batch=None, seed=0, legs=None, model=MODEL, labels=None
):
    """Train on all but 32 images, which validate; return the state after the last step."""
    legs = legs or [leg(mask or nothing_masked(GRID), params)]
    schedule = Schedule(tuple(legs), params.steps, params.cooldown, params.full_share)
    classes = 0 if labels is None else int(labels.max()) + 1
    state = State.start(build_backbone(model, images.shape[1], 3, seed, classes), params)
    batches = Batches(images[32:], schedule, MODEL.patch, params.hflip, seed, "test")
    if labels is not None:
        batches = replace(batches, labels=labels[32:], classes=classes)
    few = None if labels is None else labels[:32]
    validator = HeldOutValidator(images[:32], MODEL.patch, DIFFUSION, CPU, few)
    execution = Execution(CPU, micro_batch=micro_batch, precision=params.precision)
    made = list(train(state, batches, validator, DIFFUSION, params, execution))
    assert made == list(range(params.steps + 1))
    state.history.fetch()
    return state


def losses(state):
    return list(state.history.losses)


def errors(state):
    """Return the validation errors before the first step and after the last."""
    history = state.history
    return history.validations[0], (history.validations | history.final)[state.step]


@pytest.mark.parametrize(
    ("backbone", "strategy"),
    [
        pytest.param(*case, marks=() if case[0] == "uvit" or case[1] == "block" else SLOW)
        for case in product(sorted(ALL), [None, "patch", "block", "crop"])
    ],
)
def test_training_lowers_the_validation_error_on_real_images(
    emoji, backbone, strategy, own_is_registered
):
    mask = masked(0.5, strategy) if strategy else None
    model = MODEL.model_copy(update={"backbone": backbone})
    state = run(emoji, phase(steps=40, batch_size=16, lr=3e-3), mask, model=model)
    before, after = errors(state)
    assert after["raw"] < 0.6 * before["raw"]
    assert after["averaged"] < 0.8 * before["averaged"]


def test_two_runs_are_bit_equal(emoji):
    one, two = (run(emoji, phase()) for _ in range(2))
    assert losses(one) == losses(two)
    assert all(torch.equal(one.averaged[n], two.averaged[n]) for n in one.averaged)


def test_a_longer_run_starts_with_the_shorter_one(emoji):
    short, longer = (run(emoji, phase(steps=steps)) for steps in (4, 8))
    assert losses(short) == losses(longer)[:4]
    assert short.step == 4


def test_micro_batches_change_the_result_by_rounding_only(emoji):
    whole, parts = (run(emoji, phase(steps=3), micro_batch=size) for size in (None, 3))
    for name, tensor in whole.backbone.named_parameters():
        torch.testing.assert_close(parts.backbone.get_parameter(name), tensor, atol=2e-5, rtol=1e-3)


def test_every_step_is_recorded_and_validations_when_they_are_due(emoji):
    history = run(emoji, phase(steps=5, validate_every=3)).history
    assert len(history.losses) == len(history.norms) == 5
    assert [row.step for row in history.rows(2)] == [2, 4, 5]
    assert history.rows(2)[1].loss == pytest.approx(np.mean(history.losses[2:4]))
    assert list(history.validations) == [0, 3]  # those that a longer run has, too
    assert list(history.final) == [5]
    regular = run(emoji, phase(steps=3, validate_every=3)).history
    assert list(regular.validations) == [0, 3]
    assert regular.final == {}


def test_training_stops_between_steps_and_goes_on_from_the_state_it_finds(emoji):
    params = phase(steps=4)
    schedule = Schedule((leg(nothing_masked(GRID), params),), 4)
    batches = Batches(emoji[32:], schedule, MODEL.patch, params.hflip, 0, "test")
    validator = HeldOutValidator(emoji[:32], MODEL.patch, DIFFUSION, CPU)
    state = State.start(build_backbone(MODEL, 32, 3, 0), params)

    def steps():
        return train(state, batches, validator, DIFFUSION, params, Execution(CPU))

    first = steps()
    assert [next(first) for _ in range(3)] == [0, 1, 2]
    assert state.step == 2
    first.close()
    assert list(steps()) == [2, 3, 4]
    never = run(emoji, params)
    assert losses(state) == losses(never)
    assert errors(state) == errors(never)


def test_validating_changes_nothing(emoji):
    often, rarely = (
        run(emoji, phase(steps=4, validate_every=every)).tensors() for every in (1, 100)
    )
    assert [name for name, tensor in often.items() if not torch.equal(tensor, rarely[name])] == []


def test_no_steps_leave_the_start_as_it_is(emoji):
    state = run(emoji, phase(steps=0))
    fresh = build_backbone(MODEL, 32, 3, 0)
    assert losses(state) == []
    assert list(state.history.validations) == [0]
    assert all(torch.equal(p, state.averaged[n]) for n, p in fresh.named_parameters())


def test_clipping_bounds_the_step_but_reports_the_norm_before_it(emoji):
    def moved(clip):
        state = run(emoji, phase(steps=1, clip=clip))
        return state.history.norms[0], state

    norm, free = moved(None)
    same, clipped = moved(1e-8)  # so small that AdamW's ε swallows most of the step
    assert norm == pytest.approx(same)
    start = build_backbone(MODEL, 32, 3, 0)
    distance = [
        sum(
            (p - q).norm() for p, q in zip(s.backbone.parameters(), start.parameters(), strict=True)
        )
        for s in (free, clipped)
    ]
    assert distance[1] < 0.5 * distance[0]


@SLOW
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_train_too(emoji, precision):
    state = run(emoji, phase(steps=30, lr=3e-3, precision=precision))
    before, after = errors(state)
    assert after["raw"] < 0.8 * before["raw"]
    exact = run(emoji, phase(steps=1))
    assert losses(state)[0] != losses(exact)[0]
    assert losses(state)[0] == pytest.approx(losses(exact)[0], rel=0.01)


def test_a_step_that_overflows_in_fp16_is_skipped(emoji, monkeypatch):
    """The loss is scaled by 2¹⁶ at first; with 2¹²⁰ no gradient of the first steps is finite."""
    monkeypatch.setattr(optimiser, "SCALE", 2.0**120)
    with pytest.raises(UserError, match="from step 1 to step 2"):  # it has learnt nothing
        run(emoji, phase(steps=2, precision="fp16"))
    monkeypatch.setattr(loop, "stop_if_failing", lambda *_: None)
    state = run(emoji, phase(steps=2, precision="fp16"))
    fresh = build_backbone(MODEL, 32, 3, 0)
    assert not np.isfinite(state.history.norms).any()
    assert [row.skipped for row in state.history.rows(1)] == [1, 1]
    assert all(torch.equal(p, state.backbone.get_parameter(n)) for n, p in fresh.named_parameters())


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(emoji):
    sentence = r"not been finite from step \d+ to step \d+ .*learning rate"
    with pytest.raises(UserError, match=sentence):
        run(emoji, phase(steps=30, lr=1e30, clip=None))


class Blind:
    """A validator that cannot tell at one noise level, as after an overflow there."""

    def errors(self, denoise):
        return {"mean": float("nan"), "-3": float("nan"), "3": 0.1}


def test_a_validation_that_is_not_finite_stops_the_run(emoji, monkeypatch):
    monkeypatch.setattr(f"{__name__}.HeldOutValidator", lambda *_: Blind())
    with pytest.raises(UserError, match=r"error of the raw and the averaged weights is not finite"):
        run(emoji, phase(steps=3, validate_every=3))


@pytest.mark.parametrize(("precision", "lr"), [("fp32", 1e10), ("bf16", 1e10), ("fp16", 1.0)])
def test_a_run_that_diverges_while_its_losses_are_finite_ends_with_a_sentence(precision, lr):
    """Its validation overflows: in fp16 for the raw weights alone, and at some noise levels."""
    params = phase(steps=45, lr=lr, clip=None, precision=precision, validate_every=7)
    instead = "" if precision == "fp32" else ", or train in fp32"
    sentence = rf"raw .*not finite after step \d+: training has diverged.*steps\){instead}\.$"
    noise = np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(UserError, match=sentence):
        run(noise, params)


def test_a_progression_of_masks_trains_and_its_first_leg_is_that_of_a_shorter_run(emoji):
    params = phase(steps=40, lr=3e-3)
    legs = [
        leg(masked(0.75), phase(lr=3e-3, batch_size=32), 15),
        leg(masked(0.5), phase(lr=3e-3, batch_size=16, warmup=3), 15),
        leg(nothing_masked(GRID), phase(lr=3e-3), 10),
    ]
    state = run(emoji, params, legs=legs)
    before, after = errors(state)
    assert after["raw"] < 0.6 * before["raw"]
    first = run(emoji, phase(steps=15, lr=3e-3, batch_size=32), masked(0.75))
    assert losses(state)[:15] == losses(first)


def test_labels_reach_the_network_and_validation(emoji):
    """Black and white pictures cannot be told from noise, but from their labels."""
    labels = np.arange(128) % 2
    pictures = np.broadcast_to((labels * 255).astype(np.uint8)[:, None, None, None], emoji.shape)
    params = phase(steps=40, lr=3e-3, batch_size=16)
    (_, conditional), (_, unconditional) = (
        errors(run(pictures, params, labels=given)) for given in (labels, None)
    )
    most_noise = "raw[-3]"
    assert conditional[most_noise] < 0.5 * unconditional[most_noise]
