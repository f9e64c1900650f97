"""The order of the images of an epoch, all together and in windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.speed.batches import order as plain
from maskdm.runtime.sharded import Window
from maskdm.training import order as module
from maskdm.training.order import Order

windows = st.builds(Window, st.integers(1, 40), st.integers(1, 9))


def test_without_a_window_an_epoch_is_a_permutation_of_all_images():
    order = Order(23, 5, "pretrain")
    for epoch in range(3):
        found = order.indices(23 * epoch, 23 * epoch + 23)
        assert np.array_equal(found, plain(23, 5, "pretrain", epoch))


@given(st.integers(1, 60), windows)
def test_every_epoch_shows_every_image_once(count, window):
    order = Order(count, 0, "pretrain", window)
    for epoch in range(3):
        found = order.indices(count * epoch, count * (epoch + 1))
        assert sorted(found) == list(range(count))


@given(st.integers(1, 60), st.none() | windows, st.data())
def test_any_places_are_those_of_the_whole_order(count, window, data):
    """Whatever was asked before: there is nothing to restore."""
    order = Order(count, 0, "pretrain", window)
    first = data.draw(st.integers(0, 3 * count - 1))
    end = data.draw(st.integers(first + 1, 3 * count))
    whole = order.indices(0, 3 * count)
    assert np.array_equal(order.indices(first, end), whole[first:end])
    assert order.indices(first, end).dtype == np.int64


@given(st.integers(1, 60), windows, st.data())
def test_a_window_has_the_images_of_its_blocks_and_they_are_known_before_it_begins(
    count, window, data
):
    order = Order(count, 0, "pretrain", window)
    place = data.draw(st.integers(0, 2 * count - 1))
    together = -(-window.images // window.block)
    blocks = order.blocks(place)
    assert len(blocks) <= 2 * together
    near = order.indices(place, place + 1 + together * window.block // 2)
    # Windows may be as short as their last block is, so what follows may be in a third one.
    assert near[0] // window.block in blocks[:together]
    if count % window.block == 0 and (count // window.block) % together == 0:
        assert set(near // window.block) <= set(blocks)


def test_epochs_windows_seeds_and_phases_differ():
    window = Window(32, 8)
    orders = [
        Order(64, 0, "pretrain", window).indices(0, 64),
        Order(64, 0, "pretrain", window).indices(64, 128),
        Order(64, 1, "pretrain", window).indices(0, 64),
        Order(64, 0, "finetune", window).indices(0, 64),
        Order(64, 0, "pretrain").indices(0, 64),
    ]
    assert len({tuple(order) for order in orders}) == len(orders)
    first, second = (np.argsort(part) for part in np.split(orders[0], 2))
    assert not np.array_equal(first, second)


def test_images_of_a_window_come_in_any_order():
    """The pairs of neighbours in a block are neighbours no longer."""
    found = Order(4096, 0, "pretrain", Window(1024, 128)).indices(0, 4096)
    assert (np.abs(np.diff(found)) == 1).mean() < 0.01
    assert len(set(found[:1024] // 128)) == 8


@pytest.mark.parametrize("count", [10**6, 10**8])
def test_memory_is_for_windows_not_for_images(count, monkeypatch):
    drawn = []
    real = module.stream

    class Watched:
        def __init__(self, *key):
            self.random = real(*key)

        def permutation(self, of):
            drawn.append(of if isinstance(of, int) else len(of))
            return self.random.permutation(of)

    monkeypatch.setattr(module, "stream", Watched)
    window = Window(65_536, 1365)
    order = Order(count, 9, "memory", window)
    for place in (0, count // 2, count - 1):
        order.indices(place, place + 256)
        order.blocks(place)
    assert max(drawn) <= max(-(-count // 1365), 49 * 1365)
