"""The paper's two-dimensional picture: a primer has the marginals, finetuning finds the roll."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from maskdm.diffusion.masking import nothing_masked
from maskdm.examples.heat_maps import DEEPEST, LETTERS, PALEST, RED, heat_maps
from maskdm.examples.swiss_roll import RollBatches, fresh, roll, sample, sliced_wasserstein, train
from maskdm.training.schedule import Leg, Schedule
from stages import swissroll

TRUTH = roll(np.random.default_rng(0).random(2000))


@pytest.fixture(scope="module")
def primer():
    """A network that has begun to learn the marginals."""
    return train(fresh(0), "pretrain", 30, shown=1, seed=0)


def batch(shown, step=3):
    schedule = Schedule((Leg(nothing_masked(1), 10, 500, 1e-3, 0),), 10)
    return RollBatches(schedule, shown, "pretrain", seed=0).at(step)


def test_a_batch_shows_points_of_the_roll_and_each_coordinate_as_often():
    whole = batch(shown=2)
    order = whole.positions.argsort(dim=1).numpy()
    points = np.take_along_axis(whole.tokens[:, :, 0].numpy(), order, axis=1)
    dense = roll(np.linspace(0, 1, 4000))
    assert np.linalg.norm(points[:, None] - dense, axis=2).min(axis=1).max() < 0.002
    assert whole.noise.std() == pytest.approx(1, abs=0.1)
    assert sorted((whole.uniform * 500).int().tolist()) == list(range(500))
    single = batch(shown=1)
    assert single.tokens.shape == (500, 1, 1)
    assert single.positions.float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(batch(shown=1).tokens, single.tokens)
    assert not torch.equal(batch(shown=1, step=4).tokens, single.tokens)


def test_after_masked_pretraining_a_coordinate_knows_nothing_of_the_other(primer):
    """The primer is the product of its marginals, to the bit."""
    here, other = torch.linspace(-1, 1, 9), torch.linspace(1, -1, 9)
    positions, time = torch.arange(2).expand(9, 2), torch.full((9,), 0.4)
    one = primer(torch.stack([here, other], 1)[:, :, None], positions, time)
    two = primer(torch.stack([here, -other], 1)[:, :, None], positions, time)
    assert torch.equal(one[:, 0], two[:, 0])
    finetuned = train(primer, "finetune", 5, shown=2, seed=0)
    one = finetuned(torch.stack([here, other], 1)[:, :, None], positions, time)
    two = finetuned(torch.stack([here, -other], 1)[:, :, None], positions, time)
    assert not torch.allclose(one[:, 0], two[:, 0], atol=1e-4)


@pytest.mark.slow
def test_the_primer_covers_the_roll_and_finetuning_contracts_it():
    primer = train(fresh(0), "pretrain", 300, shown=1, seed=0)
    dense = roll(np.linspace(0, 1, 2000))

    def off(points):
        """Return the mean distance to the roll."""
        return np.linalg.norm(points[:, None] - dense, axis=2).min(axis=1).mean()

    loose = sample(primer, 2000, seed=0)
    assert (np.linalg.norm(dense[::20, None] - loose, axis=2).min(axis=1) < 0.1).all()
    tight = sample(train(primer, "finetune", 200, shown=2, seed=0), 2000, seed=0)
    assert off(tight) < 0.7 * off(loose)
    assert sliced_wasserstein(tight, TRUTH) < sliced_wasserstein(loose, TRUTH)


def test_training_leaves_the_network_it_starts_from_and_the_global_generator_alone(primer):
    before = {name: tensor.clone() for name, tensor in primer.state_dict().items()}
    state = torch.get_rng_state()
    train(primer, "finetune", 2, shown=2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], t) for name, t in primer.state_dict().items())


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection():
    shift = np.array([0.3, -0.4])
    assert sliced_wasserstein(TRUTH, TRUTH) == 0
    # E|⟨d, u⟩| over directions u is 2/π·|d|
    assert sliced_wasserstein(TRUTH, TRUTH + shift) == pytest.approx(0.5 * 2 / np.pi, rel=0.01)


def test_a_heat_map_has_x_to_the_right_and_y_upwards_and_the_line_in_red():
    points = np.full((1000, 2), [0.5, 0.7])
    line = np.array([[-0.8, -0.5], [-0.2, -0.5]])
    picture = np.array(heat_maps([("a", points)], line).convert("RGB")).astype(int)
    top, left, side = 4 * LETTERS - LETTERS // 2, LETTERS, 300

    def colour(x, y):
        return picture[top + round((1 - y) / 2 * side), left + round((x + 1) / 2 * side)]

    assert abs(colour(0.51, 0.71) - DEEPEST).max() < 30
    assert abs(colour(-0.5, 0.7) - PALEST).max() < 3
    assert abs(colour(0.5, -0.7) - PALEST).max() < 3
    assert abs(colour(-0.5, -0.5) - RED).max() < 80
    assert abs(colour(0.5, -0.5) - PALEST).max() < 3


def test_scratch_starts_where_the_primer_did_and_costs_as_much_or_has_as_many_steps(
    tmp_path, monkeypatch
):
    """A masked step, of one of two coordinates, costs half a whole one."""
    monkeypatch.chdir(tmp_path)
    made = []

    def trained(start, phase, steps, shown, seed):
        made.append((start, phase, steps, shown))
        return f"{start} + {steps} {phase}"

    drawn = []
    monkeypatch.setattr(swissroll, "fresh", lambda seed: "fresh")
    monkeypatch.setattr(swissroll, "train", trained)
    monkeypatch.setattr(
        swissroll, "sample", lambda network, *_: drawn.append(network) or np.zeros((9, 2))
    )
    monkeypatch.setattr(swissroll, "heat_maps", lambda *_: Image.new("L", (1, 1)))
    swissroll.learn(masked=10, full=7, samples=9)
    primer = "fresh + 10 pretrain"
    assert made == [
        ("fresh", "pretrain", 10, 1),
        (primer, "finetune", 7, 2),
        ("fresh", "finetune", 12, 2),
        ("fresh", "finetune", 17, 2),
    ]
    assert drawn == [
        *(primer, f"{primer} + 7 finetune"),
        *("fresh + 12 finetune", "fresh + 17 finetune"),
    ]


def test_the_stage_writes_the_figure_and_the_distances(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    swissroll.learn(masked=4, full=2, samples=500)
    assert Image.open("reports/swissroll.png").width > 1000
    distances = json.loads((tmp_path / "reports/swissroll.json").read_text())["sliced_wasserstein"]
    assert 0 < distances["resampled"] < distances["primer"]
