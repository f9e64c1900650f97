"""A batch is a function of seed, phase, step and index, and of nothing that was drawn before."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.speed.batches import generator, sample_by_sample
from maskdm.diffusion.masking import MaskParams, make_mask, nothing_masked
from maskdm.diffusion.randomness import stream, streams
from maskdm.diffusion.tokens import to_images, to_tokens
from maskdm.runtime.sharded import ShardedArray, Shards
from maskdm.training import resident as resident_images
from maskdm.training.batches import Batch, Batches
from maskdm.training.resident import ResidentImages, resident
from maskdm.training.schedule import Leg, Schedule

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)
MASK = make_mask(MaskParams(strategy="patch", rate=0.5, block_size=1), grid=4)
SPARSE = make_mask(MaskParams(strategy="patch", rate=0.5, block_size=1, scope="middle"), grid=4)


GREY = IMAGES[..., :1].copy()


def batches(mask=MASK, batch_size=6, **changes):
    leg = Leg(mask, steps=1000, batch_size=batch_size, lr=1.0, warmup=0)
    values = {
        "images": IMAGES,
        "schedule": Schedule((leg,), 1000),
        "patch": 2,
        "hflip": 0.5,
        "seed": 0,
        "phase": "pretrain",
    }
    return Batches(**(values | changes))


def test_a_step_gives_the_same_batch_whatever_was_drawn_before():
    fresh = batches().at(5)
    used = batches()
    for step in (0, 9, 3):
        used.at(step)
    assert fresh.labels is None
    again = used.at(5)
    assert all(torch.equal(a, b) for a, b in zip(fresh[:4], again[:4], strict=True))


@pytest.mark.parametrize("change", [{"seed": 1}, {"phase": "finetune"}])
def test_seed_and_phase_change_everything_that_is_random(change):
    one, other = batches(hflip=0.0).at(0), batches(hflip=0.0, **change).at(0)
    assert not torch.equal(one.noise, other.noise)
    assert not torch.equal(one.positions, other.positions)
    assert not torch.equal(one.uniform, other.uniform)
    assert not np.array_equal(batches().indices(0), batches(**change).indices(0))


MASKS = {
    "none": nothing_masked(4),
    "patch": MASK,
    "block": make_mask(MaskParams(strategy="block", rate=0.5, block_size=2), grid=4),
    "crop": make_mask(MaskParams(strategy="crop", rate=0.5, block_size=1), grid=4),
    "middle": SPARSE,
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("batch_size", [1, 6, 60])
@pytest.mark.parametrize("hflip", [0.0, 0.5, 1.0])
def test_batches_are_to_the_bit_those_made_plainly_sample_by_sample(mask, batch_size, hflip):
    labels = np.arange(23)
    one = batches(mask, batch_size, hflip=hflip, labels=labels, classes=23, label_dropout=0.3)
    for step in (0, 1, 7, 500):
        for part in (slice(None), slice(2, 5)):
            made, plain = one.at(step, part), sample_by_sample(one, step, part)
            for name, tensor in plain._asdict().items():
                own = getattr(made, name)
                assert (own is None) == (tensor is None), name
                if tensor is not None:
                    assert own.dtype == tensor.dtype, name
                    assert own.shape == tensor.shape, name
                    assert own.numpy().tobytes() == tensor.numpy().tobytes(), name


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("images", [IMAGES, GREY], ids=["colours", "grey"])
@pytest.mark.parametrize("part", [slice(None), slice(2, 5), slice(0, 0)])
def test_batches_of_a_resident_set_are_the_same_to_the_bit(mask, images, part, monkeypatch):
    monkeypatch.setattr(resident_images, "AT_ONCE", 5 * images[0].nbytes)  # not a divisor of all
    there = ResidentImages(images, CPU)
    assert len(there) == len(images)
    for step in (0, 500):
        made = batches(mask, 60, images=there).at(step, part)
        for name, tensor in batches(mask, 60, images=images).at(step, part)._asdict().items():
            own = getattr(made, name)
            assert (own is None) == (tensor is None), name
            if tensor is not None:
                assert own.dtype == tensor.dtype, name
                assert own.numpy().tobytes() == tensor.numpy().tobytes(), name


def test_a_set_is_resident_where_it_fits(monkeypatch):
    assert resident(IMAGES, CPU) is IMAGES  # it is as near in the memory map
    monkeypatch.setattr(resident_images, "room", lambda device: IMAGES.nbytes)
    there = resident(IMAGES, CPU)
    assert torch.equal(there.pixels, torch.from_numpy(IMAGES))
    monkeypatch.setattr(resident_images, "room", lambda device: IMAGES.nbytes - 1)
    assert resident(IMAGES, CPU) is IMAGES
    sharded = ShardedArray(Shards("s3://nowhere", 10, ["0" * 64] * 3), IMAGES.shape)
    monkeypatch.setattr(resident_images, "room", lambda device: 10**12)
    assert resident(sharded, CPU) is sharded


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_a_generator_that_is_moved_on_draws_what_one_of_the_sample_alone_draws(seed):
    """Whatever was left over in it: halves of a 64-bit draw, numbers that were drawn ahead."""
    samples = [5, 0, 2**32, 5]
    for sample, random in zip(samples, streams(seed, "p", 3, samples), strict=True):
        for alone in (generator(seed, "p", 3, sample), stream(seed, "p", 3, sample)):
            state = random.bit_generator.state
            kinds = (np.float32, np.float32, np.float32, np.float64)
            drawn = [random.random(dtype=kind) for kind in kinds]
            assert drawn == [alone.random(dtype=kind) for kind in kinds]
            assert random.standard_normal() == alone.standard_normal()
            random.bit_generator.state = state
        random.random(3, dtype=np.float32)  # an odd number of halves


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order():
    seen = np.concatenate([batches(batch_size=5).indices(step) for step in range(23 * 2 // 5 + 1)])
    first, second = seen[:23], seen[23:46]
    assert sorted(first) == sorted(second) == list(range(23))
    assert list(first) != list(second)


def test_a_batch_may_be_larger_than_the_set():
    assert len(batches(batch_size=60).at(1).tokens) == 60


def test_the_order_of_images_does_not_depend_on_the_batch_size():
    by_six = np.concatenate([batches(batch_size=6).indices(step) for step in range(4)])
    by_eight = np.concatenate([batches(batch_size=8).indices(step) for step in range(3)])
    assert np.array_equal(by_six, by_eight)


@pytest.mark.parametrize("hflip", [0.0, 1.0])
@pytest.mark.parametrize("mask", [None, nothing_masked(4)])
def test_tokens_are_the_visible_patches_of_the_images(hflip, mask):
    one = batches(hflip=hflip, **({"mask": mask} if mask else {}))
    batch = one.at(2)
    images = torch.from_numpy(IMAGES[one.indices(2)])
    whole = to_tokens(images.flip(2) if hflip else images, 2)
    positions = batch.positions[:, :, None].expand(-1, -1, whole.shape[2])
    assert torch.equal(batch.tokens, whole.gather(1, positions))


def test_flipping_mirrors_about_the_asked_for_share_of_images():
    one, whole = batches(batch_size=200, mask=nothing_masked(4)), []
    for hflip in (0.0, 1.0, 0.5):
        batch = batches(batch_size=200, mask=nothing_masked(4), hflip=hflip).at(0)
        whole.append(to_images(batch.tokens, 2, 3).numpy())
    plain, mirrored, half = whole
    assert np.array_equal(plain, IMAGES[one.indices(0)])
    assert np.array_equal(mirrored, plain[:, :, ::-1])
    share = np.mean([np.array_equal(a, b) for a, b in zip(half, mirrored, strict=True)])
    assert 0.38 < share < 0.62


def test_times_are_uniform_and_spread_evenly_over_a_batch():
    uniform = batches(batch_size=64).at(3).uniform.sort().values
    assert uniform.diff().sub(1 / 64).abs().max() < 1e-6
    shifts = torch.stack([batches(batch_size=4).at(step).uniform[0] for step in range(400)])
    assert abs(shifts.mean() - 0.5) < 0.05
    assert shifts.min() < 0.02
    assert shifts.max() > 0.98


def test_noise_is_standard_normal_and_independent_between_samples_and_steps():
    one = batches(batch_size=64, mask=nothing_masked(4))
    noise = torch.stack([one.at(step).noise.flatten(1) for step in range(4)]).flatten(0, 1)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    correlation = torch.corrcoef(noise) - torch.eye(len(noise))
    assert correlation.abs().max() < 5.5 / noise.shape[1] ** 0.5


def test_streams_of_neighbouring_counters_do_not_overlap():
    draws = [
        tuple(stream(seed, purpose, step, sample).integers(0, 2**62, 8))
        for seed in (0, 1)
        for purpose in ("a", "b")
        for step in (0, 1)
        for sample in (0, 1)
    ]
    assert len({number for row in draws for number in row}) == 16 * 8


def test_tokens_and_images_are_inverse_to_each_other():
    images = torch.from_numpy(IMAGES)
    assert torch.equal(to_images(to_tokens(images, 2), 2, 3), images)
    first = to_tokens(images, 4)[0, 1]  # top right patch: rows 0-3, columns 4-7
    torch.testing.assert_close(first, images[0, :4, 4:].flatten().float() / 127.5 - 1)


def test_the_batch_follows_the_schedule_and_no_image_is_skipped_where_it_grows():
    few = make_mask(MaskParams(strategy="patch", rate=0.75, block_size=1), grid=4)
    legs = (Leg(few, 3, batch_size=8, lr=1.0, warmup=0), Leg(MASK, 3, 4, 1.0, 0))
    one = batches(schedule=Schedule(legs, 6))
    shapes = [tuple(one.at(step).positions.shape) for step in range(6)]
    assert shapes == [(8, 4)] * 3 + [(4, 8)] * 3
    seen = np.concatenate([one.indices(step) for step in range(6)])
    assert sorted(seen[:23]) == list(range(23))


def test_labels_are_those_of_the_images_and_some_are_dropped():
    labels = np.arange(23)
    kept = batches(batch_size=400, labels=labels, classes=23)
    assert np.array_equal(kept.at(0).labels, labels[kept.indices(0)])
    some = batches(batch_size=400, labels=labels, classes=23, label_dropout=0.3).at(0).labels
    dropped = some == 23
    assert 0.22 < dropped.float().mean() < 0.38
    assert np.array_equal(some[~dropped], labels[kept.indices(0)][~dropped])
    everything_else = kept.at(0)[:4]
    plain = batches(batch_size=400).at(0)[:4]
    assert all(torch.equal(a, b) for a, b in zip(everything_else, plain, strict=True))


@given(st.integers(0, 6), st.integers(0, 6))
def test_a_part_of_a_batch_is_those_samples_of_each_of_its_tensors(first, last):
    """It is also what a process makes that makes these samples alone."""
    labels, part = np.arange(23), slice(first, last)
    whole = batches(SPARSE, labels=labels, classes=23, label_dropout=0.3)
    batch = whole.at(3)
    taken = batch.part(part)
    assert type(taken) is Batch
    assert len(taken.uniform) == max(0, last - first)
    for name, made in whole.at(3, part)._asdict().items():
        assert torch.equal(getattr(taken, name), getattr(batch, name)[part]), name
        assert torch.equal(getattr(taken, name), made), name


def test_a_part_of_a_batch_without_labels_has_none():
    assert batches().at(0).part(slice(2)).labels is None


def test_what_is_sent_to_a_gpu_is_pinned_and_shares_no_memory_between_rows(monkeypatch):
    """Torch refuses to pin whole images' positions, which are one row seen many times."""
    pinned, sent = [], []

    def pin(tensor):
        pinned.append(tensor)
        return tensor

    def to(tensor, device, non_blocking=False):
        sent.append((device.type, non_blocking))
        return tensor

    batch = batches(mask=nothing_masked(4)).at(0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    batch.to(torch.device("cuda"))
    assert len(pinned) == 4
    assert all(tensor.is_contiguous() for tensor in pinned)
    assert sent == [("cuda", True)] * 4


def test_with_the_scope_middle_all_patches_are_given_and_the_middle_sees_the_visible():
    batch, masked = batches(SPARSE).at(3), batches().at(3)
    assert batch.tokens.shape == batch.noise.shape == (6, 16, 12)
    assert torch.equal(batch.positions, torch.arange(16).expand(6, 16))
    assert torch.equal(batch.middle, masked.positions)  # drawn as the mask of the image is
    assert masked.middle is None
    assert batch.part(slice(2, 4)).middle.shape == (2, 8)
    assert (SPARSE.shown, SPARSE.in_middle) == (16, 8)
    assert (MASK.shown, MASK.in_middle) == (8, None)
