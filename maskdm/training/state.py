"""The state of training: everything that a step changes, and how it is saved and restored."""

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskdm.backbones.denoiser import Denoiser
from maskdm.training.history import History
from maskdm.training.optimiser import AdamW, LossScale
from maskdm.training.phases import PhaseParams


@dataclass
class State:
    """Everything that a step changes.

    Attributes:
        backbone: the network with its raw weights.
        averaged: the averaged weights, by parameter name.
        optimiser: AdamW with its moments.
        scale: of the loss in fp16; None in other precisions.
        step: how many steps were made.
        history: of these steps.
    """

    backbone: Denoiser
    averaged: dict[str, Tensor]
    optimiser: AdamW
    scale: LossScale | None
    step: int = 0
    history: History = field(default_factory=History)

    @classmethod
    def start(
        cls,
        backbone: Denoiser,
        params: PhaseParams,
        moments: Mapping[str, Tensor] | None = None,
    ) -> "State":
        """Return the state before the first step; the average starts at the weights given.

        Args:
            backbone: on the device to train on.
            params: the phase.
            moments: what the optimiser starts with, named as in its ``tensors``; None for zeros.
        """
        parameters = dict(backbone.named_parameters())
        device = next(iter(parameters.values())).device
        averaged = {name: p.detach().clone() for name, p in parameters.items()}
        scale = LossScale.for_precision(params.precision, device)
        optimiser = AdamW(parameters, params)
        if moments is not None:
            for name, tensor in optimiser.tensors().items():
                tensor.copy_(moments[name])
        return cls(backbone, averaged, optimiser, scale)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is to be saved, by name; the tensors themselves, not copies."""
        self.history.fetch()
        found = {f"averaged.{name}": tensor for name, tensor in self.averaged.items()}
        found |= {f"raw.{name}": p.detach() for name, p in self.backbone.named_parameters()}
        found |= self.optimiser.tensors() | (self.scale.tensors() if self.scale else {})
        for name, values in (("losses", self.history.losses), ("norms", self.history.norms)):
            found[f"history.{name}"] = torch.tensor(values, dtype=torch.float32)
        for step, images in self.history.previews.items():
            found[f"history.previews.{step}"] = torch.from_numpy(images)
        return found

    def metadata(self) -> dict[str, Any]:
        """Return everything else that is to be saved, as JSON can hold it."""
        previews = {step: images.shape for step, images in self.history.previews.items()}
        return {"validations": self.history.validations, "previews": previews}

    def restore(
        self, step: int, metadata: Mapping[str, Any], load: Callable[[str, Tensor], object]
    ) -> None:
        """Become the state after ``step`` steps.

        Args:
            step: steps made.
            metadata: as ``metadata`` returned it, perhaps through JSON.
            load: copies the saved tensor of a name, as in ``tensors``, into the tensor given.
        """
        losses, norms = torch.empty(step), torch.empty(step)
        for name, tensor in self.tensors().items():
            if not name.startswith("history."):
                load(name, tensor)
        load("history.losses", losses)
        load("history.norms", norms)
        validations = {int(made): errors for made, errors in metadata["validations"].items()}
        previews = {}
        for made, shape in metadata["previews"].items():
            images = torch.empty(tuple(shape), dtype=torch.uint8)
            load(f"history.previews.{made}", images)
            previews[int(made)] = images.numpy()
        self.history = History(
            array("f", losses.tolist()),
            array("f", norms.tolist()),
            validations,
            previews=previews,
        )
        self.step = step
