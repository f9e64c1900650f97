"""Paths, predictions and the one loss."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.diffusion.loss import DiffusionParams, denoising_loss, training_times
from maskdm.diffusion.paths import PATHS, add_noise
from maskdm.diffusion.predictions import to_epsilon, to_velocity, to_x0

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


@pytest.mark.parametrize("name", PATHS)
def test_time_1_is_the_noise_end_and_levels_are_monotone(name):
    alpha, sigma = PATHS[name].levels(torch.linspace(0, 1, 101))
    assert (alpha.diff() <= 0).all()
    assert (sigma.diff() >= 0).all()
    assert alpha[0] > 0.9999
    assert sigma[0] < 0.02
    assert alpha[-1] < 0.01
    assert sigma[-1] > 0.9999


@pytest.mark.parametrize("name", PATHS)
def test_levels_satisfy_the_paths_own_sum(name):
    path = PATHS[name]
    alpha, sigma = path.levels(torch.linspace(0.01, 0.99, 50))
    total = alpha**2 + sigma**2 if path.preserves_variance else alpha + sigma
    torch.testing.assert_close(total, torch.ones(50))


def test_vp_linear_is_the_limit_of_the_papers_discrete_steps():
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    discrete = torch.cumprod(1 - beta, 0).sqrt()
    alpha, _ = PATHS["vp-linear"].levels((torch.arange(1000, dtype=torch.float64) + 1) / 1000)
    assert (alpha - discrete).abs().max() < 2e-3


def test_vp_cosine_is_nichol_and_dhariwals():
    t = torch.linspace(0, 0.99, 100, dtype=torch.float64)
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    alpha, _ = PATHS["vp-cosine"].levels(t)
    torch.testing.assert_close(alpha[1:] ** 2, (f / f[0])[1:])


@pytest.mark.parametrize("name", PATHS)
def test_time_is_the_inverse_of_log_snr(name):
    path = PATHS[name]
    t = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    torch.testing.assert_close(path.time(path.log_snr(t)), t, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", PATHS)
def test_velocity_is_the_derivative_of_x_along_its_path(name):
    """Along the angle for VP (dx/dφ, α = cos φ), along time for flow."""
    path = PATHS[name]
    x0, noise = torch.randn(2, 1, 5, dtype=torch.float64)
    t, h = torch.tensor([0.4], dtype=torch.float64), 1e-5
    alpha, sigma = path.levels(t)
    a, b = path.velocity_weights(alpha, sigma)
    difference = add_noise(x0, noise, t + h, path) - add_noise(x0, noise, t - h, path)
    if path.preserves_variance:
        after, before = path.levels(t + h), path.levels(t - h)
        h = (torch.atan2(after[1], after[0]) - torch.atan2(before[1], before[0])) / 2
    torch.testing.assert_close(a * x0 + b * noise, difference / (2 * h), atol=1e-6, rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(PATHS)),
    st.sampled_from(PREDICTIONS),
    st.sampled_from(PREDICTIONS),
    st.floats(0.02, 0.9),
    st.integers(0, 99),
)
def test_conversions_round_trip(name, source, target, time, seed):
    path = PATHS[name]
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    t = torch.full((3,), time, dtype=torch.float64)
    x_t = add_noise(x0, noise, t, path)
    a, b = path.velocity_weights(*(level[:, None, None] for level in path.levels(t)))
    truth = {"x0": x0, "epsilon": noise, "v": a * x0 + b * noise}
    converted = CONVERSIONS[target](truth[source], x_t, t, path, source)
    torch.testing.assert_close(converted, truth[target])
    back = CONVERSIONS[source](converted, x_t, t, path, target)
    torch.testing.assert_close(back, truth[source])


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("loss", ["epsilon", "velocity"])
@pytest.mark.parametrize("name", PATHS)
def test_a_perfect_network_has_no_loss_at_any_time_not_even_the_ends(name, prediction, loss):
    path = PATHS[name]
    x0, noise = torch.randn(2, 9, 4, 6)
    t = torch.tensor([0, 1e-6, 1e-3, 0.02, 0.3, 0.7, 0.99, 1 - 1e-6, 1])
    a, b = path.velocity_weights(*(level[:, None, None] for level in path.levels(t)))
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
    assert wrong.max() < 0.1**2 / 0.05**4


def test_the_same_error_costs_the_same_whatever_is_predicted():
    """The loss is on ε or velocity; what the network outputs only changes how it is told."""
    x0, noise, wrong = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    path = PATHS["vp-cosine"]
    x_t = add_noise(x0, noise, t, path)
    for loss in ("epsilon", "velocity"):
        values = []
        for prediction in PREDICTIONS:
            output = CONVERSIONS[prediction](x0 + 0.1 * wrong, x_t, t, path, "x0")
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
    alpha, sigma = path.levels(torch.arange(1, 1001) / 1000)
    np.testing.assert_allclose(alpha.square(), alpha_bar, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(sigma.square(), 1 - alpha_bar, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_the_discrete_paths_are_those_of_diffusers(name, theirs):
    scheduler = DDPMScheduler(1000, beta_schedule=theirs)
    alpha, _ = PATHS[f"ddpm-{name}"].levels(torch.arange(1, 1001) / 1000)
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_discrete_path_is_close_to_its_continuous_one(name):
    t = torch.linspace(0.05, 0.95, 50)
    discrete, continuous = (PATHS[f"{kind}-{name}"].log_snr(t) for kind in ("ddpm", "vp"))
    torch.testing.assert_close(discrete, continuous, atol=0.02, rtol=0.01)


def test_discrete_times_are_the_steps_each_as_often():
    setting = DiffusionParams(
        path="ddpm-linear",
        prediction="epsilon",
        loss="epsilon",
        times="uniform",
        times_mean=0.0,
        times_std=1.0,
    )
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    steps = training_times(uniform, setting) * 1000
    assert torch.equal(steps.round().long().bincount(), torch.tensor([0] + [4] * 1000))
    torch.testing.assert_close(steps, steps.round(), atol=1e-9, rtol=0)
    late = setting.model_copy(update={"times": "logit-normal", "times_mean": 30.0})
    assert torch.equal(training_times(uniform, late), torch.ones(4000, dtype=torch.float64))
