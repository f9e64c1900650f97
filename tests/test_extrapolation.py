"""FD∞ against theory: Gaussian features, whose distance to any reference is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import sqrtm

from maskdm.evaluation import extrapolation
from maskdm.evaluation.distances import frechet_distance
from maskdm.evaluation.extrapolation import extrapolated, frechet_limit
from maskdm.evaluation.features.efficientnet import EFFICIENTNET_LITE0
from maskdm.runtime.errors import UserError

FEATURES, SHIFT = 32, 0.2
SPREAD = np.exp(-np.linspace(0, 6, FEATURES))  # variances, which fall as those of real features do
REAL = np.random.default_rng(7).standard_normal((400, FEATURES)).astype(np.float32)


def draw(count, seed):
    """Return samples of N(SHIFT, diag(SPREAD))."""
    noise = np.random.default_rng(seed).standard_normal((count, FEATURES))
    return (SHIFT + noise * np.sqrt(SPREAD)).astype(np.float32)


def truth():
    """Return the distance of the samples' true distribution to the reference, by the formula."""
    covariance = np.cov(REAL.T.astype(np.float64))
    product = sqrtm(covariance @ np.diag(SPREAD)).real
    gap = REAL.mean(axis=0, dtype=np.float64) - SHIFT
    return gap @ gap + np.trace(covariance) + SPREAD.sum() - 2 * np.trace(product)


@pytest.fixture
def few_bootstraps(monkeypatch):
    """Where the interval does not matter."""
    monkeypatch.setattr(extrapolation, "BOOTSTRAPS", 2)


@pytest.mark.parametrize(("count", "left"), [(48, 0.1), (128, 0.0)])
def test_the_bias_of_a_finite_number_of_samples_goes(count, left, few_bootstraps):
    """Over draws the mean is the truth within its error, and ``left`` of the bias."""
    plain = [frechet_distance(draw(count, seed), REAL) for seed in range(40)]
    limits = [frechet_limit(draw(count, seed), REAL)[0] for seed in range(40)]
    error, bias = np.std(limits, ddof=1) / np.sqrt(40), np.mean(plain) - truth()
    assert bias > 10 * error
    assert abs(np.mean(limits) - truth()) < 3 * error + left * bias


def test_the_interval_covers_the_truth_and_shrinks_with_more_samples():
    widths = []
    for count in (64, 512):
        found = [frechet_limit(draw(count, seed), REAL) for seed in range(20)]
        assert sum(low <= truth() <= high for _, (low, high) in found) >= 17  # 95 % are 19
        widths.append(np.mean([high - low for _, (low, high) in found]))
    assert widths[1] < widths[0] / 2
    # Nor is it wider than it has to be: four deviations of the draws, where samples are many.
    deviation = np.std([limit for limit, _ in found], ddof=1)
    assert 1 / 1.6 < widths[1] / (2 * 1.96 * deviation) < 1.6


def test_without_the_term_in_the_square_it_overshoots(monkeypatch, few_bootstraps):
    """What Chong and Forsyth's line does where there are little more samples than features."""
    parabolas = [frechet_limit(draw(48, seed), REAL)[0] for seed in range(60)]
    monkeypatch.setattr(extrapolation, "SPLITS", (2,))
    lines = [frechet_limit(draw(48, seed), REAL)[0] for seed in range(60)]
    error = np.std(lines, ddof=1) / np.sqrt(60)
    assert np.mean(lines) < truth() - 3 * error
    assert abs(np.mean(parabolas) - truth()) < abs(np.mean(lines) - truth())


@pytest.mark.parametrize("count", [20, 32, 200])
def test_a_selection_has_the_frechet_distance_of_its_samples(count):
    samples = draw(200, 3)
    rows = np.random.default_rng(0).integers(0, 200, count)  # some of them several times
    ours = extrapolation._Distances(samples, REAL).distance(rows)
    assert ours == pytest.approx(frechet_distance(samples[rows], REAL), rel=1e-6)


def test_the_same_seed_gives_the_same_number_and_names_follow_the_features():
    small = replace(EFFICIENTNET_LITE0, count=FEATURES)
    found = extrapolated(draw(48, 0), REAL, small)
    assert found == extrapolated(draw(48, 0), REAL, small)
    name = "fd_efficientnet_lite0_infinity"
    assert [*found] == [name, f"{name}_interval"]
    low, high = found[f"{name}_interval"]
    assert low < found[name] < high


@pytest.mark.parametrize(("samples", "real"), [(FEATURES, 400), (48, FEATURES)])
def test_it_is_left_out_where_there_is_no_frechet_distance(samples, real):
    assert (
        extrapolated(draw(samples, 0), REAL[:real], replace(EFFICIENTNET_LITE0, count=FEATURES))
        == {}
    )


def test_one_image_has_no_distance():
    with pytest.raises(UserError, match="at least 2 images"):
        frechet_limit(REAL[:1], REAL)
