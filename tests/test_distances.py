"""Fréchet and kernel distances: closed forms, clean-fid's values, and what they cost."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid_fid

from maskdm.evaluation import distances as distances_module
from maskdm.evaluation.distances import (
    covariance_root,
    frechet_distance,
    kernel_distance,
    measure,
    pair_sums,
)
from maskdm.evaluation.features.registry import EXTRACTORS
from maskdm.runtime.errors import UserError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def with_moments(rows: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Move rows to exactly this mean and sample covariance."""
    centred = rows - rows.mean(axis=0)
    whitened = centred @ np.linalg.inv(np.linalg.cholesky(np.cov(centred, rowvar=False))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians_is_the_closed_form(rng):
    """Covariances that commute: tr(Σ₁ + Σ₂ − 2√(Σ₁Σ₂)) = Σ (√λ₁ − √λ₂)²."""
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    spreads = rng.uniform(0.1, 2, (2, 6))
    means = rng.normal(size=(2, 6))
    a, b = (
        with_moments(rng.normal(size=(50, 6)), mean, basis @ np.diag(spread**2) @ basis.T)
        for mean, spread in zip(means, spreads, strict=True)
    )
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((spreads[0] - spreads[1]) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_from_a_single_point_is_its_mean_squared_distance(rng):
    cloud = rng.normal(size=(500, 6))
    point = np.ones((1, 6)).repeat(500, axis=0)
    expected = np.sum((cloud.mean(axis=0) - 1) ** 2) + cloud.var(axis=0, ddof=1).sum()
    assert frechet_distance(point, cloud) == pytest.approx(expected, rel=1e-9)


def clean_fids_frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    moments = (np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy's, of sqrtm's arguments and of zeros
        return cleanfid_fid.frechet_distance(a.mean(axis=0), *moments)


def correlated(rng: np.random.Generator, count: int, features: int) -> np.ndarray:
    """Rows whose principal variances fall off as those of images' features do."""
    spreads = np.arange(1, features + 1) ** -0.5
    rows = rng.normal(size=(count, features)) * spreads
    return (rows @ rng.normal(size=(features, features))).astype(np.float32)


def constant_feature(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a[:, 3] = 0.7
    return a


@pytest.mark.parametrize(
    "change",
    [
        lambda a, b: (a, b),
        lambda a, b: (a[:40], b),
        lambda a, b: (a, b[:2]),
        lambda a, b: (a[:30], b[:20]),
        lambda a, b: (constant_feature(a), b),
        lambda a, b: (constant_feature(a), constant_feature(b) + 1),
        lambda a, b: (a[:50].repeat(4, axis=0), b),
        lambda a, b: (a[:1].repeat(9, axis=0), b),
        lambda a, b: (a, 1000 + b),
    ],
    ids=[
        "full rank", "few rows", "two rows", "few rows on both sides", "a constant feature",
        "the same feature constant in both", "rows that repeat", "a point", "far from zero",
    ],
)  # fmt: skip
def test_frechet_distance_is_that_of_clean_fid(rng, change):
    a, b = change(correlated(rng, 200, 64), correlated(rng, 150, 64))
    expected = clean_fids_frechet_distance(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=2e-7)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=2e-7)


def test_frechet_distance_of_singular_covariances_keeps_the_digits_that_clean_fid_loses(rng):
    """In the subspace that holds both sets the covariances are regular, the distance the same."""
    basis, _ = np.linalg.qr(rng.normal(size=(64, 8)))
    a, b = rng.normal(size=(200, 8)), rng.normal(size=(150, 8)) * 1.01
    inside = frechet_distance(a, b)
    assert frechet_distance(a @ basis.T, b @ basis.T) == pytest.approx(inside, rel=2e-7)
    assert clean_fids_frechet_distance(a, b) == pytest.approx(inside, rel=2e-7)


def test_a_set_is_at_frechet_distance_zero_from_itself(rng):
    a = correlated(rng, 200, 64)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * float(a.var(axis=0).sum()))


@pytest.mark.parametrize(("n", "rows"), [(50, 7), (50, 50), (8, 3), (5, 2), (2, 9)])
def test_the_root_of_a_covariance_is_one_for_any_number_of_rows_at_a_time(
    rng, monkeypatch, n, rows
):
    monkeypatch.setattr(distances_module, "ROWS", rows)
    features = correlated(rng, n, 8) + 5
    root = covariance_root(features).numpy()
    assert root.shape == (min(n, 8), 8)
    expected = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(root.T @ root, expected, rtol=1e-9, atol=1e-12)


def test_a_frechet_distance_never_takes_the_root_of_a_matrix(rng, monkeypatch):
    """The root of a product of covariances is what made it 10 times as slow as need be."""
    import scipy.linalg

    monkeypatch.setattr(scipy.linalg, "sqrtm", None)
    assert frechet_distance(correlated(rng, 20, 8), correlated(rng, 20, 8)) > 0


@pytest.mark.parametrize(("n", "m", "size"), [(20, 5, 5), (5, 20, 5), (20, 30, 8)])
def test_a_frechet_distance_costs_what_its_smaller_set_does(rng, monkeypatch, n, m, size):
    eigenvalues, sizes = torch.linalg.eigvalsh, []
    monkeypatch.setattr(
        torch.linalg, "eigvalsh", lambda matrix: sizes.append(len(matrix)) or eigenvalues(matrix)
    )
    frechet_distance(correlated(rng, n, 8), correlated(rng, m, 8))
    assert sizes == [size]


def test_distances_of_mapped_features_are_those_of_features_in_memory(rng, tmp_path):
    a, b = correlated(rng, 40, 8), correlated(rng, 30, 8)
    np.save(tmp_path / "a.npy", a)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert frechet_distance(mapped, b) == frechet_distance(a, b)
    assert kernel_distance(mapped, b, seed=0) == kernel_distance(a, b, seed=0)


@pytest.mark.parametrize(
    ("subset_size", "block"), [(40, 1024), (40, 7), (9, 1024), (60, 7), (1000, 33)]
)
def test_kernel_distance_is_that_of_clean_fid(rng, monkeypatch, subset_size, block):
    """Subsets of 9 are so few pairs that each is computed for itself."""
    monkeypatch.setattr(distances_module, "BLOCK", block)
    a, b = rng.normal(size=(60, 5)), rng.normal(0.3, 1, size=(80, 5))
    np.random.seed(7)
    expected = [
        cleanfid_fid.kernel_distance(a, b, num_subsets=1, max_subset_size=subset_size)
        for _ in range(10)
    ]
    ours = kernel_distance(a, b, seed=7, subsets=10, subset_size=subset_size)
    assert ours == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-10)


def test_no_value_of_a_kernel_is_computed_twice_where_sets_are_small(rng, monkeypatch):
    computed = []

    def counted(x, y):
        computed.append(len(x) * len(y))
        return kernel(x, y)

    kernel = distances_module.kernel
    monkeypatch.setattr(distances_module, "kernel", counted)
    a, b = rng.normal(size=(60, 5)), rng.normal(size=(80, 5))
    for subsets, size, expected in [(10, 40, 60 * 80), (3, 10, 3 * 10 * 10), (1, 60, 60 * 60)]:
        computed.clear()
        chosen = [np.stack([rng.permutation(len(x))[:size] for _ in range(subsets)])
                  for x in (a, b)]  # fmt: skip
        pair_sums(a, b, *chosen)
        assert sum(computed) == expected


def test_kernel_distance_of_one_subset_of_everything_is_the_unbiased_mmd(rng):
    a, b = rng.normal(size=(12, 4)), rng.normal(0.5, 1, size=(12, 4))
    same = [
        (x @ y / 4 + 1) ** 3 for s in (a, b) for i, x in enumerate(s) for y in np.delete(s, i, 0)
    ]
    across = [(x @ y / 4 + 1) ** 3 for x in a for y in b]
    expected = 2 * np.mean(same) - 2 * np.mean(across)
    value, deviation = kernel_distance(a, b, seed=0)
    assert value == pytest.approx(expected, rel=1e-9)
    assert deviation == 0


def test_halves_of_one_set_are_at_kernel_distance_zero_and_other_sets_are_not(rng):
    def kid(shift):
        """Mean and standard error over independent pairs of sets."""
        values = [
            kernel_distance(
                rng.normal(size=(100, 8)), rng.normal(shift, 1, size=(100, 8)), seed=0, subsets=1
            )[0]
            for _ in range(50)
        ]
        return np.mean(values), np.std(values) / np.sqrt(50)

    mean, error = kid(shift=0)
    assert abs(mean) < 3 * error
    mean, error = kid(shift=0.5)
    assert mean > 20 * error


def test_kernel_distance_depends_on_its_seed_alone_and_leaves_numpys_generator_alone(rng):
    a, b = rng.normal(size=(40, 5)), rng.normal(size=(40, 5))
    np.random.seed(3)
    expected_next = np.random.RandomState(3).random(4)
    first = kernel_distance(a, b, seed=1, subsets=5, subset_size=20)
    assert (np.random.random(4) == expected_next).all()
    assert kernel_distance(a, b, seed=1, subsets=5, subset_size=20) == first
    assert kernel_distance(a, b, seed=2, subsets=5, subset_size=20) != first


def test_a_distance_of_one_image_is_refused(rng):
    one, more = rng.normal(size=(1, 5)), rng.normal(size=(9, 5))
    with pytest.raises(UserError, match=r"kernel distance needs at least 2 images.*not 1 and 9"):
        kernel_distance(one, more, seed=0)
    with pytest.raises(UserError, match=r"Fréchet distance needs at least 2 images.*not 9 and 1"):
        frechet_distance(more, one)


@pytest.mark.parametrize(("n", "m"), [(8, 9), (9, 8), (3, 3)])
def test_without_more_images_than_features_there_is_no_frechet_distance(rng, n, m):
    extractor = replace(EXTRACTORS["efficientnet-lite0"], count=8)
    values = measure(rng.normal(size=(n, 8)), rng.normal(size=(m, 8)), extractor)
    assert values.keys() == {"kid_efficientnet_lite0", "kid_efficientnet_lite0_std"}
    enough = measure(rng.normal(size=(9, 8)), rng.normal(size=(9, 8)), extractor)
    assert enough.keys() - values.keys() == {"fd_efficientnet_lite0"}


def test_distances_carry_six_digits(rng):
    extractor = replace(EXTRACTORS["inception"], count=4)
    values = measure(rng.normal(size=(30, 4)), rng.normal(size=(30, 4)), extractor)
    assert values.keys() == {"fid", "kid", "kid_std"}
    assert all(len(f"{value:.12g}".lstrip("-0.").replace(".", "").split("e")[0]) <= 6
               for value in values.values())  # fmt: skip
