"""History: the loss and the gradient norm of every step of a phase, its validations and previews.

Kept for every step, not for every row of a curve, so that a run can be extended or branched off
at any step and still writes the curves of a run that was never anything else.
"""

from array import array
from dataclasses import dataclass, field
from math import inf, isfinite, nan

import numpy as np
import torch
from torch import Tensor

ALL = slice(None)
Errors = dict[str, float]  # x0 errors by column name: raw and averaged, and each per λ


@dataclass(frozen=True)
class Row:
    """A row of the training curve.

    Attributes:
        step: the last step it covers, from 1.
        loss: mean over its steps, those that are not finite left out; NaN if none is.
        gradient_norm: of the last step, before clipping.
        skipped: steps that changed no weight, because loss or gradients were not finite.
    """

    step: int
    loss: float
    gradient_norm: float
    skipped: int


@dataclass
class History:
    """Losses and gradient norms by step, validations by the steps made before them.

    Attributes:
        losses: one a step, float32.
        norms: gradient norms before clipping, one a step, float32.
        validations: x0 errors, keyed by steps made; those that every longer run has, too.
        final: the same after the last step of this run, which no longer run has.
        previews: what the averaged weights drew, uint8 ``(count, H, W, C)``, by steps made; those
            that every longer run has, too.
        final_previews: the same after the last step of this run, which no longer run has.
    """

    losses: "array[float]" = field(default_factory=lambda: array("f"))
    norms: "array[float]" = field(default_factory=lambda: array("f"))
    validations: dict[int, Errors] = field(default_factory=dict)
    final: dict[int, Errors] = field(default_factory=dict)
    previews: dict[int, np.ndarray] = field(default_factory=dict)
    final_previews: dict[int, np.ndarray] = field(default_factory=dict)
    _on_device: list[Tensor] = field(default_factory=list)

    @property
    def measured(self) -> dict[int, Errors]:
        """All validations, by steps made."""
        return self.validations | self.final

    @property
    def drawn(self) -> dict[int, np.ndarray]:
        """All previews, by steps made."""
        return self.previews | self.final_previews

    def add(self, outcome: Tensor) -> None:
        """Keep the outcome of a step on its device, without waiting for it.

        Args:
            outcome: loss and gradient norm, ``(2,)`` float32.
        """
        self._on_device.append(outcome)

    def fetch(self) -> None:
        """Copy from the device what is still there."""
        if self._on_device:
            losses, norms = torch.stack(self._on_device).cpu().numpy().T
            self.losses.extend(losses.tolist())
            self.norms.extend(norms.tolist())
            self._on_device.clear()

    def failing(self) -> int:
        """Return how many of the last steps in a row were skipped."""
        good = np.flatnonzero(self._finite())
        return len(self.losses) - (int(good[-1]) + 1 if len(good) else 0)

    def row(self, last: int, every: int) -> Row:
        """Return the row of the training curve that ends with step ``last`` (from 1).

        Args:
            last: the step, a multiple of ``every`` or the last of all.
            every: steps between rows.
        """
        part = slice((last - 1) // every * every, last)
        self.fetch()
        losses = np.array(self.losses[part])
        losses = losses[np.isfinite(losses)]  # in fp16 only the gradients of a step overflow
        return Row(
            step=last,
            loss=float(losses.mean()) if len(losses) else nan,
            gradient_norm=self.norms[last - 1] if isfinite(self.norms[last - 1]) else inf,
            skipped=int((~self._finite(part)).sum()),
        )

    def rows(self, every: int, after: int = 0) -> list[Row]:
        """Return the rows of the training curve: one every ``every`` steps, and the last.

        Args:
            every: steps between rows.
            after: rows that end at this step or before it are left out.
        """
        self.fetch()
        steps = len(self.losses)
        ends = [*range((after // every + 1) * every, steps, every), steps] if steps > after else []
        return [self.row(end, every) for end in ends]

    def _finite(self, part: slice = ALL) -> np.ndarray:
        """Return of each step of a part whether it changed the weights."""
        self.fetch()
        changed: np.ndarray = np.isfinite(self.losses[part]) & np.isfinite(self.norms[part])
        return changed
