"""A trained model on disk: ``model.safetensors`` and ``config.json``, nothing pickled.

The safetensors file holds every weight twice, as ``raw.NAME`` and ``averaged.NAME``; the config
holds everything that is needed to rebuild the network, and how it was trained.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.diffusion.loss import DiffusionParams
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import replacing, write_json, write_tensors
from maskdm.runtime.params import Section, Seed, validate

Weights = Literal["averaged", "raw"]
MOMENTS = "optimiser.safetensors"  # of the raw weights, beside them: finetune.optimiser
FILES = ("config.json", "model.safetensors", MOMENTS)
MOST_BYTES = 2**24  # of a config: a thousand classes have 30 kB
LARGEST_SIDE = 4096


class TrainedLeg(Section):
    """One leg of training, and what it cost.

    ``flops`` are those of the cost model, forward and backward, without validation.
    """

    phase: str
    data: str = Field(description="content hash of the prepared set")
    mask: str
    mask_rate: float = Field(description="the true rate")
    visible: int = Field(description="patches shown of each image")
    scope: str = Field("image", description="image, or middle: shown to the middle blocks alone")
    batch_size: int
    steps: int
    images: int
    full_images: int = Field(description="images that the mixture showed whole")
    flops: int


class ModelConfig(Section):
    """``config.json``: how to rebuild the network, and how it was trained, first leg first.

    ``classes`` maps the names of the classes, in the order of their labels, to their numbers of
    training images; None for an unconditional model.
    """

    size: int = Field(ge=1, le=LARGEST_SIDE, description="side of the images in pixels")
    channels: int = Field(ge=1, le=3, description="1 (grey) or 3 (RGB)")
    classes: Annotated[dict[str, int], Field(min_length=1)] | None = Field(
        description="the name of every class → its training images, or null for no classes"
    )
    seed: Seed
    model: ModelParams
    diffusion: DiffusionParams
    training: list[TrainedLeg]

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
            self.model, self.size, self.channels, self.seed, len(self.classes or ())
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
    with replacing(folder / "model.safetensors") as begun:
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
    from safetensors.torch import load_file

    path = folder / MOMENTS
    try:
        stored = load_file(path)
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {MOMENTS}, which pretraining leaves there: pretrain again, or set "
            "finetune.optimiser to fresh."
        ) from None
    except Exception as error:  # safetensors does not say which errors damage raises
        raise UserError(f"{path} is damaged: {error}. Restore or retrain the model.") from None
    fitted: dict[str, Tensor] = {}
    for kind in ("exp_avg", "exp_avg_sq", "step"):
        start = f"{kind}."
        own = {n.removeprefix(start): t for n, t in stored.items() if n.startswith(start)}
        found = own if kind == "step" else into.fit_weights(own)
        # Resampling may leave squares a little below zero.
        fitted |= {
            f"{start}{n}": t.clamp(min=0) if kind != "exp_avg" else t for n, t in found.items()
        }
    return fitted


def load_config(folder: Path) -> ModelConfig:
    """Return a model folder's config.

    Raises:
        UserError: if the folder is no model folder.
    """
    path = folder / "config.json"
    if folder.name in FILES and folder.is_file():
        raise UserError(f"{folder} is a file of a model: give its folder, {folder.parent}.")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes are no config")
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} is no model folder: it has no config.json. Give the folder of a model that "
            "maskdm trained, such as models/pretrain."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}. Restore or retrain the model.") from None
    return validate(content, "config", ModelConfig, where=str(path))


def check_start(
    folder: Path,
    before: ModelConfig,
    model: ModelParams,
    diffusion: DiffusionParams,
    classes: bool,
    names: Sequence[str] | None = None,
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

    Raises:
        UserError: naming what differs.
    """
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


def weights_hash(folder: Path, name: str = "model.safetensors") -> str:
    """Return the hash of a model folder's weights, or of another of its files."""
    with (folder / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(folder: Path, weights: Weights, into: Denoiser) -> None:
    """Fill a network with the weights of a model folder, fitting learned positions to its grid.

    Raises:
        UserError: naming every tensor that is missing, unexpected or of another shape.
    """
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    try:
        stored = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{folder} is no model folder: it has no model.safetensors.") from None
    except Exception as error:  # safetensors does not say which errors damage raises
        raise UserError(f"{path} is damaged: {error}. Restore or retrain the model.") from None
    start = f"{weights}."
    found = {n.removeprefix(start): t for n, t in stored.items() if n.startswith(start)}
    broken = next((n for n, t in found.items() if not t.isfinite().all()), None)
    if broken is not None:
        raise UserError(
            f"The {weights} weights in {path} are not finite ({broken}): restore or retrain the "
            "model."
        )
    found = into.fit_weights(found)
    expected = dict(into.named_parameters())
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is unexpected" for name in found if name not in expected]
    faults += [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if faults[5:] else "")
        raise UserError(
            f"The {weights} weights in {path} do not fit the network: {shown}. "
            "Use the model section (and data.resolution, data.channels) that they were trained "
            f"with: see {folder / 'config.json'}."
        )
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(found[name])


def load_model(folder: Path, weights: Weights) -> tuple[Denoiser, ModelConfig]:
    """Return the network of a model folder and its config.

    Raises:
        UserError: if the folder is no model folder or is damaged.
    """
    config = load_config(folder)
    backbone = config.backbone()
    load_weights(folder, weights, backbone)
    return backbone, config
