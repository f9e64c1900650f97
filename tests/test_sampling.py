"""Solvers against the closed form: Gaussian data has a known denoiser."""

from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from pydantic import ValidationError

from maskdm.backbones.denoiser import Denoiser
from maskdm.diffusion.paths import PATHS
from maskdm.diffusion.reverse import HALF_LOG_SNR_END, sampling_grid
from maskdm.diffusion.tokens import to_images
from maskdm.runtime.errors import UserError
from maskdm.sampling.guidance import Guidance, X0Network, x0_denoiser
from maskdm.sampling.sampler import (
    INTERVALS,
    RANGES,
    SampleParams,
    check_sampling,
    draw_labels,
    estimates,
    starting_noise,
)
from maskdm.sampling.solvers import SOLVERS, ddim, dpmpp_2m, unipc
from tools.tables import pages
from tools.tables.solvers import (
    GaussianDenoiser,
    draw,
    errors,
    setting,
    uniform_in_time,
    worst_error,
)

CPU = torch.device("cpu")
EVERY_PATH = pytest.mark.parametrize("path", PATHS)


def cases(*predictions):
    """Return paths, predictions, solvers; of hundreds of evaluations a few cases only are fast."""
    found = []
    for path, prediction, solver in product(PATHS, predictions, SOLVERS):
        fast = SOLVERS[solver].nfe < 100 or (path, prediction) == ("flow", "x0")
        found.append(pytest.param(path, prediction, solver, marks=() if fast else pytest.mark.slow))
    return found


def params(solver="dpmpp-2m", nfe=20, eta=0.0, seed=0, count=4, **guidance):
    values = {"guidance_scale": 1.0, "guidance_interval": [0.0, 1.0]} | guidance
    return SampleParams(
        count=count, solver=solver, nfe=nfe, eta=eta, weights="averaged", seed=seed, **values
    )


def sample(diffusion, drawing, indices, **given):
    network = GaussianDenoiser(diffusion)
    *_, last = estimates(network, diffusion, drawing, (1, 8), indices, CPU, **given)
    return last[:, 0].double()


@pytest.mark.parametrize(("path", "prediction", "solver"), cases("x0", "epsilon", "v"))
def test_every_solver_offered_reaches_the_closed_form_at_its_recommended_nfe(
    path, prediction, solver
):
    deviation, mean = errors(path, prediction, solver)
    # 8 000 samples know a standard deviation to 0.8 %, a mean to 1.1 %; σ = 0.01 at the end takes
    # 2 % off the narrowest pixel
    assert deviation < 0.06
    assert mean < 0.06


@pytest.mark.slow
def test_the_tables_in_the_documentation_are_these_errors():
    page = Path("docs/solvers.md").read_text()
    assert pages.filled(page) == page, "python -m tools.tables.pages writes them anew"


@pytest.mark.parametrize(("path", "prediction", "solver"), cases("x0"))
def test_fewer_evaluations_are_worse(path, prediction, solver):
    nfe = SOLVERS[solver].nfe // 5 | 1
    coarse = sampling_grid(PATHS[path], SOLVERS[solver].levels(nfe))
    few = worst_error(draw(setting(path, prediction), solver, coarse))
    many, _ = errors(path, prediction, solver)
    assert many < 0.5 * few


@EVERY_PATH
def test_the_papers_grid_misses_the_closed_form_which_is_why_it_is_not_offered(path):
    assert worst_error(draw(setting(path), "ddpm", uniform_in_time(path, 250))) > 0.06


@EVERY_PATH
def test_pixels_stay_independent(path):
    correlation = torch.corrcoef(draw(setting(path), "ddpm", sampling_grid(PATHS[path], 32)).T)
    assert (correlation - torch.eye(8)).abs().max() < 0.06


@EVERY_PATH
def test_dpmpp_2m_and_heun_converge_at_second_order_and_ddim_at_first(path):
    """From one noise, against a fine solution: halving the step divides the error by 4, by 2."""
    network = GaussianDenoiser(setting(path))

    def end(solver, levels):
        grid = sampling_grid(PATHS[path], levels)
        x = torch.linspace(-2, 2, 8, dtype=torch.float64).expand(1, 1, 8) * grid[0].sigma
        *_, last = SOLVERS[solver].solve(
            lambda x, t: network(x, None, t), x, grid, 0.0, lambda step: None
        )
        return last

    truth = end("dpmpp-2m", 2000)
    for solver, order in (("dpmpp-2m", 2), ("heun", 2), ("ddim", 1)):
        coarse = (end(solver, 100) - truth).abs().max()
        fine = (end(solver, 200) - truth).abs().max()
        assert 0.7 * 2**order < coarse / fine < 1.5 * 2**order


def test_nfe_is_the_number_of_network_evaluations():
    calls = []

    class Counting(GaussianDenoiser):
        def forward(self, *inputs, **named):
            calls.append(1)
            return super().forward(*inputs, **named)

    network = Counting(setting("flow"))
    for solver in SOLVERS:
        calls.clear()
        yielded = list(
            estimates(network, network.diffusion, params(solver, 7), (1, 8), range(2), CPU)
        )
        assert len(calls) == 7
        assert len(yielded) == SOLVERS[solver].levels(7)


@EVERY_PATH
def test_the_grid_is_uniform_in_half_log_snr_down_to_invisible_noise(path):
    grid = sampling_grid(PATHS[path], 20)
    steps = np.diff([level.half_log_snr for level in grid])
    np.testing.assert_allclose(steps, steps[0])
    assert grid[0].ratio > 100
    assert grid[-1].half_log_snr == HALF_LOG_SNR_END
    assert grid[-1].sigma < 1.5 / 127.5


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_seed_gives_the_same_image_whatever_the_batch(solver):
    drawing = params(solver, 7, float(solver == "ddim"), seed=3)
    together = sample(setting("flow"), drawing, range(6))
    apart = torch.cat([sample(setting("flow"), drawing, part) for part in (range(1), range(1, 6))])
    assert torch.equal(*(to_images(x[:, None].float(), 2, 2) for x in (together, apart)))
    other = sample(setting("flow"), drawing.model_copy(update={"seed": 4}), range(6))
    assert not torch.allclose(together, other, atol=0.01)


def test_sampling_may_start_from_given_noise():
    start = starting_noise(0, (1, 8), range(5, 8))
    given = sample(setting("flow"), params(), range(3), start=start)
    torch.testing.assert_close(given, sample(setting("flow"), params(), range(5, 8)))


def test_ddim_without_noise_is_diffusers_first_order_solver():
    """DPM-Solver++ of order 1 in diffusers, its sigmas set by hand to our grid."""
    check_against_diffusers(ddim, order=1)


def test_dpmpp_2m_is_diffusers_second_order_solver():
    check_against_diffusers(dpmpp_2m, order=2)


def check_against_diffusers(solver, order):
    path, network = PATHS["vp-cosine"], GaussianDenoiser(setting("vp-cosine"))
    grid = sampling_grid(path, 12)
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="sample",
        solver_order=order,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(len(grid) - 1)
    # diffusers' σ is our σ/α
    scheduler.sigmas = torch.tensor([level.ratio for level in grid], dtype=torch.float64)
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


@EVERY_PATH
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


class TwoClasses(Denoiser):
    """The optimal network for pixels that are N(±0.5, 0.1²) by class, half of each."""

    classes = 2

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, tokens, positions, time, label=None):
        self.batches.append(len(tokens))
        level = PATHS["flow"].level(time, like=tokens)
        alpha, sigma = level.alpha, level.sigma
        means = torch.tensor([0.5, -0.5])
        spread = (alpha * 0.1) ** 2 + sigma**2
        each = [m + alpha * 0.01 / spread * (tokens - alpha * m) for m in means]
        fits = torch.stack([-((tokens - alpha * m) ** 2) / (2 * spread) for m in means])
        shares = fits.sum(dim=-1, keepdim=True).softmax(dim=0)
        either = shares[0] * each[0] + shares[1] * each[1]
        chosen = [each[0], each[1], either]
        return torch.stack([chosen[c][i] for i, c in enumerate(label.tolist())])


def by_class(labels, network=None, **guidance):
    drawing, indices = params("dpmpp-2m", 30, **guidance), range(len(labels))
    network = network or TwoClasses()
    *_, last = estimates(
        network, setting("flow"), drawing, (1, 4), indices, CPU, labels=torch.tensor(labels)
    )
    return last[:, 0]


def test_without_guidance_samples_are_of_their_class_and_the_network_is_called_once():
    network = TwoClasses()
    images = by_class([0, 1] * 100, network)
    assert network.batches == [200] * 30
    for label, mean in enumerate((0.5, -0.5)):
        assert images[label::2].mean() == pytest.approx(mean, abs=0.02)
        assert images[label::2].std() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(images, by_class([0, 1] * 100, guidance_interval=[0.2, 0.4]))


def test_the_null_label_gives_both_classes():
    images = by_class([2] * 300)
    assert (images.mean(dim=1) > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    torch.testing.assert_close(images, by_class([0] * 300, guidance_scale=0.0))


def test_guidance_is_the_weighted_difference_of_two_estimates_within_its_interval():
    network, x = TwoClasses(), torch.randn(3, 1, 4)
    labels, null = torch.tensor([0, 1, 0]), torch.tensor([2, 2, 2])

    def estimate(time, labels, **guided):
        denoise = x0_denoiser(X0Network(network, setting("flow")), labels, Guidance(**guided))
        return denoise(x, torch.full((3,), time))

    for time in (0.3, 0.6):
        conditional, unconditional = estimate(time, labels), estimate(time, null)
        guided = estimate(time, labels, scale=3.0, interval=(0.5, 0.8))
        mixed = (unconditional + 3 * (conditional - unconditional)).clamp(-1, 1)
        expected = conditional if time == 0.3 else mixed
        torch.testing.assert_close(guided, expected)


def test_guidance_pushes_samples_away_from_the_other_class():
    plain, guided = by_class([0] * 300), by_class([0] * 300, guidance_scale=4.0)
    assert guided.mean() > plain.mean() + 0.02


def test_labels_are_drawn_as_often_as_training_saw_them():
    labels = draw_labels([300, 0, 100], 0, range(4000))
    shares = torch.bincount(labels, minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.0, 0.25]), atol=0.03, rtol=0)
    assert torch.equal(labels[10:20], draw_labels([300, 0, 100], 0, range(10, 20)))
    assert not torch.equal(labels, draw_labels([300, 0, 100], 1, range(4000)))


@pytest.mark.parametrize(
    ("drawing", "conditional", "sentence"),
    [
        (params("dpmpp-2m", eta=0.5), False, r"eta is 0\.5, but dpmpp-2m adds no noise.*ddim"),
        (params("ddpm", eta=0.5), False, r"ddpm always adds all of its noise"),
        (params("heun", nfe=20), False, r"nfe is 20, but heun makes two.*odd number, 19 or 21\."),
        (params("heun", nfe=2), False, r"nfe is 2, but heun makes two.*odd number, 3\."),
        (params(guidance_scale=2.0), False, r"guidance_scale is 2.*without classes.*set it to 1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(drawing, conditional, sentence):
    with pytest.raises(UserError, match=sentence):
        check_sampling(drawing, conditional)
    check_sampling(params(guidance_scale=2.0), conditional=True)
    check_sampling(params("ddim", eta=0.5), conditional=False)


def test_every_number_of_the_section_has_its_range_and_is_held_to_it():
    numbers = {
        name
        for name, field in SampleParams.model_fields.items()
        if field.annotation in (int, float, tuple[float, float])
    }
    assert numbers == {*RANGES, *INTERVALS}
    plain = params().model_dump()
    for name in numbers:
        low, high = RANGES.get(name, (0, 1))
        for value in (low, high, low - 1, high + 1, True):
            changed = plain | {name: [value, value] if name in INTERVALS else value}
            fits = value is not True and low <= value <= high
            with nullcontext() if fits else pytest.raises(ValidationError):
                SampleParams.model_validate(changed)


def test_unipc_is_the_same_on_every_path_since_it_sees_the_same_problem():
    ends = [draw(setting(path), "unipc", sampling_grid(PATHS[path], 30)) for path in PATHS]
    for end in ends[1:]:
        assert (end.std(0) / ends[0].std(0) - 1).abs().max() < 0.01
    assert SOLVERS["unipc"].solve is unipc
