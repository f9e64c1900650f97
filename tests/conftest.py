"""Tests compute little: on one thread they, and what they start, are faster than on several."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def own_is_registered(monkeypatch):
    """The backbone of docs/own-backbone.md is known as 'own'."""
    from all_backbones import ALL

    from maskdm.backbones.registry import BACKBONES

    monkeypatch.setitem(BACKBONES, "own", ALL["own"])
