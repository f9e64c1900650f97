"""Solvers against the closed form: Gaussian data has a known denoiser."""

import numpy as np
import pytest
import torch

from maskdm.backbones.denoiser import Denoiser
from maskdm.diffusion import PATHS, DiffusionParams, to_epsilon, to_velocity
from maskdm.sampling import (
    LOG_SNR_END,
    SOLVERS,
    SampleParams,
    ddim,
    dpmpp_2m,
    estimates,
    sampling_grid,
)
from maskdm.tokens import to_images

MEAN = torch.tensor([0.2, -0.1, 0.0, 0.1, -0.2, 0.0, 0.05, 0.0])
STD = torch.tensor([0.05, 0.06, 0.08, 0.12, 0.15, 0.2, 0.25, 0.25])
CPU = torch.device("cpu")


class Gaussian(Denoiser):
    """The optimal network for pixels that are N(MEAN, STD²), telling x0, ε or v."""

    def __init__(self, diffusion):
        super().__init__()
        self.diffusion = diffusion

    def forward(self, tokens, positions, time, label=None):
        path, prediction = PATHS[self.diffusion.path], self.diffusion.prediction
        alpha, sigma = (level[:, None, None] for level in path.levels(time.double()))
        x_t = tokens.double()
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x0 = MEAN + gain * (x_t - alpha * MEAN)
        if prediction == "epsilon":
            return to_epsilon(x0, x_t, time.double(), path, "x0")
        if prediction == "v":
            return to_velocity(x0, x_t, time.double(), path, "x0")
        return x0


def diffusion(path="flow", prediction="x0"):
    return DiffusionParams(
        path=path,
        prediction=prediction,
        loss="velocity",
        times="uniform",
        times_mean=0.0,
        times_std=1.0,
    )


def params(solver="dpmpp-2m", nfe=20, eta=0.0, seed=0, count=4):
    return SampleParams(count=count, solver=solver, nfe=nfe, eta=eta, weights="averaged", seed=seed)


def sample(setting, drawing, places=range(2000)):
    for estimate in estimates(Gaussian(setting), setting, drawing, (1, 8), places, CPU):
        last = estimate
    return last[:, 0].double()


def errors(samples):
    """Return the worst error of the standard deviations and of the means, relative to the stds."""
    return (
        (samples.std(0) / STD - 1).abs().max().item(),
        ((samples.mean(0) - MEAN) / STD).abs().max().item(),
    )


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("solver", "eta"), [("dpmpp-2m", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
def test_every_path_prediction_and_solver_reaches_the_mean_and_covariance(
    path, prediction, solver, eta
):
    setting = diffusion(path, prediction)
    coarse, _ = errors(sample(setting, params(solver, 8, eta)))
    fine, mean = errors(sample(setting, params(solver, 64, eta)))
    # 2 000 samples know a standard deviation to 1.6 %, a mean to 2.2 %; σ = 0.01 at the end
    # takes 2 % off the narrowest pixel
    assert fine < {"dpmpp-2m": 0.06, "ddim": 0.11}[solver]
    assert mean < 0.09
    assert fine < coarse / 2


@pytest.mark.parametrize("path", PATHS)
def test_pixels_stay_independent(path):
    setting = diffusion(path)
    correlation = torch.corrcoef(sample(setting, params("ddim", 32, 1.0)).T)
    assert (correlation - torch.eye(8)).abs().max() < 0.08


@pytest.mark.parametrize("path", PATHS)
def test_dpmpp_2m_converges_at_second_order_and_ddim_at_first(path):
    """On one trajectory, against a fine solution: halving the step divides the error by 4, by 2."""
    setting = diffusion(path)

    def end(solver, nfe):
        grid = sampling_grid(PATHS[path], nfe)
        x = torch.linspace(-2, 2, 8, dtype=torch.float64).expand(1, 1, 8) * grid[0].sigma
        network = Gaussian(setting)
        *_, last = SOLVERS[solver](
            lambda x, t: network(x, None, t), x, grid, 0.0, lambda step: None
        )
        return last

    truth = end("dpmpp-2m", 2000)
    for solver, order in (("dpmpp-2m", 2), ("ddim", 1)):
        coarse = (end(solver, 100) - truth).abs().max()
        fine = (end(solver, 200) - truth).abs().max()
        assert 0.7 * 2**order < coarse / fine < 1.5 * 2**order


def test_nfe_is_the_number_of_network_evaluations():
    calls = []

    class Counting(Gaussian):
        def forward(self, *inputs, **named):
            calls.append(1)
            return super().forward(*inputs, **named)

    setting = diffusion()
    for solver in SOLVERS:
        calls.clear()
        yielded = list(
            estimates(Counting(setting), setting, params(solver, 7), (1, 8), range(2), CPU)
        )
        assert len(calls) == len(yielded) == 7


@pytest.mark.parametrize("path", PATHS)
def test_the_grid_is_uniform_in_log_snr_down_to_invisible_noise(path):
    grid = sampling_grid(PATHS[path], 20)
    steps = np.diff([level.log_snr for level in grid])
    np.testing.assert_allclose(steps, steps[0])
    assert grid[0].sigma / grid[0].alpha > 100
    assert grid[-1].log_snr == LOG_SNR_END
    assert grid[-1].sigma < 1.5 / 127.5


@pytest.mark.parametrize(("solver", "eta"), [("dpmpp-2m", 0.0), ("ddim", 1.0)])
def test_a_seed_gives_the_same_image_whatever_the_batch(solver, eta):
    setting, drawing = diffusion(), params(solver, 6, eta, seed=3)
    together = sample(setting, drawing, range(6))
    apart = torch.cat([sample(setting, drawing, part) for part in (range(1), range(1, 6))])
    assert torch.equal(*(to_images(x[:, None].float(), 2, 2) for x in (together, apart)))
    other = sample(setting, params(solver, 6, eta, seed=4), range(6))
    assert not torch.allclose(together, other, atol=0.01)


def test_ddim_without_noise_is_diffusers_first_order_solver():
    """DPM-Solver++ of order 1 in diffusers, its sigmas set by hand to our grid."""
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_dpmsolver_multistep")
    check_against_diffusers(scheduling, ddim, order=1)


def test_dpmpp_2m_is_diffusers_second_order_solver():
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_dpmsolver_multistep")
    check_against_diffusers(scheduling, dpmpp_2m, order=2)


def check_against_diffusers(scheduling, solver, order):
    setting = diffusion("vp-cosine")
    path, network = PATHS["vp-cosine"], Gaussian(setting)
    grid = sampling_grid(path, 12)
    scheduler = scheduling.DPMSolverMultistepScheduler(
        prediction_type="sample",
        solver_order=order,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(len(grid) - 1)
    # diffusers' σ is our σ/α
    scheduler.sigmas = torch.tensor(
        [level.sigma / level.alpha for level in grid], dtype=torch.float64
    )
    x = torch.randn(2, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs = x * grid[0].sigma
    for timestep, level in zip(scheduler.timesteps, grid, strict=False):
        x0 = network(theirs, None, theirs.new_full((2,), level.time))
        theirs = scheduler.step(x0, timestep, theirs).prev_sample
    theirs = network(theirs, None, theirs.new_full((2,), grid[-1].time))
    *_, ours = solver(
        lambda x, t: network(x, None, t), x * grid[0].sigma, grid, 0.0, lambda step: None
    )
    torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_ddim_at_eta_1_adds_the_posteriors_noise(path):
    """The variance of q(x_there | x_here, x0), from conditioning one Gaussian on another."""
    here, there = sampling_grid(PATHS[path], 8)[3:5]
    seen = []

    def denoise(x, time):
        seen.append(x)
        return torch.full_like(x, 0.3)

    x = torch.full((1, 1, 1), 0.7, dtype=torch.float64)
    for noise in (torch.zeros_like(x), torch.ones_like(x)):
        list(ddim(denoise, x, [here, there], 1.0, lambda step, z=noise: z))
    # x_here = r·x_there + √(σ_here² − r²·σ_there²)·z with r = α_here / α_there
    r = here.alpha / there.alpha
    prior, extra = there.sigma**2, here.sigma**2 - (r * there.sigma) ** 2
    variance = prior * extra / (r**2 * prior + extra)
    assert (seen[3] - seen[1]).item() ** 2 == pytest.approx(variance)
    mean = there.alpha * 0.3 + prior * r / (r**2 * prior + extra) * (0.7 - r * there.alpha * 0.3)
    assert seen[1].item() == pytest.approx(mean)
