"""A small training run: its parameters, its schedule, and the loop with checkpoints around it."""

import os
import signal

import numpy as np
import torch

from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.masking import MaskParams, make_mask, nothing_masked
from maskdm.runtime.execution import Execution
from maskdm.runtime.numerics import numerics
from maskdm.training.batches import Batches
from maskdm.training.checkpoints.checkpointer import Checkpointer
from maskdm.training.checkpoints.fingerprint import digest
from maskdm.training.checkpoints.store import CheckpointStore
from maskdm.training.loop import train
from maskdm.training.phases import PretrainParams
from maskdm.training.previews import Previewer
from maskdm.training.schedule import Leg, Schedule
from maskdm.training.setup import ELSEWHERE
from maskdm.training.state import State
from maskdm.training.validation import HeldOutValidator

CPU = torch.device("cpu")
DIFFUSION = DiffusionParams(
    path="flow", prediction="x0", loss="velocity", times="uniform", times_mean=0.0, times_std=1.0
)
MODEL = ModelParams(backbone="uvit", patch=4, dim=32, depth=3, heads=2, init="spatial")
GRID = 8  # patches a side of 32 pixels

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(40) % 3


def phase(**changes):
    """Return a phase's parameters, six steps of eight images unless changed."""
    values = {
        "steps": 6,
        "batch_size": 8,
        "lr": 1e-3,
        "warmup": 0,
        "cooldown": 0,
        "betas": [0.9, 0.99],
        "weight_decay": 0.0,
        "clip": 1.0,
        "hflip": 0.5,
        "ema_images": 64,
        "precision": "fp32",
        "log_every": 2,
        "validate_every": 100,
        "label_dropout": 0.0,
        "legs": None,
        "full_share": 0.0,
    }
    return PretrainParams(**(values | changes))


def masked(rate, strategy="patch", block_size=2):
    """Return a mask of 8 x 8 patches."""
    return make_mask(MaskParams(strategy=strategy, rate=rate, block_size=block_size), GRID)


def leg(mask, params, steps=None):
    """Return a leg with a phase's batch size and learning rate."""
    return Leg(mask, steps or params.steps, params.batch_size, params.lr, params.warmup)


def whole(params):
    """Return the schedule of a phase on whole images."""
    return Schedule((leg(nothing_masked(GRID), params),), params.steps, params.cooldown)


class Run:
    """Training with checkpoints, as a stage does it.

    Args:
        root: of the checkpoints.
        params: of the phase.
        schedule: of the phase.
        classes: whether images have classes.
        stop: the step after which SIGTERM comes.
        spoil: batches → other batches.
        changed: what else the numerics are, by name.
    """

    def __init__(self, root, params, schedule, classes=False, stop=None, spoil=None, changed=None):
        execution = Execution(CPU, precision=params.precision)
        labels, few = (LABELS, LABELS[:14]) if classes else (None, None)
        backbone = build_backbone(MODEL, 32, 3, 0, 3 if classes else 0)
        self.state = State.start(backbone, params)
        batches = Batches(IMAGES, schedule, 4, 0.5, 0, "test", labels, backbone.classes, 0.2)
        if spoil:
            batches = spoil(batches)
        validator = HeldOutValidator(IMAGES[:14], 4, DIFFUSION, CPU, few)
        recipe = params.model_dump(exclude=ELSEWHERE) | {"classes": classes}
        self.store = CheckpointStore(
            root, "test", lambda step: digest({"recipe": recipe, "run": schedule.prefix(step)})
        )
        self.checkpointer = Checkpointer(
            self.store,
            self.state,
            schedule.steps,
            schedule.branches(),
            numerics(execution) | (changed or {}),
            execution.processes,
        )
        self.computed = -1  # the first is yielded before a step
        with self.checkpointer.watching():
            previewer = Previewer(32, 3, 4, DIFFUSION, CPU, backbone.classes)
            steps = train(self.state, batches, validator, DIFFUSION, params, execution, previewer)
            for step in steps:
                self.computed += 1
                if step == stop:
                    os.kill(os.getpid(), signal.SIGTERM)
                self.checkpointer.after_step()

    def result(self):
        """Return everything that a stage would write."""
        history = self.state.history
        return {
            "tensors": {name: tensor.clone() for name, tensor in self.state.tensors().items()},
            "rows": [vars(row) for row in history.rows(3)],
            "validations": history.validations | history.final,
        }
