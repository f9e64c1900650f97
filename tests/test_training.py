"""The loop, the average, the schedule, validation."""

from contextlib import suppress
from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch
from all_backbones import ALL

from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.data.registry import DataParams, open_source, read_samples
from maskdm.diffusion.loss import DiffusionParams, denoising_loss
from maskdm.diffusion.masking import MaskParams, make_mask, nothing_masked
from maskdm.diffusion.tokens import to_tokens
from maskdm.runtime.compile import compile_shapes, with_fallback
from maskdm.runtime.errors import UserError
from maskdm.training import ema, optimiser
from maskdm.training.batches import Batches
from maskdm.training.loop import train
from maskdm.training.phases import PretrainParams
from maskdm.training.schedule import Leg, Schedule
from maskdm.training.state import State
from maskdm.training.validation import BATCH, LOG_SNRS, MOST_IMAGES, Validation

CPU = torch.device("cpu")
DIFFUSION = DiffusionParams(
    path="flow", prediction="x0", loss="velocity", times="uniform", times_mean=0.0, times_std=1.0
)
MODEL = ModelParams(backbone="uvit", patch=4, dim=32, depth=3, heads=2, init="spatial")


def phase(**changes):
    values = {
        "steps": 6,
        "batch_size": 8,
        "lr": 1e-3,
        "warmup": 0,
        "cooldown": 0,
        "betas": [0.9, 0.99],
        "weight_decay": 0.0,
        "clip": 1.0,
        "hflip": 0.5,
        "ema_images": 64,
        "precision": "fp32",
        "log_every": 2,
        "validate_every": 100,
        "label_dropout": 0.0,
        "stages": None,
        "full_share": 0.0,
    }
    return PretrainParams(**(values | changes))


@pytest.fixture(scope="session")
def emoji():
    """128 real images, 32×32."""
    params = DataParams(
        source="openmoji",
        path=None,
        size=32,
        channels=3,
        background="white",
        heldout=0.1,
        group="file",
        classes=False,
        limit=128,
        max_unreadable=0.0,
    )
    return np.stack([s.pixels for s in read_samples(open_source(params, None), params)])


def run(images, params, mask=None, micro_batch=None, seed=0, legs=None, model=MODEL, **labelled):
    grid = images.shape[1] // MODEL.patch
    legs = legs or [leg(mask or nothing_masked(grid), params.steps, params)]
    schedule = Schedule(tuple(legs), params.steps, params.cooldown, params.full_share)
    labels = labelled.get("labels")
    classes = 0 if labels is None else int(labels.max()) + 1
    state = State.start(build_backbone(model, images.shape[1], 3, seed, classes), params)
    batches = Batches(images[32:], schedule, MODEL.patch, params.hflip, seed, "test")
    validation = Validation(images[:32], MODEL.patch, DIFFUSION, CPU)
    if labels is not None:
        batches = replace(batches, labels=labels[32:], classes=classes)
        validation = Validation(images[:32], MODEL.patch, DIFFUSION, CPU, labels[:32])
    reports = list(train(state, batches, validation, DIFFUSION, params, CPU, micro_batch))
    return state, reports


def leg(mask, steps, params):
    return Leg(mask, steps, params.batch_size, params.lr, params.warmup)


def masked(rate, strategy="patch"):
    return make_mask(MaskParams(strategy=strategy, rate=rate, block_size=2), grid=8)


@pytest.mark.parametrize("strategy", [None, "patch", "block", "crop"])
@pytest.mark.parametrize("backbone", sorted(ALL))
def test_training_lowers_the_validation_error_on_real_images(
    emoji, backbone, strategy, own_is_registered
):
    mask = masked(0.5, strategy) if strategy else None
    model = MODEL.model_copy(update={"backbone": backbone})
    _, reports = run(emoji, phase(steps=40, batch_size=16, lr=3e-3), mask, model=model)
    before, after = reports[0].validation, reports[-1].validation
    assert after["raw"] < 0.6 * before["raw"]
    assert after["averaged"] < 0.8 * before["averaged"]


def test_two_runs_are_bit_equal(emoji):
    (one, reports), (two, again) = (run(emoji, phase()) for _ in range(2))
    assert [r.loss for r in reports] == [r.loss for r in again]
    assert all(torch.equal(one.averaged[n], two.averaged[n]) for n in one.averaged)


def test_a_longer_run_starts_with_the_shorter_one(emoji):
    short, first = run(emoji, phase(steps=4))
    _, longer = run(emoji, phase(steps=8))
    assert [r.loss for r in first[1:]] == [r.loss for r in longer[1:5]]
    assert short.step == 4


def test_micro_batches_change_the_result_by_rounding_only(emoji):
    whole, _ = run(emoji, phase(steps=3))
    parts, _ = run(emoji, phase(steps=3), micro_batch=3)
    for name, tensor in whole.backbone.named_parameters():
        torch.testing.assert_close(parts.backbone.get_parameter(name), tensor, atol=2e-5, rtol=1e-3)


def test_reports_log_and_validate_when_they_should(emoji):
    _, reports = run(emoji, phase(steps=5, log_every=2, validate_every=3))
    assert [r.step for r in reports] == [0, 1, 2, 3, 4, 5]
    assert [r.step for r in reports if r.loss is not None] == [2, 4, 5]
    assert [r.step for r in reports if r.validation is not None] == [0, 3, 5]


def test_validating_changes_nothing(emoji):
    often, rarely = (
        run(emoji, phase(steps=4, validate_every=every))[0].tensors() for every in (1, 100)
    )
    assert [name for name, tensor in often.items() if not torch.equal(tensor, rarely[name])] == []


def test_no_steps_leave_the_start_as_it_is(emoji):
    state, reports = run(emoji, phase(steps=0))
    fresh = build_backbone(MODEL, 32, 3, 0)
    assert len(reports) == 1
    assert all(torch.equal(p, state.averaged[n]) for n, p in fresh.named_parameters())


def test_clipping_bounds_the_step_but_reports_the_norm_before_it(emoji):
    def moved(clip):
        state, reports = run(emoji, phase(steps=1, clip=clip, log_every=1))
        return reports[-1].gradient_norm, state

    norm, free = moved(None)
    same, clipped = moved(1e-9)  # so small that AdamW's ε swallows the step
    assert norm == pytest.approx(same)
    start = build_backbone(MODEL, 32, 3, 0)
    distance = [
        sum(
            (p - q).norm() for p, q in zip(s.backbone.parameters(), start.parameters(), strict=True)
        )
        for s in (free, clipped)
    ]
    assert distance[1] < 0.5 * distance[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_train_too(emoji, precision):
    _, reports = run(emoji, phase(steps=30, lr=3e-3, log_every=1, precision=precision))
    assert reports[-1].validation["raw"] < 0.8 * reports[0].validation["raw"]
    _, exact = run(emoji, phase(steps=1, log_every=1))
    assert reports[1].loss != exact[1].loss
    assert reports[1].loss == pytest.approx(exact[1].loss, rel=0.01)


def test_a_step_that_overflows_in_fp16_is_skipped(emoji, monkeypatch):
    """The loss is scaled by 2¹⁶ at first; with 2¹²⁰ no gradient of the first steps is finite."""
    monkeypatch.setattr(optimiser, "SCALE", 2.0**120)
    state, reports = run(emoji, phase(steps=2, precision="fp16", log_every=1))
    fresh = build_backbone(MODEL, 32, 3, 0)
    assert not np.isfinite([r.gradient_norm for r in reports[1:]]).any()
    assert all(torch.equal(p, state.backbone.get_parameter(n)) for n, p in fresh.named_parameters())


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(emoji):
    sentence = r"not been finite from step \d+ to step \d+ .*learning rate"
    with pytest.raises(UserError, match=sentence):
        run(emoji, phase(steps=30, lr=1e30, clip=None, log_every=1))


def test_a_progression_of_masks_trains_and_its_first_leg_is_that_of_a_shorter_run(emoji):
    params = phase(steps=40, lr=3e-3)
    legs = [
        leg(masked(0.75), 15, phase(lr=3e-3, batch_size=32)),
        leg(masked(0.5), 15, phase(lr=3e-3, batch_size=16, warmup=3)),
        leg(nothing_masked(8), 10, phase(lr=3e-3)),
    ]
    _, reports = run(emoji, params, legs=legs)
    assert reports[-1].validation["raw"] < 0.6 * reports[0].validation["raw"]
    _, first = run(emoji, phase(steps=15, lr=3e-3, batch_size=32), masked(0.75))
    assert [r.loss for r in reports[1:15]] == [r.loss for r in first[1:15]]


def test_every_visible_count_is_compiled_once(emoji):
    compilations = []

    def count(graph, inputs):
        assert all(isinstance(size, int) for tensor in inputs for size in tensor.shape)
        compilations.append(graph)
        return graph

    torch._dynamo.reset()
    network = compile_shapes(build_backbone(MODEL, 32, 3, 0), backend=count)
    schedule = Schedule((leg(masked(0.75), 3, phase()), leg(masked(0.5), 3, phase())), 6)
    batches = Batches(emoji, replace(schedule, full_share=0.5), MODEL.patch, 0.0, 0, "test")
    for step in range(6):
        batch = batches.at(step)
        network(batch.tokens, batch.positions, batch.uniform, None)
    assert len(compilations) == 3  # 16, 32 and all 64 patches


def test_labels_reach_the_network_and_validation(emoji):
    """Black and white pictures cannot be told from noise, but from their labels."""
    labels = np.arange(128) % 2
    pictures = np.broadcast_to((labels * 255).astype(np.uint8)[:, None, None, None], emoji.shape)
    params = phase(steps=60, lr=3e-3, batch_size=16)
    _, told = run(pictures, params, labels=labels)
    _, untold = run(pictures, params)
    most_noise = "raw[-3]"
    assert told[-1].validation[most_noise] < 0.5 * untold[-1].validation[most_noise]


def test_the_average_has_its_horizon_in_images_not_in_steps():
    seen, horizon = 100_000, 5_000
    small = ema.decay(seen, 10, horizon) ** 4  # four small steps
    assert small == pytest.approx(ema.decay(seen, 40, horizon))
    assert ema.decay(seen, 10, horizon) == pytest.approx(exp(-10 / 5_000))


def test_the_average_forgets_the_start():
    average, weights = [torch.zeros(1)], [torch.ones(1)]
    for step in range(1, 200):
        ema.update(average, weights, ema.decay(step * 8, 8, horizon=10**9))
    assert average[0].item() > 0.99


def test_the_average_of_constant_weights_is_exact_and_of_changing_ones_a_weighted_mean():
    average = [torch.full((3,), 2.0)]
    ema.update(average, [torch.full((3,), 2.0)], 0.9)
    assert torch.equal(average[0], torch.full((3,), 2.0))
    ema.update(average, [torch.full((3,), 4.0)], 0.75)
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


def pixel_space_simple_loss(network, images, noise, alpha_bar, t):
    """L_simple on images (batch, C, H, W), written from the paper's formula with numpy's loops."""
    noisy = np.empty_like(images)
    for i in range(len(images)):
        noisy[i] = np.sqrt(alpha_bar[i]) * images[i] + np.sqrt(1 - alpha_bar[i]) * noise[i]
    total = []
    for i, predicted in enumerate(network(noisy, t)):
        total.append(((noise[i] - predicted) ** 2).mean())
    return np.array(total)


def test_mdsm_at_rate_0_is_the_pixel_space_simple_loss():
    """Same images, same noise, same network: tokens on one side, whole images on the other."""
    rng, patch, size = np.random.default_rng(0), 4, 8
    pixels = rng.integers(0, 256, (5, size, size, 3), dtype=np.uint8)
    noise = rng.standard_normal((5, 3, size, size))
    t = np.linspace(0.1, 0.9, 5)
    # VP linear, its ᾱ written out once more
    alpha_bar = np.exp(-(0.1 * t + 0.5 * 19.9 * t**2))
    backbone = build_backbone(MODEL, size, 3, 0).double()
    positions = torch.arange(4).expand(5, 4)

    def cut(images):  # (batch, C, H, W) → (batch, patches, p²·C), pixel by pixel
        tokens = np.empty((len(images), 4, patch * patch * 3))
        for n, (y, x) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
            for dy in range(patch):
                for dx in range(patch):
                    for c in range(3):
                        place = (dy * patch + dx) * 3 + c
                        tokens[:, n, place] = images[:, c, y + dy, x + dx]
        return tokens

    def network(images, t):  # a pixel-space network: images in, images out
        tokens = torch.from_numpy(cut(images))
        out = backbone(tokens, positions, torch.from_numpy(t)).detach().numpy()
        whole = np.empty_like(images)
        for n, (y, x) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
            block = out[:, n].reshape(-1, patch, patch, 3).transpose(0, 3, 1, 2)
            whole[:, :, y : y + patch, x : x + patch] = block
        return whole

    scaled = pixels.transpose(0, 3, 1, 2) / 127.5 - 1
    expected = pixel_space_simple_loss(network, scaled, noise, alpha_bar, t)
    setting = DIFFUSION.model_copy(
        update={"path": "vp-linear", "prediction": "epsilon", "loss": "epsilon"}
    )
    ours = denoising_loss(
        lambda x_t, time: backbone(x_t, positions, time),
        to_tokens(torch.from_numpy(pixels), patch).double(),
        torch.from_numpy(cut(noise)),
        torch.from_numpy(t),
        setting,
    )
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("path", ["flow", "vp-linear", "vp-cosine"])
def test_validation_error_means_the_same_for_every_path_and_prediction(emoji, path):
    """A network that knows the images has error 0; one that always says grey has their power."""
    power = (to_tokens(torch.from_numpy(emoji[:14]), 4) ** 2).mean((1, 2))
    for prediction in ("x0", "epsilon", "v"):
        setting = DIFFUSION.model_copy(update={"path": path, "prediction": prediction})
        validation = Validation(emoji[:14], 4, setting, CPU)

        def says(x0, validation=validation, prediction=prediction, setting=setting):
            from maskdm.diffusion.paths import PATHS
            from maskdm.diffusion.predictions import to_epsilon, to_velocity

            convert = {"epsilon": to_epsilon, "v": to_velocity}.get(prediction)
            if convert is None:
                return x0
            return convert(x0, validation.x_t, validation.time, PATHS[setting.path], "x0")

        def errors(x0, validation=validation, says=says):
            parts = iter(says(x0).split(BATCH))
            return validation.errors(lambda *_: next(parts))

        knows = errors(validation.x0)
        grey = errors(torch.zeros_like(validation.x0))
        assert knows["mean"] < 1e-4
        assert grey["mean"] == pytest.approx(power.mean().item(), rel=0.02)
        assert set(grey) == {"mean", *(f"{level:g}" for level in LOG_SNRS)}


def test_validation_takes_images_from_all_over_a_set_sorted_by_class():
    images = np.arange(2 * MOST_IMAGES).repeat(3).reshape(-1, 1, 1, 3).astype(np.uint8)
    labels = np.arange(2 * MOST_IMAGES) // 36
    validation = Validation(images, 1, DIFFUSION, CPU, labels)
    assert len(validation.x0) == MOST_IMAGES
    assert set(validation.labels.tolist()) == set(labels.tolist())


def test_validation_is_the_same_whatever_the_seed_of_the_run(emoji):
    values = [Validation(emoji[:14], 4, DIFFUSION, CPU).x_t for _ in range(2)]
    assert torch.equal(*values)


def test_a_compiler_that_fails_is_reported_in_one_line_and_replaced(capsys):
    def broken(x):
        raise RuntimeError("no C++ compiler\nand a long trace")

    call = with_fallback(broken, lambda x: x + 1)
    assert call(torch.zeros(1)).item() == 1
    assert call(torch.ones(1)).item() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_error_that_is_not_the_compilers_is_raised():
    def broken(x):
        raise ValueError("shapes")

    with pytest.raises(ValueError, match="shapes"):
        with_fallback(broken, broken)(torch.zeros(1))


def test_bad_phase_parameters_are_refused():
    from maskdm.runtime.params import ParamsError, validate

    values = phase().model_dump() | {"lr": "fast"}
    with pytest.raises(ParamsError, match=r"pretrain.lr is 'fast'.*peak learning rate"):
        validate(values, "pretrain", PretrainParams)
