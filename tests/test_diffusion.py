"""Paths, predictions and the one loss."""

import math
import re

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.backbones.registry import build_backbone
from maskdm.diffusion import wide
from maskdm.diffusion.loss import DiffusionParams, denoising_loss, training_times
from maskdm.diffusion.paths import PATHS
from maskdm.diffusion.predictions import from_truth, to_epsilon, to_velocity, to_x0
from maskdm.diffusion.tokens import to_tokens
from tests.support.graph import ROOT
from tests.support.training import MODEL

PREDICTIONS = ("epsilon", "x0", "v")
CONVERSIONS = {"epsilon": to_epsilon, "x0": to_x0, "v": to_velocity}


def params(**changes):
    values = {
        "path": "flow",
        "prediction": "x0",
        "loss": "velocity",
        "times": "uniform",
        "times_mean": 0.0,
        "times_std": 1.0,
    }
    return DiffusionParams(**(values | changes))


class Narrow(torch.Tensor):
    """A tensor on a device that has no numbers of 64 bits."""

    def double(self):
        raise TypeError("no float64 here")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_64_bits_are_computed_in_where_they_can_be(monkeypatch):
    seen = []

    def third(x):
        seen.append(x.dtype)
        return x / 3

    ones, expected = torch.ones(2), torch.full((2,), 1 / 3)
    assert torch.equal(wide.in_64_bits(third, ones), expected)
    narrow = ones.as_subclass(Narrow)
    with pytest.raises(TypeError, match="no float64"):
        wide.in_64_bits(third, narrow)
    monkeypatch.setattr(wide, "NARROW", {narrow.device.type})
    assert torch.equal(wide.in_64_bits(third, narrow), expected)
    assert seen == [torch.float64] * 2


def test_no_number_is_made_one_of_64_bits_on_a_device_that_may_have_none():
    """Apple's GPUs have none: all that needs them asks for them in one way."""
    asks = re.compile(r"(?<!cpu\(\))\.double\(\)")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((ROOT / "maskdm").rglob("*.py"))
        for line in path.read_text().splitlines()
        if asks.search(line) and path.name not in ("wide.py", "importing.py")  # files are on CPUs
    ]
    assert found == []


@pytest.mark.parametrize("name", PATHS)
def test_time_1_is_the_noise_end_and_levels_are_monotone(name):
    level = PATHS[name].level(torch.linspace(0, 1, 101))
    assert (level.alpha.diff() <= 0).all()
    assert (level.sigma.diff() >= 0).all()
    assert level.alpha[0] > 0.9999
    assert level.sigma[0] < 0.02
    assert level.alpha[-1] < 0.01
    assert level.sigma[-1] > 0.9999


@pytest.mark.parametrize("name", PATHS)
def test_levels_satisfy_the_paths_own_sum(name):
    level = PATHS[name].level(torch.linspace(0.01, 0.99, 50))
    alpha, sigma = level.alpha, level.sigma
    total = alpha**2 + sigma**2 if PATHS[name].preserves_variance else alpha + sigma
    torch.testing.assert_close(total, torch.ones(50))


@pytest.mark.parametrize("name", PATHS)
def test_a_grids_levels_are_those_of_a_batch_as_numbers(name):
    """half_log_snr is λ = log(α/σ), ratio σ/α, and the time leads back to the level."""
    path = PATHS[name]
    half_log_snrs = torch.linspace(-4, 4, 9, dtype=torch.float64)
    levels = path.levels(half_log_snrs)
    batch = path.level(path.time(half_log_snrs))
    for number, level in enumerate(levels):
        assert type(level.alpha) is float
        assert level.half_log_snr == half_log_snrs[number].item()
        assert math.log(level.alpha / level.sigma) == pytest.approx(level.half_log_snr, abs=1e-6)
        assert level.ratio == pytest.approx(math.exp(-level.half_log_snr))
        assert level.time == batch.time[number].item()
        assert (level.alpha, level.sigma) == (
            batch.alpha[number].item(),
            batch.sigma[number].item(),
        )


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 6)])
def test_a_batchs_levels_have_as_many_axes_as_what_they_are_multiplied_with(shape):
    x0, noise, t = torch.randn(shape), torch.randn(shape), torch.tensor([0.1, 0.5, 0.9])
    level = PATHS["flow"].level(t, like=x0)
    assert level.time.ndim == level.alpha.ndim == level.sigma.ndim == len(shape)
    noisy = level.noisy(x0, noise)
    assert noisy.shape == shape
    for row, time in enumerate(t):  # straight lines from image to noise
        torch.testing.assert_close(noisy[row], (1 - time) * x0[row] + time * noise[row])


def test_vp_linear_is_the_limit_of_the_papers_discrete_steps():
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    discrete = torch.cumprod(1 - beta, 0).sqrt()
    level = PATHS["vp-linear"].level((torch.arange(1000, dtype=torch.float64) + 1) / 1000)
    assert (level.alpha - discrete).abs().max() < 2e-3


def test_vp_cosine_is_nichol_and_dhariwals():
    t = torch.linspace(0, 0.99, 100, dtype=torch.float64)
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    alpha = PATHS["vp-cosine"].level(t).alpha
    torch.testing.assert_close(alpha[1:] ** 2, (f / f[0])[1:])


@pytest.mark.parametrize("name", PATHS)
def test_time_is_the_inverse_of_half_log_snr(name):
    path = PATHS[name]
    t = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    torch.testing.assert_close(path.time(path.half_log_snr(t)), t, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", PATHS)
def test_velocity_is_the_derivative_of_x_along_its_path(name):
    """Along the angle for VP (dx/dφ, α = cos φ), along time for flow."""
    path = PATHS[name]
    x0, noise = torch.randn(2, 1, 5, dtype=torch.float64)
    t, h = torch.tensor([0.4], dtype=torch.float64), 1e-5
    here, after, before = (path.level(time, like=x0) for time in (t, t + h, t - h))
    a, b = here.velocity_weights
    difference = after.noisy(x0, noise) - before.noisy(x0, noise)
    if path.preserves_variance:
        angles = [torch.atan2(level.sigma, level.alpha) for level in (after, before)]
        h = (angles[0] - angles[1]) / 2
    torch.testing.assert_close(a * x0 + b * noise, difference / (2 * h), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", PATHS)
@given(st.floats(0, 1))
def test_conversions_have_no_determinant_since_alpha_b_minus_sigma_a_is_1(name, time):
    level = PATHS[name].level(torch.tensor([time], dtype=torch.float64))
    (number,) = PATHS[name].levels(level.half_log_snr)
    for one in (level, number):
        a, b = one.velocity_weights
        assert float(one.alpha * b - one.sigma * a) == pytest.approx(1, abs=1e-12)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(PATHS)),
    st.sampled_from(PREDICTIONS),
    st.sampled_from(PREDICTIONS),
    st.floats(0.02, 0.9),
    st.integers(0, 99),
)
def test_conversions_round_trip(name, source, target, time, seed):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    level = PATHS[name].level(torch.full((3,), time, dtype=torch.float64), like=x0)
    x_t = level.noisy(x0, noise)
    a, b = level.velocity_weights
    truth = {"x0": x0, "epsilon": noise, "v": a * x0 + b * noise}
    assert torch.equal(from_truth(x0, noise, level, source), truth[source])
    converted = CONVERSIONS[target](truth[source], x_t, level, source)
    torch.testing.assert_close(converted, truth[target])
    back = CONVERSIONS[source](converted, x_t, level, target)
    torch.testing.assert_close(back, truth[source])


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("loss", ["epsilon", "velocity"])
@pytest.mark.parametrize("name", PATHS)
def test_a_perfect_network_has_no_loss_at_any_time_not_even_the_ends(name, prediction, loss):
    x0, noise = torch.randn(2, 9, 4, 6)
    t = torch.tensor([0, 1e-6, 1e-3, 0.02, 0.3, 0.7, 0.99, 1 - 1e-6, 1])
    a, b = PATHS[name].level(t, like=x0).velocity_weights
    truth = {"x0": x0, "epsilon": noise, "v": a * x0 + b * noise}[prediction]
    values = denoising_loss(
        lambda x_t, t: truth, x0, noise, t, params(path=name, prediction=prediction, loss=loss)
    )
    assert values.abs().max() < 1e-6
    wrong = denoising_loss(
        lambda x_t, t: truth + 0.1,
        x0,
        noise,
        t,
        params(path=name, prediction=prediction, loss=loss),
    )
    assert torch.isfinite(wrong).all()
    assert wrong.max() < (0.1 * (1 + 1 / 0.05)) ** 2 * 1.01


@pytest.mark.parametrize(
    ("prediction", "loss", "t", "factor"),
    [("x0", "epsilon", 0.0, 20), ("x0", "velocity", 0.0, 21), ("epsilon", "velocity", 1.0, 21)],
)
def test_where_a_divisor_vanishes_the_loss_divides_by_a_twentieth(prediction, loss, t, factor):
    x0, noise = torch.randn(2, 1, 4, 6)
    truth = {"x0": x0, "epsilon": noise}[prediction]
    asked = params(path="flow", prediction=prediction, loss=loss)
    wrong = denoising_loss(lambda x_t, t: truth + 0.1, x0, noise, torch.tensor([t]), asked)
    assert wrong.item() == pytest.approx((0.1 * factor) ** 2, rel=1e-3)


def test_the_same_error_costs_the_same_whatever_is_predicted():
    """The loss is on ε or velocity; what the network outputs only changes the notation."""
    x0, noise, wrong = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    level = PATHS["vp-cosine"].level(t, like=x0)
    x_t = level.noisy(x0, noise)
    for loss in ("epsilon", "velocity"):
        values = []
        for prediction in PREDICTIONS:
            output = CONVERSIONS[prediction](x0 + 0.1 * wrong, x_t, level, "x0")
            setting = params(path="vp-cosine", prediction=prediction, loss=loss)
            values.append(denoising_loss(lambda *_, out=output: out, x0, noise, t, setting))
        torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(values[0], values[2], rtol=1e-5, atol=1e-6)


def test_logit_normal_times_have_the_asked_for_mean_and_spread():
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    setting = params(times="logit-normal", times_mean=0.4, times_std=0.8)
    logits = torch.logit(training_times(uniform, setting))
    assert logits.mean().item() == pytest.approx(0.4, abs=1e-3)
    assert logits.std().item() == pytest.approx(0.8, abs=2e-3)
    assert training_times(torch.tensor([0.0, 1.0]), setting).isfinite().all()


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
                        index = (dy * patch + dx) * 3 + c
                        tokens[:, n, index] = images[:, c, y + dy, x + dx]
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
    setting = params(path="vp-linear", prediction="epsilon", loss="epsilon")
    ours = denoising_loss(
        lambda x_t, time: backbone(x_t, positions, time),
        to_tokens(torch.from_numpy(pixels), patch).double(),
        torch.from_numpy(cut(noise)),
        torch.from_numpy(t),
        setting,
    )
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=1e-5)


# The paper's discrete time
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_discrete_paths_are_ddpms(name):
    path = PATHS[f"ddpm-{name}"]
    n = np.arange(1001)
    if name == "linear":
        betas = 1e-4 + (0.02 - 1e-4) * (n[1:] - 1) / 999
    else:
        f = np.cos((n / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    alpha_bar = np.cumprod(1 - betas)
    level = path.level(torch.arange(1, 1001) / 1000)
    np.testing.assert_allclose(level.alpha.square(), alpha_bar, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(level.sigma.square(), 1 - alpha_bar, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_the_discrete_paths_are_those_of_diffusers(name, theirs):
    scheduler = DDPMScheduler(1000, beta_schedule=theirs)
    alpha = PATHS[f"ddpm-{name}"].level(torch.arange(1, 1001) / 1000).alpha
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_discrete_path_is_close_to_its_continuous_one(name):
    t = torch.linspace(0.05, 0.95, 50)
    discrete, continuous = (PATHS[f"{kind}-{name}"].half_log_snr(t) for kind in ("ddpm", "vp"))
    torch.testing.assert_close(discrete, continuous, atol=0.02, rtol=0.01)


def test_discrete_times_are_the_steps_each_as_often():
    setting = params(path="ddpm-linear", prediction="epsilon", loss="epsilon")
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    steps = training_times(uniform, setting) * 1000
    assert torch.equal(steps.round().long().bincount(), torch.tensor([0] + [4] * 1000))
    torch.testing.assert_close(steps, steps.round(), atol=1e-9, rtol=0)
    late = setting.model_copy(update={"times": "logit-normal", "times_mean": 30.0})
    assert torch.equal(training_times(uniform, late), torch.ones(4000, dtype=torch.float64))


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_shift_is_added_to_half_the_log_snr_of_training_times(path):
    setting = params(path=path, times="logit-normal")
    uniform = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    plain, shifted = training_times(uniform, setting), training_times(uniform, setting, 0.7)
    half_log_snr = PATHS[path].half_log_snr
    exact = 0.02 if PATHS[path].steps else 1e-6  # discrete times are rounded up to a step
    difference = half_log_snr(shifted) - half_log_snr(plain)
    assert difference.numpy() == pytest.approx(0.7, abs=exact)
    assert torch.equal(training_times(uniform, setting, None), plain)
