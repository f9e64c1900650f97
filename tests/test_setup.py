"""What a checkpoint is named by is all that shapes it."""

import numpy as np
import pytest

from maskdm.backbones.model_folder import ModelConfig
from maskdm.backbones.registry import build_backbone
from maskdm.data.prepared import PreparedSet
from maskdm.runtime.execution import Execution
from maskdm.runtime.sharded import Window
from maskdm.training.setup import set_up
from tests.support.training import CPU, DIFFUSION, MODEL, phase, whole

IMAGES = np.zeros((16, 32, 32, 3), np.uint8)
LABELS = np.arange(16) % 2


def first_fingerprint(
    name="pretrain",
    data="abc",
    start="",
    seed=0,
    model=MODEL,
    diffusion=DIFFUSION,
    classes=0,
    window=None,
    **p,
):
    params = phase(**p)
    schedule = whole(phase())
    labels = LABELS if classes else None
    names = ["a", "b"][:classes] or None
    prepared = PreparedSet(
        train=IMAGES,
        heldout=IMAGES[:7],
        train_labels=labels,
        heldout_labels=None if labels is None else labels[:7],
        size=32,
        channels=3,
        classes=names,
        source="test",
        licence="none",
        skipped=0,
        hash=data,
        window=window,
    )
    config = ModelConfig(
        size=32,
        channels=3,
        classes=dict.fromkeys(names, 8) if names else None,
        seed=seed,
        model=model,
        diffusion=diffusion,
        training=[],
    )
    backbone = build_backbone(model, 32, 3, seed, classes)
    execution = Execution(CPU, precision=params.precision)
    made = set_up(name, backbone, config, prepared, schedule, params, start, execution)
    return made.fingerprint(1)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "finetune"},
        {"data": "abd"},
        {"start": "raw weights of 12"},
        {"seed": 1},
        {"model": MODEL.model_copy(update={"init": "paper"})},
        {"diffusion": DIFFUSION.model_copy(update={"prediction": "v"})},
        {"classes": 2},
        {"window": Window(8, 4)},
        {"window": Window(8, 2)},
        {"hflip": 0.25},
        {"betas": [0.9, 0.95]},
        {"weight_decay": 0.1},
        {"clip": None},
        {"ema_images": 65},
        {"precision": "bf16"},
        {"validate_every": 7},
        {"label_dropout": 0.5},
    ],
    ids=str,
)
def test_whatever_shapes_the_first_step_changes_the_fingerprint(change):
    assert first_fingerprint(**change) != first_fingerprint()
    assert first_fingerprint(**change) == first_fingerprint(**change)


@pytest.mark.parametrize("change", [{"log_every": 5}, {"steps": 5000}])
def test_what_does_not_shape_it_does_not(change):
    assert first_fingerprint(**change) == first_fingerprint()


def test_the_code_that_computes_a_step_is_part_of_it(monkeypatch):
    before = first_fingerprint()
    monkeypatch.setattr("maskdm.training.setup.code_hash", lambda *_: "other code")
    assert first_fingerprint() != before
