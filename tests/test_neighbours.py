"""The nearest training images, and whether a model copies them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from maskdm.data.prepared import spread
from maskdm.evaluation import neighbours
from maskdm.evaluation.neighbours import CHUNK, copying, nearest
from stages import neighbours as stage

TRAIN = np.random.default_rng(0).standard_normal((300, 12)).astype(np.float32)


@pytest.mark.parametrize("block", [2, 70, 10_000])  # references at a time; fewer than asked for
def test_nearest_finds_what_a_search_through_all_pairs_finds(block, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    more = CHUNK + 20, 12  # than one chunk
    queries = np.random.default_rng(1).standard_normal(more).astype(np.float32)
    indices, distances = nearest(queries, TRAIN, 3)
    pairs = np.linalg.norm(queries[:, None].astype(float) - TRAIN, axis=2)
    assert np.array_equal(indices, pairs.argsort(axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(pairs, axis=1)[:, :3])


def test_a_copy_is_its_own_nearest_image_at_distance_zero():
    far = TRAIN + 1000  # where |a|² − 2ab + |b|² alone would lose small distances
    indices, distances = nearest(far[:40], far, 1)
    assert np.array_equal(indices[:, 0], np.arange(40))
    assert not distances.any()


@pytest.mark.parametrize(("copied", "ratio", "close"), [(1.0, 0.0, 1.0), (0.0, 1.0, 0.01)])
def test_a_copier_is_told_from_a_model_whose_samples_are_new(copied, ratio, close):
    new, heldout = np.random.default_rng(2).standard_normal((2, 2000, 12)).astype(np.float32)
    samples = TRAIN.repeat(7, axis=0)[:2000] if copied else new
    told = copying(samples, heldout, TRAIN)
    assert told["ratio"] == pytest.approx(ratio, abs=0.02)
    assert told["close"] == pytest.approx(close, abs=0.01)
    assert told["distance_heldout"] > 1
    low, high = told["ratio_null"]
    assert low < 1 < high
    assert (low <= told["ratio"] <= high) == (not copied)
    assert (told["close_null"][0] <= told["close"] <= told["close_null"][1]) == (not copied)
    json.dumps(told)


@pytest.mark.parametrize(("samples", "heldout"), [(40, 200), (200, 40)])
def test_new_samples_are_in_the_null_interval_as_often_as_it_says(samples, heldout):
    """95 % of the time: of 60 draws 57 on average."""
    rng, inside, widths = np.random.default_rng(5), 0, []
    for draw in range(60):
        new, held = (rng.standard_normal((n, 12)).astype(np.float32) for n in (samples, heldout))
        told = copying(new, held, TRAIN, seed=draw)
        low, high = told["ratio_null"]
        inside += low <= told["ratio"] <= high
        widths.append(high - low)
    assert inside >= 52
    _, distances = nearest(held, TRAIN, 1)
    spread = distances.std() / distances.mean() * np.sqrt(1 / samples + 1 / heldout)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_rounding_is_no_scale_of_copying():
    """Held-out images that are training images, up to the rounding of their features."""
    heldout = TRAIN[:40] + np.float32(1e-6)
    told = copying(TRAIN[:40] + 1, heldout, TRAIN)
    assert told["ratio"] is told["ratio_null"] is None
    assert told["distance_heldout"] == 0
    assert told["distance"] > 1


def test_images_are_taken_evenly_over_a_set_that_is_sorted_by_class():
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, 4).tolist() == [0, 1, 2]


def test_beside_a_sample_are_its_nearest_training_images_the_nearest_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = np.stack([np.arange(50), np.zeros(50)], axis=1).astype(np.float32)
    places = np.array([[20.1, 0], [3.4, 0]], np.float32)
    for name, values in {
        "reference/train": line,
        "reference/heldout": line[:9] + 7,
        "samples/samples": np.full((2, 4, 4, 3), [[[[200]]], [[[201]]]], np.uint8),
    }.items():
        path = tmp_path / f"data/{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
    (tmp_path / "params.yaml").write_text("fid: {features: {extractor: efficientnet-lite0}}")
    images = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None, None], (50, 4, 4, 3))
    shown = []
    monkeypatch.setattr(stage, "load_network", lambda name, device: None)
    monkeypatch.setattr(stage, "extract", lambda samples, network, label: places)
    monkeypatch.setattr(stage, "open_prepared", lambda folder: SimpleNamespace(train=images))
    monkeypatch.setattr(stage, "rows", lambda picture, scale: shown.extend(picture))
    monkeypatch.setattr(stage, "save", lambda picture, path: None)
    stage.main()
    assert [row[:, 0, 0, 0].tolist() for _, row in shown] == [
        [200, 20, 21, 19, 22, 18, 23, 17],
        [201, 3, 4, 2, 5, 1, 6, 0],
    ]
    assert [distance for distance, _ in shown] == ["0.1", "0.4"]


def test_the_scale_is_made_of_all_of_the_held_out_images(tmp_path, monkeypatch):
    """Those of the last classes, in a set that is sorted by class, are as far as samples are."""
    monkeypatch.chdir(tmp_path)
    near, far = np.zeros((300, 2), np.float32), np.full((300, 2), 3, np.float32)
    for name, values in {
        "reference/train": np.zeros((50, 2), np.float32),
        "reference/heldout": np.concatenate([near + 1, far]),
        "samples/samples": np.zeros((300, 4, 4, 3), np.uint8),
    }.items():
        path = tmp_path / f"data/{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
    (tmp_path / "params.yaml").write_text("fid: {features: {extractor: efficientnet-lite0}}")
    images = SimpleNamespace(train=np.zeros((50, 4, 4, 3), np.uint8))
    monkeypatch.setattr(stage, "load_network", lambda name, device: None)
    monkeypatch.setattr(stage, "extract", lambda samples, network, label: far)
    monkeypatch.setattr(stage, "open_prepared", lambda folder: images)
    stage.main()
    told = json.loads((tmp_path / "reports/neighbours.json").read_text())
    assert told["heldout"] == stage.MEASURED
    assert told["distance_heldout"] == pytest.approx(np.sqrt(8), rel=0.01)
