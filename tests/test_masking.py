"""Which patches stay visible: exact counts, right shapes, every choice equally likely."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from maskdm.diffusion.masking import MaskParams, describe, make_mask, nothing_masked, patch_wise
from maskdm.runtime.errors import UserError


def params(strategy, rate, block_size=2):
    return MaskParams(strategy=strategy, rate=rate, block_size=block_size)


def draw(mask, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return mask.draw(torch.rand(batch, mask.units, generator=generator))


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 30), st.data())
def test_the_patches_are_those_that_sorting_chooses_also_where_scores_are_equal(
    batch, units, different, data
):
    visible = data.draw(st.integers(1, units))
    scores = np.random.default_rng(units).integers(0, different, (batch, units)) / different
    drawn = torch.from_numpy(scores.astype(np.float32))
    sorted_ = drawn.argsort(dim=1)[:, :visible].sort(dim=1).values
    assert torch.equal(patch_wise(drawn, visible), sorted_)


def test_no_image_has_no_patches():
    assert patch_wise(torch.empty(0, 16), 4).shape == (0, 4)


# MaskDM, section 3, and the authors' code (docs/method.md, "Masks"): G = 16, m = 0.9
@pytest.mark.parametrize(
    ("strategy", "block_size", "visible"),
    [("patch", 1, 26), ("block", 2, 28), ("block", 4, 32), ("crop", 1, 25)],
)
def test_visible_counts_are_those_of_the_paper(strategy, block_size, visible):
    mask = make_mask(params(strategy, 0.9, block_size), grid=16)
    assert mask.visible == visible
    assert draw(mask, 7).shape == (7, visible)


@pytest.mark.parametrize(("rate", "side"), [(0.1, 15), (0.5, 11), (0.9, 5)])
def test_crop_sides_are_those_of_the_authors_code(rate, side):
    assert make_mask(params("crop", rate), grid=16).visible == side**2


@given(st.integers(0, 99), st.sampled_from([2, 4, 5, 8, 10, 16]))
def test_patch_masks_hide_exactly_the_floor_of_rate_times_patches(percent, grid):
    mask = make_mask(params("patch", percent / 100), grid)
    assert grid**2 - mask.visible == percent * grid**2 // 100
    assert mask.rate == 1 - mask.visible / grid**2


@given(
    st.sampled_from(["patch", "block", "crop"]),
    st.floats(0, 0.99),
    st.sampled_from([(4, 1), (4, 2), (8, 2), (8, 4), (6, 3)]),
    st.integers(0, 1000),
)
def test_positions_are_distinct_ascending_and_on_the_grid(strategy, rate, sizes, seed):
    grid, block_size = sizes
    positions = draw(make_mask(params(strategy, rate, block_size), grid), 5, seed)
    assert (positions.diff(dim=1) > 0).all()
    assert positions.min() >= 0
    assert positions.max() < grid**2


def test_every_image_and_every_draw_has_its_own_mask():
    mask = make_mask(params("patch", 0.75), grid=8)
    first, second = draw(mask, 64, seed=0), draw(mask, 64, seed=1)
    assert len(torch.unique(first, dim=0)) == 64
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("strategy", "block_size"), [("patch", 1), ("block", 2), ("block", 4)])
def test_every_patch_is_equally_likely(strategy, block_size):
    draws, grid = 20_000, 8
    mask = make_mask(params(strategy, 0.7, block_size), grid)
    per_patch = np.bincount(draw(mask, draws).flatten().numpy(), minlength=grid**2)
    # one count a unit: the patches of a block are seen together
    block = block_size if strategy == "block" else 1
    units = per_patch.reshape(grid // block, block, grid // block, block)[:, 0, :, 0].flatten()
    kept = mask.visible // block**2
    share = kept / len(units)
    # sampling without replacement: the counts' covariance is n·p·(1−p)·U/(U−1) times a projection
    variance = draws * share * (1 - share) * len(units) / (len(units) - 1)
    chi2 = ((units - draws * share) ** 2).sum() / variance
    assert stats.chi2.sf(chi2, len(units) - 1) > 1e-4


def test_pairs_of_patches_are_equally_likely_too():
    draws, grid = 20_000, 4
    mask = make_mask(params("patch", 0.75), grid)
    positions = draw(mask, draws)
    seen = torch.zeros(draws, grid**2).scatter_(1, positions, 1.0)
    together = (seen.T @ seen)[~torch.eye(grid**2, dtype=torch.bool)]
    expected = draws * mask.visible * (mask.visible - 1) / (grid**2 * (grid**2 - 1))
    assert (together - expected).abs().max() < 5.5 * expected**0.5


def test_every_window_position_of_a_crop_is_equally_likely():
    draws, grid = 20_000, 8
    mask = make_mask(params("crop", 0.7), grid)
    offsets = grid - round(mask.visible**0.5) + 1
    corners, counts = torch.unique(draw(mask, draws)[:, 0], return_counts=True)
    assert len(corners) == offsets**2
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_crops_are_contiguous_squares():
    grid = 8
    mask = make_mask(params("crop", 0.7), grid)
    side = round(mask.visible**0.5)
    for positions in draw(mask, 200):
        rows, columns = positions // grid, positions % grid
        assert rows.max() - rows.min() == side - 1
        assert columns.max() - columns.min() == side - 1
        assert len(positions) == side**2


def test_blocks_are_whole_and_aligned():
    grid, size = 8, 4
    mask = make_mask(params("block", 0.5, size), grid)
    for positions in draw(mask, 100):
        block = (positions // grid // size) * (grid // size) + positions % grid // size
        _, counts = torch.unique(block, return_counts=True)
        assert (counts == size**2).all()


@pytest.mark.parametrize("grid", range(2, 65))
def test_the_largest_uniform_number_still_gives_a_window_on_the_grid(grid):
    """float32 never rounds (1 − 2⁻²⁴)·n up to n."""
    largest = np.nextafter(np.float32(1), np.float32(0))
    positions = make_mask(params("crop", 0.5), grid).draw(torch.tensor([[largest]]))
    assert positions.max() == grid**2 - 1


def test_nothing_masked_shows_all_patches_in_order():
    mask = nothing_masked(4)
    assert mask.rate == 0
    assert torch.equal(draw(mask, 2), torch.arange(16).expand(2, 16))


def test_a_block_size_that_does_not_divide_the_grid_is_refused_with_what_is_allowed():
    with pytest.raises(UserError, match=r"block_size is 3.*8×8.*Allowed here: 1, 2, 4, 8"):
        make_mask(params("block", 0.5, 3), grid=8)


@pytest.mark.parametrize("rate", [0.7, 0.75])
def test_a_rate_that_the_grid_cannot_express_says_so(rate):
    # both are the same 4×4 window; 0.75 is exact, 0.7 is five points off
    line = describe(make_mask(params("crop", rate), grid=8))
    assert "16 of 64 patches visible" in line
    assert ("cannot express" in line) == (rate == 0.7)


@pytest.mark.parametrize("strategy", ["patch", "block", "crop"])
def test_a_rate_that_leaves_nothing_visible_is_refused(strategy):
    params = MaskParams(strategy=strategy, rate=1 - 1e-12, block_size=2)
    sentence = r"mask\.rate is 0\.9+, which leaves nothing visible on the 8×8"
    with pytest.raises(UserError, match=sentence):
        make_mask(params, 8)
