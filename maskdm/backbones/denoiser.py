"""The one signature that all backbones have.

A backbone denoises a *set of tokens with positions*:
``denoiser(tokens (B, S, p²·C), positions (B, S), time (B,), label (B,) | None) → (B, S, p²·C)``.
A whole image is the set of all its patches, a masked image a subset; the backbone cannot tell.
"""

import torch
from torch import Tensor, nn

from maskdm.runtime.errors import UserError


class Denoiser(nn.Module):
    """What every backbone is: callable on token sets, and frank about what a call costs.

    Attributes:
        classes: how many classes it knows; 0 if it is unconditional. Labels are 0 to
            ``classes`` − 1, and ``classes`` itself is the null label: no class is said.
        label_embedding: a row for each class and, last, for the null label; None if it is
            unconditional.
    """

    classes: int = 0
    label_embedding: nn.Embedding | None

    def __init__(self) -> None:
        super().__init__()
        self.label_embedding = None

    def forward(
        self, tokens: Tensor, positions: Tensor, time: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """Denoise a set of patches.

        Args:
            tokens: the noisy patches, ``(batch, visible, p²·C)``.
            positions: their places on the grid, row by row, ``(batch, visible)`` int64.
            time: ``(batch,)`` in [0, 1], 1 being noise.
            label: the classes, ``(batch,)`` int64; None is the null label for all.

        Returns:
            The prediction for each patch, ``(batch, visible, p²·C)``.
        """
        raise NotImplementedError

    def forward_flops(self, visible: int) -> int:
        """Return the FLOPs of one image's forward pass with ``visible`` patches shown."""
        raise NotImplementedError

    def fit_weights(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a model that may have had another grid, fitted to this one's.

        Args:
            stored: tensors by parameter name; nothing is changed in place.
        """
        return stored

    def embed_label(self, label: Tensor | None, batch: int) -> Tensor:
        """Return the embedded labels, ``(batch, dim)``: the null label where none is given.

        Raises:
            UserError: if a label is given to an unconditional network.
        """
        if self.label_embedding is None:
            raise UserError("This model was trained without classes: it takes no label.")
        if label is None:
            return self.label_embedding.weight[self.classes].expand(batch, -1)
        return self.label_embedding(label)

    def extra_tokens(self, label: Tensor | None, time: Tensor) -> Tensor:
        """Return time and, if there are classes, class as tokens, ``(batch, 1 or 2, dim)``.

        Args:
            label: as in ``forward``.
            time: the embedded times, ``(batch, dim)``.

        Raises:
            UserError: if a label is given to an unconditional network.
        """
        extra = time[:, None]
        if self.label_embedding is None and label is None:
            return extra
        chosen = self.embed_label(label, len(time))[:, None]
        return torch.cat([extra, chosen.to(extra.dtype)], dim=1)
