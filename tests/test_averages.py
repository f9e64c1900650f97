"""Averages of any length from two that were kept on the way (EDM2)."""

import numpy as np
import pytest

from benchmarks.evidence.averages import KEPT_WIDTHS, combination, exponent, products


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_exponents_are_those_of_the_paper(width, gamma):
    assert exponent(width) == pytest.approx(gamma, abs=0.01)


def test_products_are_the_integrals_of_the_profiles():
    rows = np.array([[100.0, 6.94], [60.0, 16.97], [100.0, 2.0]])
    tau = (np.arange(1_000_000) + 0.5) * 1e-4

    def profile(end, gamma):
        return np.where(tau <= end, (gamma + 1) * (tau / end) ** gamma / end, 0.0)

    wanted = [[(profile(*a) * profile(*b)).sum() * 1e-4 for b in rows] for a in rows]
    np.testing.assert_allclose(products(rows, rows), wanted, rtol=1e-3)


def test_an_average_put_together_is_the_one_that_would_have_been_kept():
    random = np.random.default_rng(0)
    walk = np.cumsum(random.standard_normal(800))

    def averages(width):
        kept, average = {}, 0.0
        for step, weight in enumerate(walk, 1):
            beta = (1 - 1 / step) ** (exponent(width) + 1)
            average = beta * average + (1 - beta) * weight
            kept[step] = average
        return kept

    kept = {
        (step, exponent(width)): averages(width)[step]
        for width in KEPT_WIDTHS
        for step in range(50, 801, 50)
    }
    for width in (0.05, 0.08, 0.15, 0.25):
        factors = combination(list(kept), 800, exponent(width))
        assert factors.sum() == pytest.approx(1)  # or the weights would shrink
        made, wanted = factors @ list(kept.values()), averages(width)[800]
        assert made == pytest.approx(wanted, abs=0.3)
