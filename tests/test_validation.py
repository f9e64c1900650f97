"""Validation: an error that means the same on every path, from images all over a set."""

import numpy as np
import pytest
import torch

from maskdm.backbones.registry import build_backbone
from maskdm.diffusion.paths import PATHS
from maskdm.diffusion.predictions import to_epsilon, to_velocity, to_x0
from maskdm.diffusion.tokens import to_tokens
from maskdm.runtime.execution import Execution
from maskdm.training import ema
from maskdm.training.loop import validate
from maskdm.training.state import State
from maskdm.training.validation import BATCH, HALF_LOG_SNRS, MOST_IMAGES, HeldOutValidator
from tests.support.training import CPU, DIFFUSION, MODEL, phase

CONVERSIONS = {"epsilon": to_epsilon, "x0": to_x0, "v": to_velocity}


@pytest.mark.parametrize("path", ["flow", "vp-linear", "vp-cosine"])
def test_validation_error_means_the_same_for_every_path_and_prediction(emoji, path):
    """A network that knows the images has error 0; one that always says grey has their power."""
    power = (to_tokens(torch.from_numpy(emoji[:14]), 4) ** 2).mean((1, 2))
    for prediction in ("x0", "epsilon", "v"):
        setting = DIFFUSION.model_copy(update={"path": path, "prediction": prediction})
        validator = HeldOutValidator(emoji[:14], 4, setting, CPU)
        level = PATHS[path].level(validator.time, like=validator.x_t)

        def errors(x0, prediction=prediction, validator=validator, level=level):
            says = CONVERSIONS[prediction](x0, validator.x_t, level, "x0")
            parts = iter(says.split(BATCH))
            return validator.errors(lambda *_: next(parts))

        knows = errors(validator.x0)
        grey = errors(torch.zeros_like(validator.x0))
        assert knows["mean"] < 1e-4
        assert grey["mean"] == pytest.approx(power.mean().item(), rel=0.02)
        assert set(grey) == {"mean", *(f"{level:g}" for level in HALF_LOG_SNRS)}


def test_validation_takes_images_from_all_over_a_set_sorted_by_class():
    images = np.arange(2 * MOST_IMAGES).repeat(3).reshape(-1, 1, 1, 3).astype(np.uint8)
    labels = np.arange(2 * MOST_IMAGES) // 36
    validator = HeldOutValidator(images, 1, DIFFUSION, CPU, labels)
    assert len(validator.x0) == MOST_IMAGES
    assert set(validator.labels.tolist()) == set(labels.tolist())


def test_validation_is_the_same_whatever_was_drawn_before(emoji):
    values = []
    for seed in range(2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        values.append(HeldOutValidator(emoji[:14], 4, DIFFUSION, CPU).x_t)
    assert torch.equal(*values)


@pytest.mark.parametrize(("count", "empty"), [(3, 4), (14, 0)])
def test_an_error_that_is_not_finite_counts_and_a_level_without_images_does_not(
    emoji, count, empty
):
    validator = HeldOutValidator(emoji[:count], 4, DIFFUSION, CPU)
    good = validator.errors(lambda tokens, *_: torch.zeros_like(tokens))
    assert np.isfinite(good["mean"])
    assert sum(not np.isfinite(value) for value in good.values()) == empty

    for value in (torch.nan, torch.inf, -torch.inf):  # an infinite pixel clamped looks like one

        def broken_at_one_level(tokens, *_, value=value):
            output = torch.zeros_like(tokens)
            output[0, 0, 0] = value
            return output

        assert not np.isfinite(validator.errors(broken_at_one_level)["mean"])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_error_is_that_of_its_own_weights_at_any_precision(emoji, precision):
    """Autocast keeps copies of weights, and would measure the averaged ones with the raw copies."""
    state = State.start(build_backbone(MODEL, 32, 3, seed=0), phase())
    for tensor in state.averaged.values():
        tensor.mul_(0.3)
    validator = HeldOutValidator(emoji[:14], 4, DIFFUSION, CPU)
    execution = Execution(CPU, precision=precision)
    found = validate(state, validator, execution)
    with execution.autocast():
        raw = validator.errors(state.backbone)
    network = dict(state.backbone.named_parameters())
    with ema.applied(network, state.averaged), execution.autocast():
        averaged = validator.errors(state.backbone)
    assert found["raw"] == raw["mean"]
    assert found["averaged"] == averaged["mean"]
    assert found["averaged[0]"] == averaged["0"]
    assert abs(raw["mean"] / averaged["mean"] - 1) > 0.01
