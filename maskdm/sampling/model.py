"""A trained model in Python: ``maskdm.load("models/finetune").sample(16, seed=0)``.

The stages draw their images through the same class, so the same settings give the same images.
"""

from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import TypedDict, Unpack, get_args

import numpy as np
import torch
from torch import Tensor

from maskdm.backbones.autoencoder import Codec, open_codec
from maskdm.backbones.decoding import images_of
from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.model_folder import ModelConfig, Weights, load_config, load_model
from maskdm.runtime.devices import choose_device
from maskdm.runtime.environment import SAMPLE_BATCH
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import validate
from maskdm.sampling.guidance import X0Network
from maskdm.sampling.images import Images
from maskdm.sampling.inpainting import Known, Picture, known_part
from maskdm.sampling.interpolation import between
from maskdm.sampling.sampler import (
    GuideClass,
    SampleParams,
    check_finite,
    check_sampling,
    class_labels,
    estimates,
    starting_noise,
)
from maskdm.sampling.solvers import SOLVERS

# What guidance by the primer did best with (docs/scaling.md).
GUIDE_SCALE, GUIDE_INTERVAL = 3.0, (0.2, 0.8)
GUIDE_CLASS: GuideClass = "hidden"
# Fresh noise on the way lets what is drawn come to fit what is known.
INPAINT_SOLVER, INPAINT_NFE = "ddpm", 50


class Drawing(TypedDict, total=False):
    """How to draw; ``TrainedModel.sample`` says what each means."""

    solver: str
    nfe: int | None
    eta: float
    guidance_scale: float
    guidance_interval: tuple[float, float]
    guide_scale: float | None
    guide_interval: tuple[float, float]
    guide_class: GuideClass


def for_inpainting(drawing: Drawing) -> Drawing:
    """Return how ``TrainedModel.inpaint`` draws, with its own solver where none is named."""
    if "solver" in drawing:
        return drawing
    return {"solver": INPAINT_SOLVER, "nfe": INPAINT_NFE, **drawing}


class TrainedModel:
    """A model that draws images.

    Attributes:
        backbone: the network, on ``device``.
        config: its sizes, classes and history.
        device: where it computes.
        guide: the model that ``guide_scale`` leads away from, or None.
        codec: what decodes the latents that the network draws; None if it draws pixels. By default
            with the autoencoder that ``config`` names.
        weights: which of its weights these are, ``"averaged"`` or ``"raw"``.
    """

    def __init__(
        self,
        backbone: Denoiser,
        config: ModelConfig,
        device: torch.device,
        guide: "TrainedModel | None" = None,
        codec: Codec | None = None,
        weights: Weights = "averaged",
    ) -> None:
        self.backbone, self.config, self.device = backbone.to(device).eval(), config, device
        self.guide, self.codec, self.weights = guide, codec, weights
        if codec is None and config.latents is not None:
            self.codec = open_codec(config.latents, device)

    def __repr__(self) -> str:
        """Say what it draws and what it is."""
        config, model = self.config, self.config.model
        weights = sum(parameter.numel() for parameter in self.backbone.parameters())
        classes = f", {len(self.classes)} classes" if self.classes else ""
        guided = ", guided" if self.guide else ""
        side, depth = config.network_size, config.network_channels
        latents = f" by latents of {side}x{side}x{depth}" if config.latents else ""
        return (
            f"<TrainedModel: {config.size}x{config.size} pixels, {config.channels} channels"
            f"{latents}{classes}; {model.backbone} of width {model.dim} and depth {model.depth}, "
            f"{weights:,} weights, on {self.device}{guided}>"
        )

    @property
    def x0_network(self) -> X0Network:
        """The network as an estimate of x0."""
        return X0Network(self.backbone, self.config.diffusion)

    def guided_by(self, guide: "TrainedModel") -> "TrainedModel":
        """Return this model with a guide, such as the primer that it was finetuned from.

        Args:
            guide: a worse model of the same tokens, path and classes.

        Raises:
            UserError: naming what differs.
        """
        check_guide(guide.config, self.config)
        guided = copy(self)
        guided.guide = guide
        return guided

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of their labels; empty if unconditional."""
        return list(self.config.classes or ())

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens of an image, numbers of a token: ``(N, p²·C)``."""
        config = self.config
        return config.grid**2, config.model.patch**2 * config.network_channels

    def sample(
        self,
        count: int,
        seed: int = 0,
        *,
        label: int | str | None = None,
        solver: str = "dpmpp-2m",
        nfe: int | None = None,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guide: "TrainedModel | Path | str | None" = None,
        guide_scale: float | None = None,
        guide_interval: tuple[float, float] = GUIDE_INTERVAL,
        guide_class: GuideClass = GUIDE_CLASS,
    ) -> Images:
        """Draw images.

        Args:
            count: how many.
            seed: of the noise; image i is the same in any count.
            label: a class, by number or name; by default classes come as often as in training.
            solver: one of ``maskdm.sampling.solvers.SOLVERS``.
            nfe: network evaluations an image; by default what is recommended for the solver.
            eta: noise that ddim adds, 0 to 1.
            guidance_scale: strength of classifier-free guidance; 1 is none.
            guidance_interval: the times between which it acts.
            guide: a worse model or its folder, to be led away from, such as ``models/pretrain``;
                by default the one that ``guided_by`` gave.
            guide_scale: strength of that; by default ``GUIDE_SCALE`` with a guide, and 1, which
                is none, without.
            guide_interval: the times between which it acts.
            guide_class: ``"shown"``, or ``"hidden"`` for a guide that does not see the class.

        Returns:
            PIL images, mode RGB or L, which a notebook shows as a grid.

        Raises:
            UserError: if a setting is out of range or does not fit the model, or a sample is not
                finite.
        """
        model = self._guided(guide)
        params = model.settings(
            count,
            seed,
            solver=solver,
            nfe=nfe,
            eta=eta,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guide_scale=guide_scale,
            guide_interval=guide_interval,
            guide_class=guide_class,
        )
        return model._pictures(params, label)

    def interpolate(
        self,
        one: int,
        other: int,
        count: int = 10,
        *,
        label: int | str | None = None,
        guide: "TrainedModel | Path | str | None" = None,
        **drawing: Unpack[Drawing],
    ) -> Images:
        """Draw images from noise between the noises of two seeds, along a great circle.

        Args:
            one: a seed; the first image is that of ``sample(1, one)``, up to rounding.
            other: another seed; the last image is that of ``sample(1, other)`` with the class of
                the first.
            count: how many, evenly spaced, both ends included.
            label: a class, by number or name; by default that of the first image.
            guide: a worse model or its folder, as in ``sample``.
            **drawing: solver, NFE, strengths and times of guidance, as in ``sample``.

        Returns:
            PIL images, which a notebook shows as a grid.

        Raises:
            UserError: as ``sample``, or if the solver adds noise, or the seeds are one.
        """
        model = self._guided(guide)
        params, _ = (model.settings(count, seed, **drawing) for seed in (one, other))
        if SOLVERS[params.solver].stochastic or params.eta > 0:
            still = ", ".join(name for name, solver in SOLVERS.items() if not solver.stochastic)
            raise UserError(
                f"The solver {params.solver} adds noise on the way, so that the images would not "
                f"be between two: take {still}, with eta 0."
            )
        if one == other:
            raise UserError(f"Both seeds are {one}: between two equal noises there is nothing.")
        begin, end = (starting_noise(seed, self.shape, range(1))[0] for seed in (one, other))
        given = self.labels(label, one, range(1))
        return Images.of(model.draw_between(begin, end, count, params, given))

    def inpaint(
        self,
        image: Picture,
        mask: Picture,
        count: int = 1,
        seed: int = 0,
        *,
        label: int | str | None = None,
        guide: "TrainedModel | Path | str | None" = None,
        **drawing: Unpack[Drawing],
    ) -> Images:
        """Draw a part of an image anew, so that it fits the rest (maskdm/sampling/inpainting.py).

        Args:
            image: of the model's size: PIL, opaque, or a uint8 array ``(H, W)`` or
                ``(H, W, C)``.
            mask: white where new pixels are wanted, of any shape: PIL, or a bool or uint8 array
                ``(H, W)``. Pixels where it is black (below 128, or False) stay as they are, to the
                bit.
            count: how many answers.
            seed: of the noise; answer i is the same in any count.
            label: a class, by number or name; by default classes come as often as in training.
            guide: a worse model or its folder, as in ``sample``.
            **drawing: solver, NFE, strengths and times of guidance, as in ``sample``; by default
                ``INPAINT_NFE`` evaluations of ``INPAINT_SOLVER``.

        Returns:
            PIL images, which a notebook shows as a grid.

        Raises:
            UserError: as ``sample``, or if image or mask do not fit the model.
        """
        config = self.config
        if config.latents is not None:
            raise UserError(
                "This model draws the latents of an autoencoder, each of which shows in many "
                "pixels, so that none can be kept: inpaint with a model of pixels "
                "(data.autoencoder: null)."
            )
        known = known_part(image, mask, config.size, config.channels, config.model.patch)
        model = self._guided(guide)
        params = model.settings(count, seed, **for_inpainting(drawing))
        return model._pictures(params, label, known)

    def settings(
        self,
        count: int,
        seed: int = 0,
        *,
        solver: str = "dpmpp-2m",
        nfe: int | None = None,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guide_scale: float | None = None,
        guide_interval: tuple[float, float] = GUIDE_INTERVAL,
        guide_class: GuideClass = GUIDE_CLASS,
    ) -> SampleParams:
        """Return all that ``sample`` draws with, what it is not told included.

        Args:
            count: how many.
            seed: of the noise.
            solver: one of ``maskdm.sampling.solvers.SOLVERS``.
            nfe: network evaluations an image; None: what is recommended for the solver.
            eta: noise that ddim adds.
            guidance_scale: strength of classifier-free guidance.
            guidance_interval: the times between which it acts.
            guide_scale: strength of the guide that ``guided_by`` gave; None: ``GUIDE_SCALE`` with
                one, and 1 without.
            guide_interval: the times between which it acts.
            guide_class: ``"shown"``, or ``"hidden"`` for a guide that does not see the class.

        Raises:
            UserError: if a setting is out of range or does not fit the model.
        """
        if guide_scale is None:
            guide_scale = 1.0 if self.guide is None else GUIDE_SCALE
        settings = {
            "count": int(count) if isinstance(count, np.integer) else count,
            "solver": solver,
            "nfe": SOLVERS[solver].nfe if nfe is None and solver in SOLVERS else nfe,
            "eta": eta,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "guide": None if self.guide is None else "the guide given",
            "guide_scale": guide_scale,
            "guide_interval": guide_interval,
            "guide_class": guide_class,
            "weights": self.weights,
            "seed": int(seed) if isinstance(seed, np.integer) else seed,
        }
        params = validate(settings, "sample", SampleParams, where="sample()")
        check_sampling(params, conditional=bool(self.classes))
        return params

    def labels(self, label: int | str | None, seed: int, indices: range) -> Tensor | None:
        """Return the labels of samples ``indices``: the class asked for, or as in training.

        Args:
            label: a class by number or name, or None.
            seed: of the sampling noise.
            indices: of the samples.

        Returns:
            ``(len(indices),)`` int64, or None for an unconditional model.

        Raises:
            UserError: if there is no such class.
        """
        return class_labels(self.config.classes, label, seed, indices)

    def draw(
        self,
        params: SampleParams,
        indices: range,
        labels: Tensor | None = None,
        start: Tensor | None = None,
        known: Known | None = None,
    ) -> np.ndarray:
        """Return samples ``indices``.

        Args:
            params: the section ``sample``.
            indices: of the samples.
            labels: their classes, as ``labels`` returns them.
            start: standard normal noise to start from instead of the samples' own,
                ``(len(indices), N, p²·C)``.
            known: what is known of an image, to be kept in all of them.

        Returns:
            uint8 ``(len(indices), H, W, C)``.

        Raises:
            UserError: if one is not finite.
        """
        for estimate in self._estimates(params, indices, labels, start, known):
            last = estimate
        return self._images(last)

    def draw_between(
        self, one: Tensor, other: Tensor, count: int, params: SampleParams, label: Tensor | None
    ) -> np.ndarray:
        """Return images from noise between two noises, along a great circle.

        Args:
            one: standard normal noise, ``(N, p²·C)``.
            other: another.
            count: how many, both ends included.
            params: the section ``sample``.
            label: the class of all, ``(1,)`` int64, or None without classes.

        Returns:
            uint8 ``(count, H, W, C)``.
        """
        noise, images = between(one, other, count), []
        for indices in sample_batches(count):
            labels = None if label is None else label.expand(len(indices))
            start = noise[indices.start : indices.stop]
            images.append(self.draw(params, indices, labels, start))
        return np.concatenate(images)

    def estimates(
        self, params: SampleParams, indices: range, labels: Tensor | None = None
    ) -> Iterator[np.ndarray]:
        """Yield the estimates of samples ``indices`` from noise to image, as ``draw`` returns them.

        Args:
            params: the section ``sample``.
            indices: of the samples.
            labels: their classes, as ``labels`` returns them.
        """
        return map(self._images, self._estimates(params, indices, labels))

    def _guided(self, guide: "TrainedModel | Path | str | None") -> "TrainedModel":
        """Return this model with a guide or what is in its folder; itself without."""
        if guide is None:
            return self
        if not isinstance(guide, TrainedModel):
            check_guide(load_config(Path(guide)), self.config)  # before its autoencoder is opened
            place = None if self.codec is None else self.codec.autoencoder.name
            guide = load(guide, self.weights, f"{self.device}", place)
        return self.guided_by(guide)

    def _pictures(
        self, params: SampleParams, label: int | str | None, known: Known | None = None
    ) -> Images:
        images = Images()
        for indices in sample_batches(params.count):
            labels = self.labels(label, params.seed, indices)
            images += Images.of(self.draw(params, indices, labels, known=known))
        return images

    def _estimates(
        self,
        params: SampleParams,
        indices: range,
        labels: Tensor | None,
        start: Tensor | None = None,
        known: Known | None = None,
    ) -> Iterator[Tensor]:
        return estimates(
            self.backbone,
            self.config.diffusion,
            params,
            self.shape,
            indices,
            self.device,
            labels,
            start,
            self.guide.x0_network if self.guide else None,
            known,
        )

    def _images(self, tokens: Tensor) -> np.ndarray:
        check_finite(tokens)
        config = self.config
        return images_of(tokens, config.model.patch, config.network_channels, self.codec)


def check_guide(guide: ModelConfig, model: ModelConfig) -> None:
    """Check that a guide sees the same noisy tokens as a model.

    Args:
        guide: the config of the guide.
        model: the config of the model that is to be led away from it.

    Raises:
        UserError: naming what differs.
    """
    for what, theirs, ours in (
        ("resolution", guide.size, model.size),
        ("channels", guide.channels, model.channels),
        ("latents", _decoded(guide), _decoded(model)),
        ("patch", guide.model.patch, model.model.patch),
        ("path", guide.diffusion.path, model.diffusion.path),
        ("classes", list(guide.classes or ()), list(model.classes or ())),
    ):
        if theirs != ours:
            raise UserError(
                f"The guide does not fit the model: its {what}: {theirs}; the model's: {ours}. "
                "Take one that was trained like the model, such as the primer that it was "
                "finetuned from (models/pretrain), or set sample.guide_scale to 1."
            )


def _decoded(config: ModelConfig) -> str:
    """Return in words what has to be the same for tokens to mean the same."""
    if config.latents is None:
        return "none"
    about = config.latents
    ranges = (f"{c:.5g} ± {r:.5g}" for c, r in zip(about.centre, about.reach, strict=True))
    return f"of the autoencoder {about.hash[:12]}, channels {', '.join(ranges)}"


def sample_batches(count: int) -> Iterator[range]:
    """Yield the indices of ``count`` samples, as many at a time as ``MASKDM_SAMPLE_BATCH`` says."""
    size = SAMPLE_BATCH.get()
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def load(
    folder: Path | str,
    weights: Weights = "averaged",
    device: str | None = None,
    autoencoder: Path | str | None = None,
) -> TrainedModel:
    """Return the model in a folder, ready to draw images.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``.
        weights: ``"averaged"`` or ``"raw"``.
        device: where to compute; by default a GPU if there is one (or ``MASKDM_DEVICE``).
        autoencoder: the folder of the autoencoder that decodes what the model draws, if the model
            draws latents and it is not where it was in training.

    Raises:
        UserError: if the folder is no model folder or is damaged, there is no such device, or the
            autoencoder is not there or another one.
    """
    if weights not in get_args(Weights):
        raise UserError(f"There are no weights {weights!r}: take 'averaged' or 'raw'.")
    backbone, config = load_model(Path(folder), weights)
    place, codec = choose_device(device), None
    if autoencoder is not None and config.latents is not None:
        codec = open_codec(config.latents, place, str(autoencoder))
    return TrainedModel(backbone, config, place, codec=codec, weights=weights)


def load_guided(folder: Path, params: SampleParams) -> TrainedModel:
    """Return the model in a folder with the guide that the section ``sample`` asks for.

    Raises:
        UserError: as ``load``, for model and guide, or if they do not fit together.
    """
    model = load(folder, params.weights)
    if params.guide is None or not params.guided:
        return model
    check_guide(load_config(Path(params.guide)), model.config)
    return model.guided_by(load(params.guide, params.weights))
