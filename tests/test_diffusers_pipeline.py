"""The pipeline that is exported refuses what the model in Python refuses, and draws as it does."""

import sys
from collections.abc import Iterator
from copy import deepcopy
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from maskdm.exchange.bundle import Bundle
from maskdm.exchange.diffusers_denoiser import MaskDMDenoiser
from maskdm.exchange.exporting import _sizes
from maskdm.runtime.errors import UserError
from maskdm.sampling.model import TrainedModel
from maskdm.sampling.sampler import starting_noise
from tests.support.models import arrays

NAMES = {"num_images": "count", "num_inference_steps": "nfe"}  # in diffusers: here


@pytest.fixture(scope="module")
def exported() -> Iterator[Any]:
    """What an exported pipeline.py defines."""
    bundle = Bundle()
    bundle.add("maskdm.exchange.diffusers_pipeline", "MaskDMPipeline")
    module = ModuleType("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "exported", module)
        exec(bundle.text("Drawing images."), vars(module))
        yield module


def as_pipeline(exported: Any, model: TrainedModel) -> Any:
    """Return the pipeline of a model, as diffusers makes it of an exported folder."""
    config = model.config

    class Component(MaskDMDenoiser):
        network_class = staticmethod(lambda **sizes: model.backbone)

    return exported.MaskDMPipeline(
        denoiser=Component(**_sizes(config)),
        size=config.size,
        channels=config.channels,
        patch=config.model.patch,
        path=config.diffusion.path,
        prediction=config.diffusion.prediction,
        classes=config.classes,
    )


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"num_images": 0}, "num_images is 0: it is no whole number from 1 to 10000000"),
        ({"num_images": True}, "num_images is True"),
        ({"solver": "heun", "num_inference_steps": 4}, "^num_inference_steps is 4, but heun"),
        ({"eta": 0.5}, "^eta is 0.5, but .* set it to 0, or solver to ddim"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0: it is no whole number from 2 to"),
        ({"num_inference_steps": 4.0}, r"num_inference_steps is 4\.0"),
        ({"eta": 2, "solver": "ddim"}, "eta is 2: it is no number from 0 to 1"),
        ({"eta": float("nan"), "solver": "ddim"}, "eta is nan"),
        ({"guidance_scale": -1}, "guidance_scale is -1: it is no number from 0 to 1000"),
        ({"guidance_scale": "2"}, "guidance_scale is '2'"),
        ({"guidance_interval": (0, 1.5)}, r"guidance_interval is \(0, 1\.5\): .*not within 0 to 1"),
        ({"guide_interval": (0.8, 0.2)}, r"guide_interval is \(0\.8, 0\.2\): .*not in order"),
        ({"guide_interval": (0.5,)}, "guide_interval is .0.5,"),
        ({"guide_scale": 1001}, "guide_scale is 1001"),
        ({"guide_class": "Shown"}, "guide_class is 'Shown': it is neither shown nor hidden"),
        ({"seed": -1}, "seed is -1: it is no whole number from 0 to 2147483647"),
        ({"seed": True}, "seed is True"),
        ({"label": 3}, "no class 3; this model has 0 to 2: cat, dog, owl"),
        ({"label": True}, "no class True"),
        ({"label": False}, "no class False"),
        ({"solver": "euler"}, "no solver 'euler': take dpmpp-2m"),
    ],
)
def test_it_refuses_what_the_model_in_python_refuses(asked, sentence, exported, conditional):
    with pytest.raises(exported.UserError, match=sentence):
        as_pipeline(exported, conditional)(**asked)
    with pytest.raises(UserError):
        conditional.sample(**{"count": 1} | {NAMES.get(n, n): v for n, v in asked.items()})


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"guide_scale": 2.0}, "guide_scale is 2, but no guide was exported .*: set it to 1"),
        ({"output_type": "pt"}, "no output_type 'pt': take pil or np"),
        (
            {"num_images": 2, "latents": torch.zeros(1, 16, 48)},
            r"the shape \(1, 16, 48\), but must have \(2, 16, 48\)",
        ),
    ],
)
def test_it_refuses_what_does_not_fit_it_in_its_own_words(asked, sentence, exported, model):
    with pytest.raises(exported.UserError, match=sentence):
        as_pipeline(exported, model)(**asked)


def test_it_draws_some_images_at_a_time_and_those_of_the_model_in_python(
    exported, conditional, monkeypatch
):
    monkeypatch.setenv("MASKDM_SAMPLE_BATCH", "2")
    expected = arrays(conditional.sample(5, 3, nfe=4))
    noise, sizes = starting_noise(3, conditional.shape, range(5)), []
    hook = conditional.backbone.register_forward_pre_hook(
        lambda network, given: sizes.append(len(given[0]))
    )
    drawn, few, given = (
        as_pipeline(exported, conditional)(
            num_images=count, seed=3, num_inference_steps=4, latents=latents
        ).images
        for count, latents in ((5, None), (3, None), (5, noise))
    )
    hook.remove()
    assert np.array_equal(arrays(drawn), expected)
    assert np.array_equal(arrays(few), expected[:3])
    assert np.array_equal(arrays(given), expected)
    assert set(sizes) == {1, 2}


def test_what_is_not_finite_becomes_no_pixels(exported, conditional):
    network = deepcopy(conditional.backbone)
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    model = TrainedModel(network, conditional.config, conditional.device)
    with pytest.raises(UserError, match="sample is not finite"):
        model.sample(1, nfe=2)
    with pytest.raises(exported.UserError, match="sample is not finite"):
        as_pipeline(exported, model)(num_inference_steps=2)
