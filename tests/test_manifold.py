"""Precision, recall, density and coverage: what they are defined as, and what they tell."""

import numpy as np
import pytest

from maskdm.evaluation import manifold as module
from maskdm.evaluation.manifold import NEIGHBOURS, expected_coverage, manifold


def normal(count, seed, features=6):
    return np.random.default_rng(seed).standard_normal((count, features)).astype(np.float32)


def by_definition(samples, real, k):
    """One pair at a time, as the papers write it."""

    def gap(a, b):
        return np.linalg.norm(a.astype(float) - b.astype(float))

    def radius(one, among):
        return sorted(gap(one, other) for other in among)[k]  # the nearest is itself

    of_real = [radius(r, real) for r in real]
    of_samples = [radius(s, samples) for s in samples]
    inside = [[gap(r, s) <= ball for s in samples] for r, ball in zip(real, of_real, strict=True)]
    return {
        "precision": np.mean([any(row[j] for row in inside) for j in range(len(samples))]),
        "recall": np.mean(
            [
                any(gap(r, s) <= ball for s, ball in zip(samples, of_samples, strict=True))
                for r in real
            ]
        ),
        "density": np.sum(inside) / (k * len(samples)),
        "coverage": np.mean([any(row) for row in inside]),
    }


@pytest.mark.parametrize("block", [7, 1000])
@pytest.mark.parametrize("k", [1, 5])
def test_they_are_what_their_papers_define(block, k, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    samples, real = normal(40, 1) * 0.7 + 0.3, normal(40, 2)
    told, expected = manifold(samples, real, neighbours=k), by_definition(samples, real, k)
    assert told == pytest.approx(expected, rel=1e-5)
    assert 0 < min(told.values()) < max(told.values())


def test_samples_like_the_real_cover_as_much_as_theory_says():
    """In expectation, for any continuous distribution; here the mean of a few draws."""
    told = [manifold(normal(400, seed), normal(400, 50 + seed)) for seed in range(8)]
    assert np.mean([t["coverage"] for t in told]) == pytest.approx(expected_coverage(400), abs=0.01)
    assert np.mean([t["density"] for t in told]) == pytest.approx(1, abs=0.05)


def test_a_model_that_lost_half_of_the_kinds_has_precision_and_no_recall_there():
    real = normal(600, 3)
    real[::2] += 100
    whole, half = normal(600, 4), normal(600, 4)
    whole[::2] += 100
    assert manifold(half, real)["precision"] > 0.8
    assert manifold(half, real)["recall"] < 0.5
    assert manifold(half, real)["coverage"] < 0.5
    assert manifold(whole, real)["recall"] > 0.8


def test_a_model_of_the_typical_is_dense_and_covers_little():
    told = manifold(normal(600, 5) * 0.3, normal(600, 6))
    assert told["precision"] == 1
    assert told["density"] > 1.5
    assert told["recall"] < 0.3


def test_noise_has_none_of_it():
    assert set(manifold(normal(300, 7) + 100, normal(300, 8)).values()) == {0.0}


def test_copies_are_in_every_ball_whatever_rounding_does():
    real = normal(300, 9) * 30 + 1000
    told = manifold(real, real)
    assert (told["precision"], told["recall"], told["coverage"]) == (1, 1, 1)
    equal = np.ones((60, 6), np.float32)
    assert manifold(equal, equal)["density"] == pytest.approx(60 / NEIGHBOURS)


def test_sets_of_different_sizes_are_brought_to_one(monkeypatch):
    """More real images would shrink the balls, and with them precision."""
    real, samples = normal(900, 10), normal(300, 11)
    told = manifold(samples, real)
    assert told["coverage"] == pytest.approx(expected_coverage(300), abs=0.05)
    assert told == manifold(samples, real)
    assert told != manifold(samples, real, seed=1)
    monkeypatch.setattr(module, "MOST", 100)
    assert manifold(samples, real)["coverage"] == pytest.approx(expected_coverage(100), abs=0.1)


@pytest.mark.parametrize("count", [0, 1, NEIGHBOURS])
def test_too_few_images_have_none(count):
    assert manifold(normal(count, 1), normal(40, 2)) == {}
    assert manifold(normal(40, 1), normal(count, 2)) == {}
    assert len(manifold(normal(NEIGHBOURS + 1, 1), normal(40, 2))) == 4
