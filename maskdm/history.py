"""What a phase has been through: the loss and the gradient norm of every step, the validations.

Kept for every step, not for every row of a curve, so that a run can be extended or branched off
at any step and still write the curves of a run that was never anything else.
"""

from array import array
from dataclasses import dataclass, field
from math import inf, isfinite, nan

import numpy as np
import torch
from torch import Tensor


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
        validations: x0 errors by column name, keyed by steps made.
    """

    losses: "array[float]" = field(default_factory=lambda: array("f"))
    norms: "array[float]" = field(default_factory=lambda: array("f"))
    validations: dict[int, dict[str, float]] = field(default_factory=dict)
    _pending: list[Tensor] = field(default_factory=list)

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Keep the loss and the gradient norm of a step where they are, without waiting for them.

        Args:
            loss: 0-d float32.
            norm: 0-d float32, on the same device.
        """
        self._pending.append(torch.stack([loss.detach(), norm.detach()]).float())

    def settle(self) -> None:
        """Fetch what the device still holds."""
        if self._pending:
            losses, norms = torch.stack(self._pending).cpu().numpy().T
            self.losses.extend(losses.tolist())
            self.norms.extend(norms.tolist())
            self._pending.clear()

    def failing(self) -> int:
        """Return how many of the last steps in a row were skipped."""
        good = np.flatnonzero(self._finite())
        return len(self.losses) - (int(good[-1]) + 1 if len(good) else 0)

    def row(self, first: int, last: int) -> Row:
        """Return the row of steps ``first`` to ``last``, both counted from 1 and included."""
        part = slice(first - 1, last)
        losses = np.array(self.losses[part])
        losses = losses[np.isfinite(losses)]  # in fp16 only the gradients of a step overflow
        return Row(
            step=last,
            loss=float(losses.mean()) if len(losses) else nan,
            gradient_norm=self.norms[last - 1] if isfinite(self.norms[last - 1]) else inf,
            skipped=int((~self._finite()[part]).sum()),
        )

    def rows(self, every: int) -> list[Row]:
        """Return the rows of the training curve: one every ``every`` steps, and the last."""
        steps = len(self.losses)
        ends = [*range(every, steps, every), steps] if steps else []
        return [self.row(before + 1, end) for before, end in zip([0, *ends], ends, strict=False)]

    def _finite(self) -> np.ndarray:
        """Return of each step whether it changed the weights."""
        finite: np.ndarray = np.isfinite(np.array([self.losses, self.norms])).all(axis=0)
        return finite
