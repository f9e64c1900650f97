"""The arithmetic of the benchmark of evaluation, and that it times what the stages do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.presets import read_preset
from benchmarks.speed import evaluation
from benchmarks.speed.evaluation import bare_pass, correlated, distance_row, features_row
from maskdm.evaluation.features.extraction import FeatureNetwork
from maskdm.evaluation.features.registry import EXTRACTORS

LAPTOP = read_preset("laptop")
seconds = st.floats(1e-3, 1e3)


@given(rate=seconds, share=st.floats(0.1, 1), slower=st.floats(1, 9))
def test_features_are_held_against_the_best_batch_of_the_bare_network(rate, share, slower):
    bare = {4: slower * 4 / rate, 8: 8 / rate, 16: slower * 16 / rate}
    row = features_row(96, 96 / (share * rate), bare)
    assert (row.value, row.limit, row.ratio) == pytest.approx((share * rate, rate, share))
    assert (row.unit, row.goal, row.higher_is_better) == ("images/s", 0.8, True)


@given(least=seconds, times=st.floats(0.5, 9), slower=st.floats(1, 9))
def test_a_distance_is_held_against_the_fastest_eigendecomposition(least, times, slower):
    row = distance_row(times * least, {"one": slower * least, "another": least})
    assert (row.limit, row.ratio) == pytest.approx((least, times))
    assert (row.unit, row.goal, row.higher_is_better) == ("s", 3, False)


@pytest.fixture
def untimed(monkeypatch):
    """Let every measurement run once and take 1 s, 2 s, … in turn."""
    monkeypatch.setattr(evaluation, "timer", lambda call, device: call)

    def once(measurements, least, most):
        results.update({name: call() for name, call in measurements.items()})
        return {name: 1.0 + index for index, name in enumerate(measurements)}

    results = {}
    monkeypatch.setattr(evaluation, "interleaved", once)
    return results


def test_what_is_timed_is_extraction_from_images_of_the_presets_shape(monkeypatch, untimed):
    seen = []

    def mean_colours(batch):
        seen.append(tuple(batch.shape))
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert not torch.is_grad_enabled()
        return batch.mean(dim=(2, 3))

    extractor = replace(EXTRACTORS["efficientnet-lite0"], count=3, side=16)
    network = FeatureNetwork(extractor, mean_colours, torch.device("cpu"), "")
    monkeypatch.setenv("MASKDM_DEVICE", "cpu")
    monkeypatch.setattr(evaluation, "load_network", lambda name, device: network)
    images = evaluation.uniform_noise(evaluation.IMAGES["cpu"], (32, 32, 3),
                                      np.random.default_rng(0))  # fmt: skip
    (row,) = evaluation.features(LAPTOP)
    assert row.value == len(images)
    np.testing.assert_array_equal(untimed["extract"], evaluation.extract(images, network))
    sizes = evaluation.BATCHES["cpu"]
    assert {(size, 3, 16, 16) for size in sizes} <= set(seen)
    assert row.limit == max(size / (2.0 + index) for index, size in enumerate(sizes))


def test_the_bare_network_is_called_and_nothing_else():
    network = FeatureNetwork(
        replace(EXTRACTORS["inception"], side=5), lambda batch: batch, torch.device("cpu"), ""
    )
    call = bare_pass(network, 2)
    assert call() is call()
    assert call().shape == (2, 3, 5, 5)
    assert 0 <= call().min() < 50
    assert 200 < call().max() <= 255


def test_what_is_timed_is_the_distance_of_two_sets_of_the_demos_size(monkeypatch, untimed):
    monkeypatch.setattr(evaluation, "frechet_distance", lambda a, b: (a, b))
    monkeypatch.setattr(evaluation.np.linalg, "eigh", lambda matrix: matrix)
    monkeypatch.setattr(evaluation.torch.linalg, "eigh", lambda matrix: matrix)
    (row,) = evaluation.distance(LAPTOP)
    a, b = untimed["distance"]
    assert a.shape == b.shape == (1500, 1280)
    assert a.dtype == b.dtype == np.float32
    assert not (a == b).any()
    for name in ("torch", "numpy"):
        np.testing.assert_allclose(untimed[name], np.cov(a.astype(np.float64), rowvar=False))
    assert (row.value, row.limit) == (1, 2)


def test_the_features_are_correlated_and_of_full_rank():
    features = correlated(np.random.default_rng(0)).astype(np.float64)
    variances = np.linalg.eigvalsh(np.cov(features, rowvar=False))
    assert variances[0] > 0
    assert variances[-1] > 50 * np.median(variances)
