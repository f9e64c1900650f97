"""A trained model on disk: ``model.safetensors`` and ``config.json``, nothing pickled.

The safetensors file holds every weight twice, as ``raw.NAME`` and ``averaged.NAME``; the config
holds everything that is needed to rebuild the network, and how it was trained.
"""

import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)
from torch import Size, Tensor

from maskdm.backbones.autoencoder import Latents
from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.registry import ModelParams, backbone_without_weights, build_backbone
from maskdm.backbones.stored import listed, misfits, stored_shapes, stored_tensors
from maskdm.diffusion.loss import DiffusionParams
from maskdm.runtime.errors import UserError, shortened
from maskdm.runtime.files import file_hash, replacing, write_json, write_tensors
from maskdm.runtime.params import Section, Seed, fault_of_name, validate
from maskdm.runtime.reading import read_small

T = TypeVar("T")
Weights = Literal["averaged", "raw"]
WEIGHTS = "model.safetensors"
MOMENTS = "optimiser.safetensors"  # of the raw weights, beside them: finetune.optimiser
FILES = ("config.json", WEIGHTS, MOMENTS)
MOST_BYTES = 2**24  # of a config: a thousand classes have 30 kB
LARGEST_SIDE = 4096
# Errors of the system that say that there is no such file.
NO_FILE = {
    errno.ENOENT: "it has no config.json",
    errno.ENOTDIR: "it is no folder",
    errno.ENAMETOOLONG: "no folder can be called that",
    errno.ELOOP: "a link on the way to its config.json leads to itself",
}
# Far above whatever was trained, and still a number that every format and float holds.
Count = Annotated[int, Field(ge=0, le=10**30)]


def _named(name: str) -> str:
    """Return a name that nothing is wrong with.

    Raises:
        ValueError: saying what is.
    """
    if fault := fault_of_name(name):
        raise ValueError(fault)
    return name


Name = Annotated[str, AfterValidator(_named)]


class TrainedLeg(Section):
    """One leg of training, and what it cost.

    ``flops`` are those of the cost model, forward and backward, without validation.
    """

    phase: Name
    data: Name = Field(description="content hash of the prepared set")
    mask: Name
    mask_rate: float = Field(ge=0, lt=1, description="the true rate, 0 <= rate < 1")
    visible: Count = Field(description="patches shown of each image")
    scope: Name = Field("image", description="image, or middle: shown to the middle blocks alone")
    batch_size: Count
    steps: Count
    images: Count
    full_images: Count = Field(description="images that the mixture showed whole")
    flops: Count


class ModelConfig(Section):
    """``config.json``: how to rebuild the network, and how it was trained, first leg first.

    ``classes`` maps the names of the classes, in the order of their labels, to their numbers of
    training images; None for an unconditional model. ``size`` and ``channels`` are those of the
    images that people see; the network may see their latents.
    """

    size: int = Field(ge=1, le=LARGEST_SIDE, description="side of the images in pixels")
    channels: int = Field(ge=1, le=3, description="1 (grey) or 3 (RGB)")
    classes: Annotated[dict[Name, Count], Field(min_length=1)] | None = Field(
        description="the name of every class → its training images, or null for no classes"
    )
    seed: Seed
    model: ModelParams
    diffusion: DiffusionParams
    training: list[TrainedLeg]
    latents: Latents | None = Field(
        None, description="how images are decoded from what the network draws; null: it draws them"
    )

    @field_validator("channels")
    @classmethod
    def _grey_or_colour(cls, channels: int) -> int:
        if channels == 2:
            raise ValueError("no picture has two")
        return channels

    @model_serializer(mode="wrap")
    def _without_latents_of_pixels(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        return content if self.latents else {k: v for k, v in content.items() if k != "latents"}

    @property
    def network_size(self) -> int:
        """Side of what the network sees: the image in pixels, or its latents."""
        return self.latents.size if self.latents else self.size

    @property
    def network_channels(self) -> int:
        """Channels of what the network sees."""
        return self.latents.channels if self.latents else self.channels

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.network_size // self.model.patch

    @property
    def flops(self) -> int:
        """Training FLOPs of all legs."""
        return sum(leg.flops for leg in self.training)

    @property
    def cost(self) -> dict[str, int]:
        """The cost of all legs."""
        return {
            "steps": sum(leg.steps for leg in self.training),
            "images": sum(leg.images for leg in self.training),
            "flops": self.flops,
        }

    def backbone(self) -> Denoiser:
        """Return the network with fresh weights."""
        return build_backbone(
            self.model,
            self.network_size,
            self.network_channels,
            self.seed,
            len(self.classes or ()),
        )

    def outline(self) -> Denoiser:
        """Return the network without values."""
        return backbone_without_weights(
            self.model, self.network_size, self.network_channels, len(self.classes or ())
        )


def save_model(
    folder: Path, config: ModelConfig, raw: Mapping[str, Tensor], averaged: Mapping[str, Tensor]
) -> None:
    """Write a model folder; both sets of weights have the network's parameter names.

    Raises:
        UserError: if a weight is not finite; nothing is written then.
    """
    tensors = {f"raw.{name}": t.detach().cpu().contiguous() for name, t in raw.items()}
    tensors |= {f"averaged.{name}": t.detach().cpu().contiguous() for name, t in averaged.items()}
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"{len(broken)} of the {len(tensors)} tensors of the model for {folder} are not finite "
            f"({broken[0]} is one): it is not written. Lower the learning rate, or train in fp32."
        )
    with replacing(folder / WEIGHTS) as begun:
        write_tensors(tensors, begun)
    write_json(folder / "config.json", config.model_dump())


def save_moments(folder: Path, moments: dict[str, Tensor]) -> None:
    """Write the optimiser's tensors into a model folder.

    Args:
        folder: of the model.
        moments: by kind and parameter name, ``exp_avg.embed.weight``.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in moments.items()}
    with replacing(folder / MOMENTS) as begun:
        write_tensors(tensors, begun)


def load_moments(folder: Path, into: Denoiser) -> dict[str, Tensor]:
    """Return the optimiser's tensors of a model folder, learned positions fitted to a grid.

    Args:
        folder: of a model whose weights fit ``into``.
        into: the network that goes on with them.

    Raises:
        UserError: if the folder has none, or they are damaged.
    """
    path = folder / MOMENTS
    try:
        stored = stored_tensors(path)
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {MOMENTS}, which pretraining leaves there: pretrain again, or set "
            "finetune.optimiser to fresh."
        ) from None
    fitted: dict[str, Tensor] = {}
    for kind in ("exp_avg", "exp_avg_sq", "step"):
        start = f"{kind}."
        own = {n.removeprefix(start): t for n, t in stored.items() if n.startswith(start)}
        found = own if kind == "step" else into.fit_weights(own)
        # Resampling may leave squares a little below zero.
        fitted |= {
            f"{start}{n}": t.clamp(min=0) if kind != "exp_avg" else t for n, t in found.items()
        }
    shapes = {name: parameter.shape for name, parameter in into.named_parameters()}
    expected = {f"{kind}.{n}": s for kind in ("exp_avg", "exp_avg_sq") for n, s in shapes.items()}
    expected |= {f"step.{name}": Size() for name in shapes}
    faults = misfits({name: tensor.shape for name, tensor in fitted.items()}, expected)
    faults = faults or listed(f"{n} is not finite" for n, t in fitted.items() if not _finite(t))
    if faults:
        raise UserError(
            f"The moments in {path} do not fit the network: {faults}. Set finetune.optimiser to "
            "fresh, or give another finetune.init."
        )
    return fitted


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def load_config(folder: Path) -> ModelConfig:
    """Return a model folder's config.

    Raises:
        UserError: if the folder is no model folder.
    """
    path = folder / "config.json"
    if folder.name in FILES and os.path.isfile(folder):  # noqa: PTH113 - of no name it raises
        raise UserError(f"{folder} is a file of a model: give its folder, {folder.parent}.")
    try:
        content: Any = json.loads(read_small(path, MOST_BYTES).decode())
    except IsADirectoryError:
        raise UserError(
            f"{path} is damaged: it is a folder. Restore or retrain the model."
        ) from None
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        why = NO_FILE[error.errno]
        raise UserError(
            f"{shortened(f'{folder}')} is no model folder: {why}. Give the folder of a model that "
            "maskdm trained, such as models/pretrain."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}. Restore or retrain the model.") from None
    config = validate(content, "config", ModelConfig, where=str(path))
    if config.classes and not any(config.classes.values()):
        raise UserError(
            f"{path} is damaged: no class has a training image. Restore or retrain the model."
        )
    return config


def check_start(
    folder: Path,
    before: ModelConfig,
    model: ModelParams,
    diffusion: DiffusionParams,
    classes: bool,
    names: Sequence[str] | None = None,
    autoencoder: str | None = None,
) -> None:
    """Check that a model's weights mean the same in the network that is to start from them.

    ``load_weights`` finds other shapes; this check finds the differences that keep them.

    Args:
        folder: the folder of the stored model.
        before: the config of the stored model.
        model: the network that is to start from it.
        diffusion: how that network is to be trained.
        classes: whether that network has classes.
        names: of those classes, once the images are known.
        autoencoder: the hash of the one whose latents that network learns; None for pixels.

    Raises:
        UserError: naming what differs.
    """
    learned = before.latents.hash if before.latents else None
    if learned != autoencoder:
        then, today = (
            f"latents of the autoencoder {found[:12]}" if found else "pixels"
            for found in (learned, autoencoder)
        )
        raise UserError(
            f"The model in {folder} learned {then}, data.autoencoder says {today}: its weights "
            "would be misread. Change data.autoencoder, or give another finetune.init."
        )
    for section, theirs, ours, keys in (
        ("diffusion", before.diffusion, diffusion, ("path", "prediction")),
        ("model", before.model, model, ("backbone", "heads")),
    ):
        for key in keys:
            was, now = getattr(theirs, key), getattr(ours, key)
            if was != now:
                raise UserError(
                    f"The model in {folder} was trained with {section}.{key} '{was}', params.yaml "
                    f"says '{now}': its weights would be misread. Set {section}.{key} to '{was}', "
                    "or give another finetune.init."
                )
    if bool(before.classes) != classes:
        have, value = ("has classes", "true") if before.classes else ("has no classes", "false")
        raise UserError(
            f"The model in {folder} {have}: set data.classes to {value}, or give another "
            "finetune.init."
        )
    if names is not None and list(before.classes or ()) != list(names):
        raise UserError(
            f"The model in {folder} has the classes {', '.join(before.classes or ())}, the images "
            f"have {', '.join(names)}: give another finetune.init, or set data.classes to false "
            "for both."
        )


def weights_hash(folder: Path, name: str = WEIGHTS) -> str:
    """Return the hash of a model folder's weights, or of another of its files."""
    return file_hash(folder / name)


def load_weights(folder: Path, weights: Weights, into: Denoiser) -> None:
    """Fill a network with the weights of a model folder, fitting learned positions to its grid.

    Raises:
        UserError: naming every tensor that is missing, unexpected or of another shape.
    """
    path = folder / WEIGHTS
    try:
        found = _of(weights, stored_tensors(path))
    except FileNotFoundError:
        raise _no_weights(folder) from None
    broken = next((name for name, tensor in found.items() if not _finite(tensor)), None)
    if broken is not None:
        raise UserError(
            f"The {weights} weights in {path} are not finite ({broken}): restore or retrain the "
            "model."
        )
    found = into.fit_weights(found)
    expected = dict(into.named_parameters())
    faults = misfits(
        {name: tensor.shape for name, tensor in found.items()},
        {name: parameter.shape for name, parameter in expected.items()},
    )
    if faults:
        raise UserError(
            f"The {weights} weights in {path} do not fit the network: {faults}. "
            "Use the model section (and data.resolution, data.channels) that they were trained "
            f"with: see {folder / 'config.json'}."
        )
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(found[name])


def load_model(folder: Path, weights: Weights) -> tuple[Denoiser, ModelConfig]:
    """Return the network of a model folder and its config.

    No more memory is taken than the weights in it need, whatever its config asks for.

    Raises:
        UserError: if the folder is no model folder or is damaged.
    """
    config = load_config(folder)
    outline = config.outline()
    try:
        found = _of(weights, stored_shapes(folder / WEIGHTS))
    except FileNotFoundError:
        raise _no_weights(folder) from None
    faults = misfits(found, {name: p.shape for name, p in outline.named_parameters()})
    if faults:
        raise UserError(
            f"{folder} is damaged: the {weights} weights in {WEIGHTS} do not fit the network of "
            f"its config.json: {faults}. Restore or retrain the model."
        )
    backbone = config.backbone()
    load_weights(folder, weights, backbone)
    return backbone, config


def _of(weights: Weights, stored: Mapping[str, T]) -> dict[str, T]:
    """Return one of the two sets of weights, by the network's own names."""
    start = f"{weights}."
    return {n.removeprefix(start): found for n, found in stored.items() if n.startswith(start)}


def _no_weights(folder: Path) -> UserError:
    return UserError(f"{folder} is no model folder: it has no {WEIGHTS}.")
