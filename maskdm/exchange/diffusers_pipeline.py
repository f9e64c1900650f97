"""Drawing images as a pipeline of diffusers; an exported folder carries this source.

Only ``maskdm/exchange/exporting.py`` reads it: importing it needs diffusers.
"""

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor, nn

from maskdm.diffusion.tokens import to_images
from maskdm.runtime.errors import UserError
from maskdm.sampling.guidance import X0Network
from maskdm.sampling.images import Images
from maskdm.sampling.model import GUIDE_CLASS, GUIDE_INTERVAL, GUIDE_SCALE, sample_batches
from maskdm.sampling.sampler import (
    INTERVALS,
    RANGES,
    check_finite,
    check_sampling,
    class_labels,
    estimates,
    fault_of_setting,
)
from maskdm.sampling.solvers import SOLVERS

CALLED = {"count": "num_images", "nfe": "num_inference_steps"}  # here, as in all of diffusers


class MaskDMPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draws images from a network on token sets, guided by another one if there is one.

    Args:
        denoiser: the network.
        guide: a worse one, to be led away from.
        size: side of the images in pixels.
        channels: of the images.
        patch: side of a patch in pixels.
        path: the probability path that they were trained on.
        prediction: what they output.
        classes: name of a class → its training images; None without classes.
    """

    _optional_components: ClassVar[list[str]] = ["guide"]
    model_cpu_offload_seq = "denoiser"

    def __init__(
        self,
        denoiser: nn.Module,
        guide: nn.Module | None = None,
        size: int = 0,
        channels: int = 3,
        patch: int = 1,
        path: str = "flow",
        prediction: str = "x0",
        classes: dict | None = None,  # type: ignore[type-arg]  # diffusers compares types
    ) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, guide=guide)
        self.register_to_config(
            size=size,
            channels=channels,
            patch=patch,
            path=path,
            prediction=prediction,
            classes=classes,
        )

    def __call__(
        self,
        num_images: int = 1,
        seed: int = 0,
        label: int | str | None = None,
        solver: str = "dpmpp-2m",
        num_inference_steps: int | None = None,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guide_scale: float | None = None,
        guide_interval: tuple[float, float] = GUIDE_INTERVAL,
        guide_class: str = GUIDE_CLASS,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw images.

        Args:
            num_images: how many.
            seed: of the noise; image i is the same in any number.
            label: a class by number or name; by default they come as often as in training.
            solver: one of ``SOLVERS``.
            num_inference_steps: network evaluations an image; by default what is recommended.
            eta: noise that ddim adds, 0 to 1.
            guidance_scale: strength of classifier-free guidance; 1 is none.
            guidance_interval: the times between which it acts.
            guide_scale: strength of the guide; by default 3 with one, and 1, which is none,
                without.
            guide_interval: the times between which it acts.
            guide_class: shown, or hidden for a guide that does not see the class.
            latents: standard normal noise to start from instead of the seed's own,
                ``(num_images, N, p²·C)``.
            output_type: pil, or np for uint8 ``(num_images, H, W, C)``.
            return_dict: an ImagePipelineOutput if true, else a tuple.

        Raises:
            UserError: if a setting is out of range or does not fit the model, or a sample is not
                finite.
        """
        if solver not in SOLVERS:
            raise UserError(f"There is no solver {solver!r}: take {', '.join(SOLVERS)}.")
        if output_type not in ("pil", "np"):
            raise UserError(f"There is no output_type {output_type!r}: take pil or np.")
        if guide_scale is None:
            guide_scale = 1.0 if self.guide is None else GUIDE_SCALE
        params: Any = SimpleNamespace(
            solver=solver,
            count=num_images,
            nfe=SOLVERS[solver].nfe if num_inference_steps is None else num_inference_steps,
            eta=eta,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guide=None if self.guide is None else "the guide",
            guide_scale=guide_scale,
            guide_interval=guide_interval,
            guide_class=guide_class,
            guided=guide_scale != 1,
            seed=seed,
        )
        for name in (*RANGES, *INTERVALS, "guide_class"):
            value = getattr(params, name)
            if fault := fault_of_setting(name, value):
                raise UserError(f"{CALLED.get(name, name)} is {value!r}: {fault}.")
        if params.guided and self.guide is None:
            raise UserError(
                f"guide_scale is {guide_scale:g}, but no guide was exported with this model: set "
                "it to 1."
            )
        conditional = self.config.classes is not None
        check_sampling(params, conditional, called=lambda key: CALLED.get(key, key))
        config = self.config
        shape = ((config.size // config.patch) ** 2, config.patch**2 * config.channels)
        if latents is not None and latents.shape != (num_images, *shape):
            given, fits = tuple(latents.shape), (num_images, *shape)
            raise UserError(f"latents has the shape {given}, but must have {fits}.")
        diffusion: Any = SimpleNamespace(path=config.path, prediction=config.prediction)
        guide = None if self.guide is None else X0Network(self.guide.eval(), diffusion)
        batches = []
        for indices in sample_batches(num_images):
            labels = class_labels(config.classes, label, seed, indices)
            start = None if latents is None else latents[indices.start : indices.stop]
            for estimate in estimates(
                self.denoiser, diffusion, params, shape, indices, self.device, labels, start, guide
            ):
                tokens = estimate
            check_finite(tokens)
            batches.append(to_images(tokens, config.patch, config.channels).cpu().numpy())
        drawn: Any = np.concatenate(batches)
        if output_type == "pil":
            drawn = Images.of(drawn)
        return ImagePipelineOutput(images=drawn) if return_dict else (drawn,)
